// What a drag on the canvas does, as values: begin -> drag, drag, ... -> end. Points are fractions of the image.

import { between, bounds, clamp, handleAt, snappedMove, snappedPoint, snapLines } from "./geometry.js";
import {
    added, boxesAt, carriedTo, clicked, duplicated, editable, option, resizedTo, select, selected, toggle, touching,
    withArea,
} from "./drawing.js";
import { MIN_SIZE } from "./json.js";
import { cornersOf, MIN_POINTS, polygonOf } from "./shapes.js";

/**
 * The gesture that starts when the pointer goes down. keys = {shift, ctrl, alt}; `drawing`: the next drag draws, even
 * over boxes; `reach`: how near to a handle counts, {x, y}; `shape`: of what is drawn, undefined = a box.
 */
export function begin(state, point, keys, drawing, reach, shape = undefined) {
    const chosen = editable(state).filter((box) => !option(box, "hidden"));
    const corner = keys.ctrl || drawing ? -1 : cornerAt(chosen, point, reach);
    if (corner >= 0) return { kind: "corner", from: state, base: state, start: point, corner, id: chosen[0].id };
    const handle = chosen.length && !keys.ctrl && !drawing ? handleAt(bounds(chosen), point, reach) : null;
    if (handle) return { kind: "resize", from: state, base: state, start: point, handle };
    const [top] = boxesAt(state, point);
    if (keys.shift) return { kind: "marquee", from: state, base: state, start: point, top };
    if (!top || keys.ctrl || drawing) return { kind: "draw", from: state, base: state, start: point, top, shape };
    const held = boxesAt(state, point).some((box) => state.selection.includes(box.id));
    const base = held ? state : select(state, [top.id]);
    if (keys.alt) {
        const copies = duplicated(base, true);
        return { kind: copies === base ? "full" : "copy", from: state, base: copies, start: point };
    }
    return { kind: "move", from: state, base, start: point, next: clicked(state, point) };
}

/**
 * The drag now: {state, guides, draft, marquee}. `snapping` = {on, grid, size, reach}: Alt switches it off.
 */
export function drag(gesture, point, keys, snapping) {
    const { kind, base, start } = gesture;
    const lines = snapping.on && !keys.alt ? linesFor(gesture, snapping) : { x: [], y: [] };
    if (kind === "marquee") {
        const marquee = between(start, point);
        return { state: select(base, [...base.selection, ...touching(base, marquee)]), marquee };
    }
    if (kind === "draw") {
        const corner = snappedPoint(inside(start), "se", lines, snapping.reach);
        const other = snappedPoint(inside(point), "se", lines, snapping.reach);
        const draft = { ...between(corner.point, other.point), ...(gesture.shape && { shape: gesture.shape }) };
        return { state: base, draft, guides: merged(corner.guides, other.guides) };
    }
    if (kind === "corner") {
        const snapped = snappedPoint(inside(point), "se", lines, snapping.reach);
        const points = cornersOf(base.boxes.find((box) => box.id === gesture.id));
        points[gesture.corner] = snapped.point;
        const made = polygonOf(points, MIN_SIZE);
        return { state: made ? withArea(base, gesture.id, made) : base, guides: snapped.guides };
    }
    if (kind === "resize") {
        const rect = bounds(editable(base));
        const snapped = snappedPoint(inside(point), gesture.handle, lines, snapping.reach);
        const ratio = keys.shift ? rect.width / rect.height : 0;
        const state = resizedTo(base, gesture.handle, snapped.point, { ratio, centred: keys.alt });
        return { state, guides: ratio ? undefined : snapped.guides };
    }
    const boxes = editable(base);
    if (!boxes.length || kind === "full") return { state: base };
    const from = bounds(boxes);
    const free = {
        ...from,
        x: clamp(from.x + point.x - start.x, 0, 1 - from.width),
        y: clamp(from.y + point.y - start.y, 0, 1 - from.height),
    };
    const { rect, guides } = snappedMove(free, lines, snapping.reach);
    return { state: carriedTo(base, from, rect), guides };
}

/** The state after the pointer went up. `far`: it went further than a click does; `shown`: the last drag, if any. */
export function end(gesture, far, shown, keys) {
    if (far && shown) {
        return gesture.kind === "draw" ? added(gesture.base, [shown.draft]) : shown.state;
    }
    if (gesture.kind === "corner") return keys.alt ? withoutCorner(gesture) : gesture.from;
    if (gesture.kind === "marquee") return gesture.top ? toggle(gesture.from, gesture.top.id) : gesture.from;
    if (gesture.kind === "draw") {
        if (keys.ctrl && gesture.top) return toggle(gesture.from, gesture.top.id);
        return select(gesture.from, gesture.top ? [gesture.top.id] : []);
    }
    if (gesture.kind === "move" && gesture.next) return select(gesture.from, [gesture.next.id]);
    return gesture.from;
}

/** The corner of the one chosen polygon that is within reach of a point, or -1. */
export function cornerAt(chosen, point, reach) {
    if (chosen.length !== 1 || chosen[0].shape?.kind !== "polygon") return -1;
    const away = cornersOf(chosen[0]).map(({ x, y }) => Math.hypot((x - point.x) / reach.x, (y - point.y) / reach.y));
    const nearest = away.indexOf(Math.min(...away));
    return away[nearest] <= 1 ? nearest : -1;
}

function withoutCorner({ from, id, corner }) {
    const points = cornersOf(from.boxes.find((box) => box.id === id));
    const made = points.length > MIN_POINTS && polygonOf(points.filter((_, index) => index !== corner), MIN_SIZE);
    return made ? withArea(from, id, made) : from;
}

function inside(point) {
    return { x: clamp(point.x, 0, 1), y: clamp(point.y, 0, 1) };
}

/** The lines of everything that does not move along. Worked out once for a gesture. */
function linesFor(gesture, snapping) {
    const moving = gesture.kind === "draw" ? [] : selected(gesture.base).map((box) => box.id);
    gesture.lines ??= snapLines(
        gesture.base.boxes.filter((box) => !moving.includes(box.id) && !option(box, "hidden")),
        snapping.grid,
        snapping.size,
    );
    return gesture.lines;
}

function merged(a, b) {
    return { x: [...a.x, ...b.x], y: [...a.y, ...b.y] };
}
