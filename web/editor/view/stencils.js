// Paint as pictures: one of what is covered, one of its edge, in a colour, to be stretched over its box.

import { cellsOf, FULL } from "../model/shapes.js";

const EDGE = FULL / 2; // a cell of at least this level may be on the edge

const made = new WeakMap(); // shape -> what was made of it last
const live = new WeakMap(); // cells that are being painted -> their canvas, drawn anew for every frame

/** {fill, edge}: canvases of the size of a paint shape's cells, in a colour "#rrggbb". */
export function stencilOf(shape, color) {
    const kept = made.get(shape);
    if (kept?.color === color) return kept;
    const { width, height } = shape, cells = cellsOf(shape);
    const level = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : cells[y * width + x]);
    const isEdge = (at) => {
        if (cells[at] < EDGE) return false;
        const x = at % width, y = (at - x) / width;
        return Math.min(level(x - 1, y), level(x + 1, y), level(x, y - 1), level(x, y + 1)) < EDGE;
    };
    const stencil = {
        color, fill: filled(newCanvas(width, height), color, (at) => cells[at] / FULL),
        edge: filled(newCanvas(width, height), color, (at) => (isEdge(at) ? 1 : 0)),
    };
    made.set(shape, stencil);
    return stencil;
}

/** The same, without an edge, for cells that are still being painted. */
export function stencilOfCells({ cells, columns, rows }, color) {
    if (!live.has(cells)) live.set(cells, newCanvas(columns, rows));
    return { fill: filled(live.get(cells), color, (at) => cells[at] / FULL), edge: null };
}

function newCanvas(width, height) {
    return Object.assign(document.createElement("canvas"), { width, height });
}

function filled(canvas, color, opacity) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    const context = canvas.getContext("2d"), data = context.createImageData(canvas.width, canvas.height), bytes = data.data;
    for (let at = 0; at < bytes.length / 4; at += 1) {
        bytes[4 * at] = red;
        bytes[4 * at + 1] = green;
        bytes[4 * at + 2] = blue;
        bytes[4 * at + 3] = Math.round(255 * opacity(at));
    }
    context.putImageData(data, 0, 0);
    return canvas;
}
