// Rectangles in fractions of the image: {x, y, width, height}, origin top-left. Pure functions, nothing kept.

import { MIN_SIZE } from "./json.js";
import { rasterized, shapeHolds } from "./shapes.js";

export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
export const ATTENTION_CELLS = [64, 32]; // pixels per cell on the coarsest grids of SD models; see nodes/parts/layout_report.py
const DIGITS = 1e6;
const COVERAGE_CELLS = 96;

export const right = (box) => box.x + box.width;
export const bottom = (box) => box.y + box.height;
export const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const round = (value) => Math.round(value * DIGITS) / DIGITS;

/** The box with short numbers, inside the image and not thinner than MIN_SIZE. */
export function tidied(box) {
    const width = clamp(round(box.width), MIN_SIZE, 1), height = clamp(round(box.height), MIN_SIZE, 1);
    const x = clamp(round(box.x), 0, round(1 - width)), y = clamp(round(box.y), 0, round(1 - height));
    return { ...box, x, y, width, height };
}

/** The smallest rectangle around some boxes, at least one. */
export function bounds(boxes) {
    const x = Math.min(...boxes.map((box) => box.x)), y = Math.min(...boxes.map((box) => box.y));
    return { x, y, width: Math.max(...boxes.map(right)) - x, height: Math.max(...boxes.map(bottom)) - y };
}

/** The rectangle between two points {x, y}, inside the image. */
export function between(a, b) {
    const [left, far] = [a.x, b.x].map((value) => clamp(value, 0, 1)).sort((one, two) => one - two);
    const [top, low] = [a.y, b.y].map((value) => clamp(value, 0, 1)).sort((one, two) => one - two);
    return { x: left, y: top, width: far - left, height: low - top };
}

/** A rectangle moved by dx, dy, stopped at the image's edges. */
export function moved(rect, dx, dy) {
    return { ...rect, x: clamp(rect.x + dx, 0, 1 - rect.width), y: clamp(rect.y + dy, 0, 1 - rect.height) };
}

/**
 * A rectangle after its handle went to a point. `ratio`: width / height in fractions to keep, or 0; `centred`: the
 * middle stays instead of the opposite side. A handle dragged past the opposite side turns the rectangle over.
 */
export function resized(rect, handle, point, { ratio = 0, centred = false } = {}) {
    const horizontal = span(rect.x, right(rect), handle.includes("w"), handle.includes("e"), point.x, centred);
    const vertical = span(rect.y, bottom(rect), handle.includes("n"), handle.includes("s"), point.y, centred);
    const free = { x: horizontal.from, y: vertical.from, width: horizontal.length, height: vertical.length };
    return ratio ? withRatio(rect, free, handle, ratio, centred) : free;
}

/** One axis: the side that is dragged goes to `to`. */
function span(low, high, dragsLow, dragsHigh, to, centred) {
    if (!dragsLow && !dragsHigh) return { from: low, length: high - low };
    const goal = clamp(to, 0, 1);
    const middle = (low + high) / 2;
    if (centred) {
        const half = clamp(Math.abs(goal - middle), MIN_SIZE / 2, Math.min(middle, 1 - middle));
        return { from: middle - half, length: 2 * half };
    }
    const fixed = dragsLow ? high : low;
    const from = Math.min(goal, fixed), length = Math.abs(goal - fixed);
    if (length >= MIN_SIZE) return { from, length };
    return { from: fixed === 0 || (dragsHigh && fixed + MIN_SIZE <= 1) ? fixed : fixed - MIN_SIZE, length: MIN_SIZE };
}

function withRatio(rect, free, handle, ratio, centred) {
    const across = handle.includes("w") || handle.includes("e"), down = handle.includes("n") || handle.includes("s");
    let width = across && (!down || free.width / ratio >= free.height) ? free.width : free.height * ratio;
    // The point that stays: the opposite corner, the middle of the opposite side, or the middle.
    const x = centred || !across ? rect.x + rect.width / 2 : handle.includes("w") ? right(rect) : rect.x;
    const y = centred || !down ? rect.y + rect.height / 2 : handle.includes("n") ? bottom(rect) : rect.y;
    const towardsX = centred || !across ? 0 : free.x + free.width / 2 < x ? -1 : 1;
    const towardsY = centred || !down ? 0 : free.y + free.height / 2 < y ? -1 : 1;
    const roomX = towardsX === 0 ? 2 * Math.min(x, 1 - x) : towardsX < 0 ? x : 1 - x;
    const roomY = towardsY === 0 ? 2 * Math.min(y, 1 - y) : towardsY < 0 ? y : 1 - y;
    width = clamp(width, MIN_SIZE * Math.max(1, ratio), Math.min(roomX, roomY * ratio));
    const height = width / ratio;
    return { x: x + (towardsX - 1) * width / 2, y: y + (towardsY - 1) * height / 2, width, height };
}

