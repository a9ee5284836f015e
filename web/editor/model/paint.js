// Painting: cells over the whole image while the brush is down, cut out into a region's box when it is lifted.

import { FULL, MAX_CELLS, MAX_RUNS, rasterized, runsOf } from "./shapes.js";

/** Cells over an image of `size` pixels: square, MAX_CELLS on its longer side; painted with what `box` covers, if any. */
export function newPainting(size, box = null) {
    const scale = MAX_CELLS / Math.max(size.width, size.height);
    const columns = Math.max(1, Math.round(size.width * scale)), rows = Math.max(1, Math.round(size.height * scale));
    const cells = new Uint8Array(columns * rows);
    if (box) rasterized(box, columns, rows).forEach((share, at) => {
        cells[at] = Math.round(share * FULL);
    });
    return { columns, rows, cells };
}

/**
 * Draw along a line from `a` to `b`, points {x, y} of the image, in place. `brush` = {radius: fraction of the image's
 * longer side, softness: 0 = a hard edge, 1 = fading from the middle, erases}. Within one stroke nothing adds up.
 */
export function stroke({ columns, rows, cells }, a, b, { radius, softness, erases }) {
    const reach = Math.max(0.5, radius * Math.max(columns, rows)), fade = Math.max(1, softness * reach);
    const [ax, ay, bx, by] = [a.x * columns, a.y * rows, b.x * columns, b.y * rows];
    const across = bx - ax, down = by - ay, length = across * across + down * down;
    const edge = reach + 1;
    const left = Math.max(0, Math.floor(Math.min(ax, bx) - edge)), far = Math.min(columns, Math.ceil(Math.max(ax, bx) + edge));
    const top = Math.max(0, Math.floor(Math.min(ay, by) - edge)), low = Math.min(rows, Math.ceil(Math.max(ay, by) + edge));
    for (let row = top; row < low; row += 1) {
        for (let column = left; column < far; column += 1) {
            const x = column + 0.5 - ax, y = row + 0.5 - ay;
            const share = length ? Math.max(0, Math.min(1, (x * across + y * down) / length)) : 0;
            const away = Math.hypot(x - share * across, y - share * down);
            const level = Math.round(FULL * Math.max(0, Math.min(1, (reach - away) / fade + (fade === 1 ? 0.5 : 0))));
            const at = row * columns + column;
            cells[at] = erases ? Math.min(cells[at], FULL - level) : Math.max(cells[at], level);
        }
    }
}

/** The box around what is painted, with its shape; null where nothing is. What is too intricate becomes coarser. */
export function cutOut(painting) {
    for (let factor = 1; ; factor *= 2) {
        const made = trimmed(coarser(painting, factor));
        if (!made || made.shape.runs.length <= MAX_RUNS) return made;
    }
}

function trimmed({ columns, rows, cells }) {
    let left = columns, far = -1, top = rows, low = -1;
    for (let row = 0; row < rows; row += 1) {
        for (let column = 0; column < columns; column += 1) {
            if (!cells[row * columns + column]) continue;
            left = Math.min(left, column);
            far = Math.max(far, column);
            top = Math.min(top, row);
            low = row;
        }
    }
    if (far < 0) return null;
    const width = far - left + 1, height = low - top + 1, part = new Uint8Array(width * height);
    for (let row = 0; row < height; row += 1) {
        const from = (top + row) * columns + left;
        part.set(cells.subarray(from, from + width), row * width);
    }
    return {
        x: left / columns, y: top / rows, width: width / columns, height: height / rows,
        shape: { kind: "paint", width, height, runs: runsOf(part) },
    };
}

/** A painting of fewer cells, each way by a factor: the means of what lies in each. */
function coarser(painting, factor) {
    if (factor === 1) return painting;
    const { columns, rows, cells } = painting;
    const few = { columns: Math.ceil(columns / factor), rows: Math.ceil(rows / factor) };
    const result = new Uint8Array(few.columns * few.rows);
    for (let row = 0; row < few.rows; row += 1) {
        const down = span(row, few.rows, rows);
        for (let column = 0; column < few.columns; column += 1) {
            const across = span(column, few.columns, columns);
            let sum = 0, size = 0;
            for (const [y, high] of down) {
                for (const [x, wide] of across) {
                    sum += cells[y * columns + x] * wide * high;
                    size += wide * high;
                }
            }
            result[row * few.columns + column] = rounded(sum / size);
        }
    }
    return { ...few, cells: result };
}

/** [cell, share] of the cells of a fine row that lie in one cell of a coarse row. */
function span(at, few, many) {
    const low = (at * many) / few, high = ((at + 1) * many) / few, found = [];
    for (let cell = Math.floor(low); cell < Math.min(many, Math.ceil(high)); cell += 1) {
        found.push([cell, Math.min(high, cell + 1) - Math.max(low, cell)]);
    }
    return found;
}

/** To the nearest, halves to the even one: many means are halves, and all of them up would be seen. */
function rounded(value) {
    const low = Math.floor(value);
    return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}
