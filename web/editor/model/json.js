// Text <-> boxes: the only thing that a workflow keeps of a drawing. nodes/parts/regions_json.py reads the same format,
// strictly. Texts of other programs: layout_import.js.

import { shapeProblem } from "./shapes.js";

export const FORMAT = "boxwright.regions";
export const VERSION = 1;
export const MAX_BOXES = 64;
export const MAX_PHRASE = 1000; // characters
export const MAX_TEXT = 1_000_000; // characters
export const MIN_SIZE = 0.001; // fraction of the image: the thinnest box the editor makes
export const MAX_DEPTH = 32; // levels of nesting
export const ROUNDING = 1e-6; // how far a box may stick out of the image through rounding
const COLOR = /^#[0-9a-f]{6}$/i;
const CONTROL = /\p{Cc}|\p{Cs}/u;
const HALF = /\p{Cs}/u; // of a pair that together is one character
const MAX_NAME = 300; // characters of a LoRA's file
const OPTIONAL = [
    "shape", "strength", "opacity", "negative", "start", "end", "feather", "lora", "lora_strength", "color", "enabled",
    "locked", "hidden", "start_frame", "end_frame",
];
// Numbers, and from where to where: a text's number outside is shown as the nearest inside, and kept as it is in the box's
// `given` until somebody changes it. Python refuses it.
const SHARE = [0, 1], FRAMES = [0, 1_000_000];
export const RANGES = {
    strength: SHARE, opacity: SHARE, start: SHARE, end: SHARE, feather: SHARE, lora_strength: [-10, 10],
    start_frame: FRAMES, end_frame: FRAMES,
};
// [start, end, the end where none is given, the least length]
const WINDOWS = [["start", "end", 1, 0.01], ["start_frame", "end_frame", FRAMES[1] + 1, 1]];
const KNOWN = ["phrase", "x", "y", "width", "height", ...OPTIONAL];

/** What is wrong with a text, as a key of words.js and its values; never an Error that nobody expects. */
export class Problem extends Error {
    constructor(key, values = {}) {
        super(key);
        this.key = key;
        this.values = values;
    }
}

/**
 * The drawing in a text: {boxes, rest}. `rest` holds the outermost object's other keys. Throws Problem.
 * A box is {phrase, x, y, width, height, extra} in fractions of the image, and the optional keys that were there; `given`
 * holds those of its numbers that the text has otherwise, see RANGES.
 */
export function parseDrawing(text) {
    if (typeof text !== "string") throw new Problem("notText");
    if (!text.trim()) return { boxes: [], rest: {} };
    if (text.length > MAX_TEXT) throw new Problem("tooLong", { count: text.length, limit: MAX_TEXT });
    const data = parsedJson(text);
    if (!isObject(data) || data.type !== FORMAT) throw new Problem("notOurs");
    if (!Number.isInteger(data.version) || data.version < 1) throw new Problem("notOurs");
    if (data.version > VERSION) throw new Problem("tooNew");
    if (!Array.isArray(data.regions)) throw new Problem("notOurs");
    if (data.regions.length > MAX_BOXES) throw new Problem("tooMany", { count: data.regions.length, limit: MAX_BOXES });
    return { boxes: data.regions.map(parsedBox), rest: without(data, ["type", "version", "regions"]) };
}

/** The text of a drawing, one line per box. parseDrawing reads back the same drawing. */
export function drawingText({ boxes, rest }) {
    const rows = boxes.map((box) => JSON.stringify(boxObject(box)));
    const head = JSON.stringify({ type: FORMAT, version: VERSION, ...rest }).slice(0, -1);
    return rows.length ? `${head},"regions":[\n${rows.join(",\n")}\n]}` : `${head},"regions":[]}`;
}

/** JSON.parse for text that may be hostile. Throws Problem. */
export function parsedJson(text) {
    let data;
    try {
        data = JSON.parse(text);
    } catch (error) {
        throw new Problem("notJson", { detail: error instanceof Error ? error.message.slice(0, 120) : "" });
    }
    if (!isShallow(data, MAX_DEPTH)) throw new Problem("tooDeep", { limit: MAX_DEPTH });
    return data;
}

