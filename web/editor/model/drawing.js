// The drawing as a value: every edit is a function from one state to the next. Nothing here knows a browser.
//
// state = { boxes: [box], selection: [id], rest, nextId }. A box is what json.js reads, and an `id` that lives as
// long as the editor. Later boxes lie on top of earlier ones.

import { drawingText, MAX_BOXES, MAX_PHRASE, MIN_SIZE, parseDrawing, RANGES } from "./json.js";
import { bounds, carried, clamp, holds, moved, resized, tidied, touches } from "./geometry.js";

const MAX_STEPS = 100;
export const DEFAULTS = {
    strength: 1, negative: "", start: 0, end: 1, feather: undefined, color: undefined, enabled: true, locked: false,
    hidden: false, opacity: 1, lora: "", lora_strength: 1, shape: undefined, start_frame: undefined, end_frame: undefined,
};

/** The state of a text, nothing selected; ids from `firstId` on, so that no box takes another's. Throws Problem. */
export function stateOf(text, firstId = 0) {
    const { boxes, rest } = parseDrawing(text);
    const numbered = boxes.map((box, index) => ({ ...box, id: firstId + index }));
    return { boxes: numbered, selection: [], rest, nextId: firstId + boxes.length };
}

/** The text that keeps a state. */
export function textOf(state) {
    return drawingText(state);
}

/** The value of a box's optional key, or what it means when it is absent. */
export function option(box, key) {
    return box[key] ?? DEFAULTS[key];
}

/** The server's name of a file, whichever way its folders are parted; undefined = it has none of that name. */
export function fileAmong(files, name) {
    const plain = (file) => file.replaceAll("\\", "/");
    return files.find((file) => plain(file) === plain(name));
}

// --- choosing ---------------------------------------------------------------------------------------------------------

/** The selected boxes, in drawing order. */
export function selected(state) {
    return state.boxes.filter((box) => state.selection.includes(box.id));
}

/** The boxes that a gesture may change: selected and not locked. */
export function editable(state) {
    return selected(state).filter((box) => !option(box, "locked"));
}

/** The same state with these boxes selected; unknown ids are dropped. */
export function select(state, ids) {
    const known = state.boxes.map((box) => box.id).filter((id) => ids.includes(id));
    return { ...state, selection: known };
}

/** The same state with one more box selected, or one less. */
export function toggle(state, id) {
    const without = state.selection.filter((other) => other !== id);
    return select(state, without.length < state.selection.length ? without : [...without, id]);
}

export function selectAll(state) {
    return select(state, state.boxes.filter(canBeHit).map((box) => box.id));
}

/** The boxes under a point, topmost first: neither hidden nor locked ones. */
export function boxesAt(state, point) {
    return state.boxes.filter((box) => canBeHit(box) && holds(box, point)).reverse();
}

/** What a click on a point selects: the topmost box, or the one below the selected one where boxes overlap; or null. */
export function clicked(state, point) {
    const under = boxesAt(state, point);
    const at = under.findIndex((box) => state.selection.length === 1 && state.selection[0] === box.id);
    return under.length ? under[(at + 1) % under.length] : null;
}

/** The ids of the boxes that touch a rectangle. */
export function touching(state, rect) {
    return state.boxes.filter((box) => canBeHit(box) && touches(box, rect)).map((box) => box.id);
}

/** The next box selected (step 1) or the one before (step -1), around the end. */
export function cycled(state, step) {
    const ring = state.boxes.filter((box) => !option(box, "hidden"));
    if (!ring.length) return state;
    const at = ring.findIndex((box) => box.id === state.selection[0]);
    const next = at < 0 ? (step > 0 ? 0 : ring.length - 1) : (at + step + ring.length) % ring.length;
    return select(state, [ring[next].id]);
}

function canBeHit(box) {
    return !option(box, "hidden") && !option(box, "locked");
}

// --- changing ---------------------------------------------------------------------------------------------------------

/** Whether so many more boxes fit. */
export function hasRoom(state, count = 1) {
    return state.boxes.length + count <= MAX_BOXES;
}

/**
 * New boxes on top, selected. Each needs x, y, width, height. The state itself where they do not all fit. Each has a shape
 * of its own: what is worked out for a shape is kept with it, and a copy has another colour.
 */
export function added(state, boxes) {
    if (!hasRoom(state, boxes.length) || !boxes.length) return state;
    const made = boxes.map((box, index) => tidied({
        phrase: "", extra: {}, ...box, ...(box.shape && { shape: { ...box.shape } }), id: state.nextId + index,
    }));
    const next = { ...state, boxes: [...state.boxes, ...made], nextId: state.nextId + made.length };
    return select(next, made.map((box) => box.id));
}

