// Outlines of shapes, and what is drawn by hand right now.

import { boxColor, lineOn } from "../model/colors.js";
import { pointsOf } from "../model/shapes.js";
import { remembering } from "./remembering.js";
import { stencilOfCells } from "./stencils.js";

export const HANDLE = 9; // CSS pixels, side of a handle

/** A box's colour as a line that can be seen: "colour background". */
export const lineColor = remembering((key) => lineOn(...key.split(" ")));

/** Lay the outline of a shape in its frame as the path; undefined = a box. */
export function trace(context, shape, { x, y, width, height }) {
    context.beginPath();
    if (!shape) context.rect(x, y, width, height);
    else if (shape.kind === "ellipse") context.ellipse(x + width / 2, y + height / 2, width / 2, height / 2, 0, 0, 2 * Math.PI);
    else {
        pointsOf(shape).forEach((point) => context.lineTo(x + point.x * width, y + point.y * height));
        context.closePath();
    }
}

/** Paint in its frame: what it covers, and its edge where there is one. */
export function drawStencil(context, { fill, edge }, frame, opacity, line) {
    context.globalAlpha = Math.min(1, 1.6 * opacity); // without a veil beneath it
    context.drawImage(fill, frame.x, frame.y, frame.width, frame.height);
    context.globalAlpha = line;
    if (edge) context.drawImage(edge, frame.x, frame.y, frame.width, frame.height);
    context.globalAlpha = 1;
}

/** What is drawn by hand right now: a polygon's corners, paint, and the brush over the image. */
export function drawFreehand(context, { freehand, boxes, theme, area }) {
    if (!freehand) return;
    const { outline: line, painting, brush } = freehand;
    if (painting) {
        const index = boxes.findIndex((box) => box.id === painting.target), at = index < 0 ? painting.color : index;
        const ink = lineColor(`${boxColor(boxes[index] ?? {}, at)} ${theme.paper}`);
        drawStencil(context, stencilOfCells(painting, ink), area, 0.4, 1);
    }
    if (line) drawOutline(context, line.points.map((point) => onCanvas(point, area)), theme);
    if (!brush) return;
    const { x, y } = onCanvas(brush, area), radius = brush.radius * Math.max(area.width, area.height);
    for (const [color, width] of [[`rgba(${theme.veil},0.8)`, 3], [theme.ink, 1]]) {
        context.beginPath();
        context.arc(x, y, radius, 0, 2 * Math.PI);
        context.strokeStyle = color;
        context.lineWidth = width;
        context.stroke();
    }
}

/** A point of the image on the canvas. */
export function onCanvas(point, area) {
    return { x: area.x + point.x * area.width, y: area.y + point.y * area.height };
}

function drawOutline(context, points, theme) {
    for (const [color, width] of [[`rgba(${theme.veil},0.8)`, 4], [theme.accent, 2]]) {
        context.beginPath();
        points.forEach(({ x, y }) => context.lineTo(x, y));
        context.strokeStyle = color;
        context.lineWidth = width;
        context.stroke();
    }
    const [first] = points;
    drawCorner(context, first);
}

/** A corner that can be dragged. */
export function drawCorner(context, { x, y }) {
    context.beginPath();
    context.arc(x, y, HANDLE / 2, 0, 2 * Math.PI);
    context.fillStyle = "#ffffff";
    context.fill();
    context.lineWidth = 1;
    context.strokeStyle = "#1c1d20";
    context.stroke();
}