/** Whether data nests at most so many lists and objects. */
export function isShallow(data, levels) {
    if (typeof data !== "object" || data === null) return true;
    return levels > 0 && Object.values(data).every((child) => isShallow(child, levels - 1));
}

function parsedBox(entry, index) {
    const number = index + 1;
    if (!isObject(entry)) throw new Problem("boxNotObject", { number });
    if (typeof entry.phrase !== "string" || HALF.test(entry.phrase)) throw new Problem("boxPhrase", { number });
    if (entry.phrase.length > MAX_PHRASE) throw new Problem("boxPhraseLong", { number, limit: MAX_PHRASE });
    for (const key of ["x", "y", "width", "height"]) checkNumber(entry[key], key, number);
    checkInside(entry, number);
    const box = { phrase: entry.phrase, x: entry.x, y: entry.y, width: entry.width, height: entry.height };
    for (const key of OPTIONAL) {
        if (entry[key] === undefined || entry[key] === null) continue;
        checkOptional(key, entry[key], number);
        box[key] = key in RANGES ? Math.max(RANGES[key][0], Math.min(RANGES[key][1], entry[key])) : entry[key];
        if (key in RANGES && Math.abs(box[key] - entry[key]) > ROUNDING) box.given = { ...box.given, [key]: entry[key] };
    }
    for (const names of WINDOWS) settleWindow(box, number, ...names);
    box.extra = without(entry, KNOWN);
    return box;
}

/** Let a window that was brought into its range be open; one that is closed by what stands in the text is refused. */
function settleWindow(box, number, first, last, open, least) {
    const isEmpty = () => (box[first] ?? 0) >= (box[last] ?? open);
    if (isEmpty() && box.given?.[first] !== undefined) box[first] = Math.max(0, (box[last] ?? open) - least);
    if (isEmpty() && box.given?.[last] !== undefined) box[last] = Math.min(open, (box[first] ?? 0) + least);
    if (isEmpty()) throw new Problem("boxWindow", { number });
}

/** Throws Problem unless a value of box `number` is a finite number. */
export function checkNumber(value, key, number) {
    if (typeof value !== "number" || !Number.isFinite(value)) throw new Problem("boxNumber", { number, key });
}

function checkInside({ x, y, width, height }, number) {
    if (!(width > 0 && height > 0)) throw new Problem("boxSize", { number });
    const low = -ROUNDING, high = 1 + ROUNDING;
    if (x < low || y < low || x + width > high || y + height > high) throw new Problem("boxOutside", { number });
}

function checkOptional(key, value, number) {
    if (["enabled", "locked", "hidden"].includes(key)) {
        if (typeof value !== "boolean") throw new Problem("boxFlag", { number, key });
    } else if (key === "negative") {
        if (typeof value !== "string" || HALF.test(value)) throw new Problem("boxNegative", { number });
        if (value.length > MAX_PHRASE) throw new Problem("boxPhraseLong", { number, limit: MAX_PHRASE });
    } else if (key === "lora") {
        const isName = typeof value === "string" && value.length <= MAX_NAME && !CONTROL.test(value) && !leadsOut(value);
        if (!isName) throw new Problem("boxLora", { number });
    } else if (key === "shape") {
        const problem = shapeProblem(value);
        if (problem) throw new Problem(problem, { number });
    } else if (key === "color") {
        if (typeof value !== "string" || !COLOR.test(value)) throw new Problem("boxColor", { number });
    } else {
        checkNumber(value, key, number);
        if (RANGES[key] === FRAMES && !Number.isInteger(value)) throw new Problem("boxFrames", { number, key });
    }
}

/** Whether the name of a LoRA is none below their folder; nodes/parts/checks.py asks the same. */
function leadsOut(name) {
    return name !== "" && (name.includes(":")
        || name.trim().replaceAll("\\", "/").split("/").some((part) => ["", ".", ".."].includes(part)));
}

function boxObject(box) {
    const object = {};
    for (const key of KNOWN) {
        const value = box.given?.[key] ?? box[key];
        if (value !== undefined) object[key] = value;
    }
    return { ...object, ...box.extra };
}

export function isObject(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** An object's other keys. Built from entries, so that a key named __proto__ stays a key. */
function without(object, keys) {
    return Object.fromEntries(Object.entries(object).filter(([key]) => !keys.includes(key)));
}