/** Where the + button puts a box: a third of the image, in the middle, stepped aside from boxes that are there. */
export function freePlace(state) {
    const size = 1 / 3;
    for (let step = 0; step < MAX_BOXES; step += 1) {
        const at = size + ((step * 0.04) % (1 - 2 * size));
        const place = { x: at, y: at, width: size, height: size };
        if (!state.boxes.some((box) => Math.hypot(box.x - place.x, box.y - place.y) < 0.02)) return place;
    }
    return { x: size, y: size, width: size, height: size };
}

/** Without the selected boxes; locked ones stay. */
export function removed(state) {
    const gone = editable(state).map((box) => box.id);
    const boxes = state.boxes.filter((box) => !gone.includes(box.id));
    return select({ ...state, boxes }, state.selection);
}

/** Copies of the selected boxes, a little aside unless `inPlace`, selected. */
export function duplicated(state, inPlace = false) {
    const copies = selected(state).map((box) => unlocked(inPlace ? box : shifted(box)));
    return added(state, copies);
}

/** Boxes from elsewhere, moved a little aside where they would cover a box exactly. */
export function pasted(state, boxes) {
    const taken = (box) => state.boxes.some((other) => ["x", "y", "width", "height"].every((key) => box[key] === other[key]));
    return added(state, boxes.map((box) => (taken(box) ? shifted(box) : box)));
}

function shifted(box) {
    const step = (start, length) => (start + length + 0.03 <= 1 ? start + 0.03 : Math.max(0, start - 0.03));
    return { ...box, x: step(box.x, box.width), y: step(box.y, box.height) };
}

function unlocked(box) {
    const { locked, ...rest } = box;
    return rest;
}

/** The selected boxes moved together; the group stops at the image's edges. `boxes`: as they were before the drag. */
export function movedBy(state, dx, dy) {
    const boxes = editable(state);
    if (!boxes.length) return state;
    const from = bounds(boxes), to = moved(from, dx, dy);
    return carriedTo(state, from, to);
}

/** The selected boxes resized together by a handle of the rectangle around them. */
export function resizedTo(state, handle, point, options) {
    const boxes = editable(state);
    if (!boxes.length) return state;
    const from = bounds(boxes);
    return carriedTo(state, from, resized(from, handle, point, options));
}

/** The selected boxes carried along as the rectangle around them goes from `from` to `to`. */
export function carriedTo(state, from, to) {
    const ids = editable(state).map((box) => box.id);
    return changed(state, ids, (box) => tidied(carried(box, from, to)));
}

/** One box with other values: numbers are brought into their range, texts shortened, defaults taken out again. */
export function set(state, ids, values) {
    return changed(state, ids, (box) => {
        const next = asShown(box, Object.keys(values));
        for (const [key, value] of Object.entries(values)) next[key] = legal(next, key, value);
        for (const key of Object.keys(DEFAULTS)) {
            if (next[key] === DEFAULTS[key] && !(key === "strength" && box[key] !== undefined)) delete next[key];
        }
        return ["x", "y", "width", "height"].some((key) => key in values) ? tidied(next) : next;
    });
}

/** Every number that a text has out of its range kept as it is shown. The state itself where there is none. */
export function mended(state) {
    return state.boxes.some((box) => box.given) ? { ...state, boxes: state.boxes.map((box) => asShown(box)) } : state;
}

/** The box without what was given out of range under some keys (all of them where none are named). */
function asShown({ given = {}, ...box }, keys = Object.keys(given)) {
    const rest = Object.entries(given).filter(([key]) => !keys.includes(key));
    return rest.length ? { ...box, given: Object.fromEntries(rest) } : box;
}

function legal(box, key, value) {
    if (value === undefined) return undefined;
    if (key === "phrase" || key === "negative") {
        return String(value).slice(0, MAX_PHRASE).replace(/\p{Cs}$/u, ""); // no half of a pair
    }
    if (["x", "y"].includes(key)) return clamp(value, 0, 1 - box[key === "x" ? "width" : "height"]);
    if (["width", "height"].includes(key)) return clamp(value, MIN_SIZE, 1 - box[key === "width" ? "x" : "y"]);
    if (key === "start") return clamp(value, 0, (box.end ?? 1) - 0.01);
    if (key === "end") return clamp(value, Math.min(1, (box.start ?? 0) + 0.01), 1);
    if (key in RANGES) return clamp(value, ...RANGES[key]);
    return value;
}