/** A box carried along when the rectangle around its group goes from one place and size to another. */
export function carried(box, from, to) {
    const sx = to.width / from.width, sy = to.height / from.height;
    return {
        ...box,
        x: to.x + (box.x - from.x) * sx,
        y: to.y + (box.y - from.y) * sy,
        width: box.width * sx,
        height: box.height * sy,
    };
}

/** Whether a point lies in a box, edges included, and in its shape. */
export function holds(rect, point) {
    return holdsPoint(rect, point) && shapeHolds(rect, point);
}

function holdsPoint(rect, point) {
    return point.x >= rect.x && point.x <= right(rect) && point.y >= rect.y && point.y <= bottom(rect);
}

/** Whether two rectangles share any area. */
export function touches(a, b) {
    return a.x < right(b) && b.x < right(a) && a.y < bottom(b) && b.y < bottom(a);
}

/** Where a handle of a rectangle is, {x, y}. */
export function handlePoint(rect, handle) {
    const x = handle.includes("w") ? rect.x : handle.includes("e") ? right(rect) : rect.x + rect.width / 2;
    const y = handle.includes("n") ? rect.y : handle.includes("s") ? bottom(rect) : rect.y + rect.height / 2;
    return { x, y };
}

/** The handle within `reach` {x, y} of a point, or null. Corners come before sides where both are near. */
export function handleAt(rect, point, reach) {
    let best = null, least = Infinity;
    for (const handle of HANDLES) {
        const at = handlePoint(rect, handle);
        const dx = Math.abs(at.x - point.x) / reach.x, dy = Math.abs(at.y - point.y) / reach.y;
        const distance = Math.hypot(dx, dy) + (handle.length === 1 ? 0.001 : 0);
        if (dx <= 1 && dy <= 1 && distance < least) [best, least] = [handle, distance];
    }
    return best;
}

/**
 * Lines a box can snap to, {x: [...], y: [...]}: the image's edges, middle and thirds, the edges and middles of other
 * boxes, and every `grid`-th pixel if grid is above 0. `size`: pixels {width, height}.
 */
export function snapLines(others, grid, size) {
    const lines = { x: [0, 1 / 3, 0.5, 2 / 3, 1], y: [0, 1 / 3, 0.5, 2 / 3, 1] };
    for (const box of others) {
        lines.x.push(box.x, box.x + box.width / 2, right(box));
        lines.y.push(box.y, box.y + box.height / 2, bottom(box));
    }
    if (grid > 0) {
        for (let at = grid; at < size.width; at += grid) lines.x.push(at / size.width);
        for (let at = grid; at < size.height; at += grid) lines.y.push(at / size.height);
    }
    return lines;
}

/** How far to shift so that one of `values` meets one of `lines` within `reach`, and that line: {by, line} or null. */
export function snap(values, lines, reach) {
    let found = null;
    for (const value of values) {
        for (const line of lines) {
            const by = line - value;
            if (Math.abs(by) <= reach && (!found || Math.abs(by) < Math.abs(found.by) - 1e-9)) found = { by, line };
        }
    }
    return found;
}

/** A rectangle moved onto the nearest lines: {rect, guides: {x: [line], y: [line]}}. */
export function snappedMove(rect, lines, reach) {
    const across = snap([rect.x, rect.x + rect.width / 2, right(rect)], lines.x, reach.x);
    const down = snap([rect.y, rect.y + rect.height / 2, bottom(rect)], lines.y, reach.y);
    const result = moved(rect, across?.by ?? 0, down?.by ?? 0);
    return { rect: result, guides: { x: across ? [across.line] : [], y: down ? [down.line] : [] } };
}

/** A point moved onto the nearest lines on the axes a handle drags: {point, guides}. */
export function snappedPoint(point, handle, lines, reach) {
    const across = /[we]/.test(handle) ? snap([point.x], lines.x, reach.x) : null;
    const down = /[ns]/.test(handle) ? snap([point.y], lines.y, reach.y) : null;
    return {
        point: { x: point.x + (across?.by ?? 0), y: point.y + (down?.by ?? 0) },
        guides: { x: across ? [across.line] : [], y: down ? [down.line] : [] },
    };
}

