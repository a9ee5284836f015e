// Shapes of regions that are not boxes, each drawn inside its box: {kind: "ellipse"}, {kind: "polygon", points} and
// {kind: "paint", width, height, runs}. Since a shape lives in its box, moving and resizing never touch it.
// nodes/parts/shapes.py reads and covers the same; tests/golden/shapes.json holds both to it.

export const KINDS = ["ellipse", "polygon", "paint"];
export const STEPS = 10_000; // a polygon's points are whole numbers from 0 to this: across its box and down, in turn
export const MIN_POINTS = 3, MAX_POINTS = 256;
export const MAX_CELLS = 512; // of paint, each way
export const MAX_RUNS = 13_000; // characters of runs: as many as there may be boxes are still a text that can be read
export const FULL = 51; // the level of a cell that is wholly painted
const LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"; // of the levels 0 to FULL
const RUN = /([a-zA-Z])([1-9]\d{0,5})?/y;
const LINES = 1024, MIN_LINES = 4; // scan lines over the image, and at least through a cell
const HIT = 0.25; // how strongly a place must be painted to be part of the shape for the pointer

// --- reading ----------------------------------------------------------------------------------------------------------

/** What is wrong with a shape from outside, as a key of words.js, or "". */
export function shapeProblem(shape) {
    if (typeof shape !== "object" || shape === null || Array.isArray(shape) || !KINDS.includes(shape.kind)) return "boxShape";
    if (shape.kind === "polygon") return arePoints(shape.points) ? "" : "boxPoints";
    return shape.kind === "paint" && !cellsOf(shape) ? "boxPaint" : "";
}

function arePoints(points) {
    const count = Array.isArray(points) ? points.length : 0;
    if (count % 2 || count < 2 * MIN_POINTS || count > 2 * MAX_POINTS) return false;
    return points.every((value) => Number.isInteger(value) && value >= 0 && value <= STEPS);
}

const known = new WeakMap(); // paint -> its levels, or null

/** The levels of paint's cells, 0 to FULL, row by row; null where the numbers do not fit, or nothing is painted. */
export function cellsOf(shape) {
    if (!known.has(shape)) known.set(shape, readCells(shape));
    return known.get(shape);
}

function readCells({ width, height, runs }) {
    const good = (side) => Number.isInteger(side) && side >= 1 && side <= MAX_CELLS;
    if (!good(width) || !good(height) || typeof runs !== "string" || runs.length > MAX_RUNS) return null;
    const cells = new Uint8Array(width * height);
    let at = 0;
    RUN.lastIndex = 0;
    for (let start = 0; start < runs.length; start = RUN.lastIndex) {
        const [, letter, count] = RUN.exec(runs) ?? [];
        const end = at + Number(count ?? 1);
        if (!letter || end > cells.length) return null;
        cells.fill(LETTERS.indexOf(letter), at, end);
        at = end;
    }
    return at === cells.length && cells.some(Boolean) ? cells : null;
}

/** The runs of cells' levels: a letter for the level, then how many cells where there is more than one. */
export function runsOf(cells) {
    const parts = [];
    for (let at = 0; at < cells.length;) {
        let end = at + 1;
        while (end < cells.length && cells[end] === cells[at]) end += 1;
        parts.push(LETTERS[cells[at]], end - at > 1 ? end - at : "");
        at = end;
    }
    return parts.join("");
}

/** The points of a polygon in its box, [{x, y}] from 0 to 1. */
export function pointsOf({ points }) {
    const corner = (_, index) => ({ x: points[2 * index] / STEPS, y: points[2 * index + 1] / STEPS });
    return Array.from({ length: points.length / 2 }, corner);
}

/** The corners of a box's polygon, [{x, y}] in fractions of the image. */
export function cornersOf({ x, y, width, height, shape }) {
    return pointsOf(shape).map((point) => ({ x: x + point.x * width, y: y + point.y * height }));
}

// --- asking -----------------------------------------------------------------------------------------------------------

/** Whether a point {x, y} of the image, inside the box, lies in the box's shape. */
export function shapeHolds({ x, y, width, height, shape }, point) {
    if (!shape) return true;
    const across = (point.x - x) / width, down = (point.y - y) / height;
    if (shape.kind === "ellipse") return (2 * across - 1) ** 2 + (2 * down - 1) ** 2 <= 1;
    if (shape.kind === "polygon") return isBetween(pointsOf(shape), { x: across, y: down });
    const at = (share, count) => Math.min(count - 1, Math.floor(share * count));
    return cellsOf(shape)[at(down, shape.height) * shape.width + at(across, shape.width)] >= HIT * FULL;
}

function isBetween(points, point) {
    return points.reduce((inside, a, index) => {
        const b = points[(index + 1) % points.length];
        const crosses = (a.y <= point.y) !== (b.y <= point.y) && a.x + ((point.y - a.y) / (b.y - a.y)) * (b.x - a.x) < point.x;
        return crosses ? !inside : inside;
    }, false);
}

/**
 * How much of each cell of a grid over the image a box's shape covers, 0 to 1, row by row. Exact for boxes and paint;
 * ellipses and polygons are looked at along LINES lines, exactly across. Where a polygon crosses itself, even-odd.
 */