/** A box moved to another place in the order; 0 = the lowest. */
export function reordered(state, id, index) {
    const from = state.boxes.findIndex((box) => box.id === id);
    if (from < 0) return state;
    const boxes = state.boxes.filter((box) => box.id !== id);
    boxes.splice(clamp(index, 0, boxes.length), 0, state.boxes[from]);
    return { ...state, boxes };
}

/** One box with another place and shape: {x, y, width, height, shape}, the last undefined for a box; null: without it. */
export function withArea(state, id, area) {
    if (!area) return { ...select(state, []), boxes: state.boxes.filter((box) => box.id !== id) };
    const plain = ({ shape, ...box }) => box;
    return changed(state, [id], (box) => tidied({ ...plain(box), ...area }));
}

function changed(state, ids, edit) {
    return { ...state, boxes: state.boxes.map((box) => (ids.includes(box.id) ? edit(box) : box)) };
}

// --- presets ----------------------------------------------------------------------------------------------------------

/** A grid of boxes that fill a rectangle, row by row. */
export function gridOf(rect, columns, rows) {
    return Array.from({ length: columns * rows }, (_, index) => ({
        x: rect.x + (index % columns) * (rect.width / columns),
        y: rect.y + Math.floor(index / columns) * (rect.height / rows),
        width: rect.width / columns,
        height: rect.height / rows,
    }));
}

/**
 * One selected box split into a grid, its settings kept by every part; without a selection, the whole image is split.
 * The state itself where the parts do not fit.
 */
export function split(state, columns, rows) {
    const [whole] = editable(state);
    if (!whole) return added(state, gridOf({ x: 0, y: 0, width: 1, height: 1 }, columns, rows));
    if (!hasRoom(state, columns * rows - 1)) return state;
    const at = state.boxes.indexOf(whole);
    const rest = { ...state, boxes: state.boxes.filter((box) => box !== whole), selection: [] };
    const { shape, ...box } = whole; // the parts are boxes
    const next = added(rest, gridOf(box, columns, rows).map((part) => ({ ...box, ...part })));
    const parts = next.boxes.slice(rest.boxes.length);
    return { ...next, boxes: [...rest.boxes.slice(0, at), ...parts, ...rest.boxes.slice(at)] };
}

/** A box over the whole image below all others, selected: what the rest of the picture shows. */
export function withBackground(state) {
    const next = added(state, [{ x: 0, y: 0, width: 1, height: 1 }]);
    return next === state ? state : reordered(next, next.selection[0], 0);
}

// --- history ----------------------------------------------------------------------------------------------------------
// The host's undo brings back texts. This history knows the states those texts came from, so that the selection comes
// back too. entries = [{text, own, state}], `at` = the present one: `text` is what the host has, `own` is how we write the
// same; a text of another origin may be written in another way.

export function newHistory(state, text = textOf(state)) {
    return { entries: [{ text, own: textOf(state), state }], at: 0 };
}

export function present(history) {
    return history.entries[history.at].state;
}

/** How we write the present state. */
export function presentText(history) {
    return history.entries[history.at].own;
}

/** The history after an edit; what had been undone is forgotten. An edit that changes no text only moves the selection. */
export function remembered(history, state, text) {
    const own = textOf(state);
    if (own === presentText(history)) {
        const entries = history.entries.map((entry, index) => (index === history.at ? { ...entry, state } : entry));
        return { ...history, entries };
    }
    const kept = history.entries.slice(Math.max(0, history.at + 2 - MAX_STEPS), history.at + 1);
    return { entries: [...kept, { text: text ?? own, own, state }], at: kept.length };
}

export const canUndo = (history) => history.at > 0;
export const canRedo = (history) => history.at < history.entries.length - 1;

/** The first id that no state of the history has given away. */
function freeId(history) {
    return Math.max(...history.entries.map((entry) => entry.state.nextId));
}

/** The history after the host has put a text in place: its undo or redo if the text is known, nearest first; else an
 * edit from outside. Throws Problem. */
export function followed(history, text) {
    const distance = (index) => Math.abs(index - history.at);
    const known = history.entries
        .map((entry, index) => (entry.text === text ? index : -1))
        .filter((index) => index >= 0)
        .sort((a, b) => distance(a) - distance(b));
    return known.length ? { ...history, at: known[0] } : remembered(history, stateOf(text, freeId(history)), text);
}