/**
 * What boxes cover: {covered, overlapped} as shares of the image, and `gaps`, rectangles that no box covers. The image
 * is cut at every edge of a box, so the numbers are exact; with other shapes it is cut into COVERAGE_CELLS each way.
 */
export function coverage(boxes) {
    if (boxes.some((box) => box.shape)) return coverageOfShapes(boxes);
    const xs = cuts(boxes.flatMap((box) => [box.x, right(box)]));
    const ys = cuts(boxes.flatMap((box) => [box.y, bottom(box)]));
    const columns = xs.length - 1, rows = ys.length - 1, stride = columns + 1;
    const change = new Int16Array((rows + 1) * stride); // a box adds 1 at its first cell and takes it away after its last
    const place = (list, value) => list.indexOf(clamp(value, 0, 1));
    for (const box of boxes) {
        const left = place(xs, box.x), far = place(xs, right(box));
        const top = place(ys, box.y), low = place(ys, bottom(box));
        change[top * stride + left] += 1;
        change[top * stride + far] -= 1;
        change[low * stride + left] -= 1;
        change[low * stride + far] += 1;
    }
    let covered = 0, overlapped = 0;
    const gaps = [], above = new Int16Array(stride);
    for (let row = 0; row < rows; row += 1) {
        let run = null, count = 0;
        const height = ys[row + 1] - ys[row];
        for (let column = 0; column < columns; column += 1) {
            above[column] += change[row * stride + column];
            count += above[column];
            const area = (xs[column + 1] - xs[column]) * height;
            if (count > 0) covered += area;
            if (count > 1) overlapped += area;
            if (count > 0) run = null;
            else if (run) run.width = xs[column + 1] - run.x;
            else gaps.push(run = { x: xs[column], y: ys[row], width: xs[column + 1] - xs[column], height });
        }
        above[columns] += change[row * stride + columns];
    }
    return { covered, overlapped, gaps };
}

function coverageOfShapes(boxes) {
    const side = COVERAGE_CELLS, most = new Float64Array(side * side), second = new Float64Array(side * side);
    for (const box of boxes) {
        sharesOf(box, side, side).forEach((share, at) => {
            second[at] = Math.max(second[at], Math.min(most[at], share));
            most[at] = Math.max(most[at], share);
        });
    }
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const gaps = [];
    for (let row = 0; row < side; row += 1) {
        let run = null;
        for (let column = 0; column < side; column += 1) {
            if (most[row * side + column] >= 0.5) run = null;
            else if (run) run.width += 1 / side;
            else gaps.push(run = { x: column / side, y: row / side, width: 1 / side, height: 1 / side });
        }
    }
    return { covered: mean(most), overlapped: mean(second), gaps };
}

const remembered = new WeakMap(); // box -> "columns x rows" -> its shares: an edit changes few of the boxes

function sharesOf(box, columns, rows) {
    if (!remembered.has(box)) remembered.set(box, new Map());
    const known = remembered.get(box), key = `${columns} x ${rows}`;
    if (!known.has(key)) {
        if (known.size > 3) known.clear(); // another size of the picture
        known.set(key, Float32Array.from(rasterized(box, columns, rows)));
    }
    return known.get(key);
}

function cuts(values) {
    return [...new Set([0, 1, ...values.map((value) => clamp(value, 0, 1))])].sort((a, b) => a - b);
}

/** The attention grids, as [columns, rows], of which a box fills no cell by half: it is too small to be noticed there. */
export function unfilledGrids(box, { width, height }) {
    const grids = ATTENTION_CELLS.map((cell) => [Math.ceil(width / cell), Math.ceil(height / cell)]);
    if (box.shape) return grids.filter((grid) => !sharesOf(box, ...grid).some((share) => share >= 0.5));
    return grids.filter(
        ([columns, rows]) => fullest(box.x, right(box), columns) * fullest(box.y, bottom(box), rows) < 0.5,
    );
}

/** The largest share of one of `count` even cells that an interval covers. */
function fullest(low, high, count) {
    const first = Math.min(count - 1, Math.floor(low * count));
    let most = 0;
    for (let cell = first; cell < Math.min(count, first + 3); cell += 1) {
        most = Math.max(most, Math.min(high * count, cell + 1) - Math.max(low * count, cell));
    }
    return most;
}