export function rasterized(box, columns, rows) {
    if (!box.shape) {
        return product(pieces(1, box.x, box.width, columns), pieces(1, box.y, box.height, rows), [1], columns, rows, 1);
    }
    if (box.shape.kind === "paint") {
        const { width, height } = box.shape, levels = cellsOf(box.shape);
        const across = pieces(width, box.x, box.width, columns), down = pieces(height, box.y, box.height, rows);
        return product(across, down, levels, columns, rows, FULL);
    }
    return scanned(box, columns, rows);
}

/** For each of `count` parts of a span: [cell, share of that cell's length], over a grid from 0 to 1. */
function pieces(count, start, length, cells) {
    return Array.from({ length: count }, (_, part) => {
        const low = Math.max(0, (start + (length * part) / count) * cells);
        const high = Math.min(cells, (start + (length * (part + 1)) / count) * cells);
        const found = [];
        for (let cell = Math.floor(low); cell < high; cell += 1) {
            found.push([cell, Math.min(high, cell + 1) - Math.max(low, cell)]);
        }
        return found;
    });
}

function product(across, down, levels, columns, rows, full) {
    const result = new Float64Array(columns * rows), line = new Float64Array(columns);
    down.forEach((targets, row) => {
        line.fill(0);
        across.forEach((shares, column) => {
            const level = levels[row * across.length + column];
            if (level) for (const [cell, share] of shares) line[cell] += share * level / full;
        });
        for (const [target, share] of targets) {
            for (let column = 0; column < columns; column += 1) result[target * columns + column] += share * line[column];
        }
    });
    return result.map((value) => Math.min(1, value));
}

/** Along a line the shape begins at every other crossing and ends at the next: sums of ramps, added up to the right. */
function scanned(box, columns, rows) {
    const result = new Float64Array(columns * rows), change = new Float64Array(columns + 2);
    const lines = Math.max(MIN_LINES, Math.ceil(LINES / rows));
    for (let row = 0; row < rows; row += 1) {
        change.fill(0);
        for (let line = 0; line < lines; line += 1) {
            const y = (row + (line + 0.5) / lines) / rows;
            crossings(box, y).forEach((x, index) => {
                const at = Math.max(0, Math.min(columns, x * columns)), cell = Math.floor(at), sign = index % 2 ? -1 : 1;
                change[cell] += sign * (cell + 1 - at) / lines;
                change[cell + 1] += sign * (at - cell) / lines;
            });
        }
        let sum = 0;
        for (let column = 0; column < columns; column += 1) {
            sum += change[column];
            result[row * columns + column] = Math.max(0, Math.min(1, sum));
        }
    }
    return result;
}

/** Where a horizontal line of the image crosses the outline, from left to right, in fractions of the image. */
function crossings({ x, y, width, height, shape }, line) {
    const down = (line - y) / height;
    if (shape.kind === "ellipse") {
        const t = 2 * down - 1;
        if (!(Math.abs(t) < 1)) return [];
        const half = Math.sqrt(1 - t * t) / 2;
        return [x + (0.5 - half) * width, x + (0.5 + half) * width];
    }
    const { points } = shape, found = [];
    for (let at = 0; at < points.length; at += 2) {
        const next = (at + 2) % points.length;
        const ay = points[at + 1] / STEPS, by = points[next + 1] / STEPS;
        if ((ay <= down) === (by <= down)) continue;
        const ax = points[at] / STEPS, bx = points[next] / STEPS;
        found.push(x + (ax + ((down - ay) / (by - ay)) * (bx - ax)) * width);
    }
    return found.sort((a, b) => a - b);
}

// --- making -----------------------------------------------------------------------------------------------------------

/** A box with a polygon through points {x, y} of the image; null where they span no area, or are too few or too many. */
export function polygonOf(points, least) {
    const inside = points.map(({ x, y }) => ({ x: Math.max(0, Math.min(1, x)), y: Math.max(0, Math.min(1, y)) }));
    if (inside.length < MIN_POINTS || inside.length > MAX_POINTS) return null;
    const xs = inside.map((point) => point.x), ys = inside.map((point) => point.y);
    const x = Math.min(...xs), y = Math.min(...ys), width = Math.max(...xs) - x, height = Math.max(...ys) - y;
    if (width < least || height < least) return null;
    const whole = (value) => Math.round(value * STEPS);
    return { x, y, width, height, shape: {
        kind: "polygon", points: inside.flatMap((point) => [whole((point.x - x) / width), whole((point.y - y) / height)]),
    } };
}

/** A line drawn by hand with as few points as keep within `reach` of it (Ramer, Douglas and Peucker), MAX_POINTS at most. */
export function simplified(points, reach) {
    let result = points;
    for (let limit = reach; result.length > 2 && (limit === reach || result.length > MAX_POINTS); limit *= 1.5) {
        result = thinned(points, limit);
    }
    return result;
}

function thinned(points, reach) {
    const keep = new Set([0, points.length - 1]), open = [[0, points.length - 1]];
    while (open.length) {
        const [first, last] = open.pop();
        let most = reach, at = -1;
        for (let index = first + 1; index < last; index += 1) {
            const away = distance(points[index], points[first], points[last]);
            if (away > most) [most, at] = [away, index];
        }
        if (at < 0) continue;
        keep.add(at);
        open.push([first, at], [at, last]);
    }
    return points.filter((_, index) => keep.has(index));
}

function distance(point, a, b) {
    const across = b.x - a.x, down = b.y - a.y, length = across * across + down * down;
    const share = length ? Math.max(0, Math.min(1, ((point.x - a.x) * across + (point.y - a.y) * down) / length)) : 0;
    return Math.hypot(point.x - a.x - share * across, point.y - a.y - share * down);
}
