// Draws a scene onto a 2D context and keeps nothing. Words reach the canvas through fillText only.

import { option } from "../model/drawing.js";
import { bottom, bounds, HANDLES, handlePoint, right } from "../model/geometry.js";
import { boxColor, inkOn } from "../model/colors.js";
import { cornersOf } from "../model/shapes.js";
import { drawCorner, drawFreehand, drawStencil, HANDLE, lineColor, onCanvas, trace } from "./outlines.js";
import { remembering } from "./remembering.js";
import { stencilOf } from "./stencils.js";

export const MARGIN = 8; // CSS pixels around the image, so that handles at its edge can be grabbed
const FONT = "ui-sans-serif, system-ui, sans-serif";
const LABEL_ROOM = 96; // CSS pixels a label may take even where its box is narrower
const LETTERS = 80; // of a label, before it is cut to fit

export const THEMES = {
    dark: { paper: "#26272b", line: "#3d3f45", veil: "38,39,43", ink: "#e8e8ea", quiet: "#8d9099", accent: "#5fb2ff" },
    light: { paper: "#ffffff", line: "#d9dbe0", veil: "255,255,255", ink: "#1c1d20", quiet: "#6b6e76", accent: "#0b63c4" },
};

/** Where the image lies on a canvas of `width` x `height` CSS pixels: as large as fits, in the middle. */
export function imageArea(width, height, image) {
    const room = { width: Math.max(1, width - 2 * MARGIN), height: Math.max(1, height - 2 * MARGIN) };
    const scale = Math.min(room.width / image.width, room.height / image.height);
    const across = Math.max(1, image.width * scale), down = Math.max(1, image.height * scale);
    return { x: (width - across) / 2, y: (height - down) / 2, width: across, height: down };
}

/**
 * scene = { boxes, selection, size: image pixels, canvas: CSS pixels, area: where the image lies on it, ratio: device
 *   pixels per CSS pixel, theme, picture, opacity, pins: Map id -> {image, x, y, width, height}, grid, gaps, flags:
 *   Map id -> text of a warning, draft, marquee, guides, hover, handles: whether they are shown, freehand: what
 *   Freehand.scene says }
 */
export function drawScene(context, scene) {
    const { area } = scene;
    context.setTransform(scene.ratio, 0, 0, scene.ratio, 0, 0);
    context.clearRect(0, 0, scene.canvas.width, scene.canvas.height);
    drawPaper(context, scene, area);
    drawPins(context, scene);
    const frames = scene.boxes.map((box) => frameOf(box, area, scene.ratio));
    scene.boxes.forEach((box, index) => {
        if (!option(box, "hidden")) drawBox(context, scene, box, index, frames[index]);
    });
    if (scene.gaps) drawGaps(context, scene, area);
    scene.boxes.forEach((box, index) => {
        if (!option(box, "hidden")) drawLabel(context, scene, box, index, frames[index]);
    });
    drawSelection(context, scene, area);
    drawGuides(context, scene, area);
    for (const rect of [scene.draft, scene.marquee]) {
        if (rect) drawRubber(context, scene, rect.shape, frameOf(rect, area, scene.ratio));
    }
    drawFreehand(context, scene);
}

/** A rectangle in fractions as one in CSS pixels, its edges on whole device pixels. */
export function frameOf(rect, area, ratio = 1) {
    const snap = (value) => Math.round(value * ratio) / ratio;
    const x = snap(area.x + rect.x * area.width), y = snap(area.y + rect.y * area.height);
    return { x, y, width: snap(area.x + right(rect) * area.width) - x, height: snap(area.y + bottom(rect) * area.height) - y };
}

function drawPaper(context, { theme, picture, opacity, grid, size }, area) {
    context.fillStyle = theme.paper;
    context.fillRect(area.x, area.y, area.width, area.height);
    if (picture && opacity > 0) {
        context.globalAlpha = opacity;
        context.drawImage(picture, area.x, area.y, area.width, area.height);
        context.globalAlpha = 1;
    }
    if (grid > 0 && (grid / size.width) * area.width >= 4) drawGrid(context, theme, grid, size, area);
    context.strokeStyle = theme.line;
    context.lineWidth = 1;
    context.strokeRect(area.x - 0.5, area.y - 0.5, area.width + 1, area.height + 1);
}

/** What was pinned lies over the picture, except under the pointer: there the new one can be compared. */
function drawPins(context, { boxes, pins, opacity, hover, area, ratio, theme }) {
    for (const { id } of boxes) {
        if (id === hover || !pins.has(id)) continue;
        const { image, ...rect } = pins.get(id), frame = frameOf(rect, area, ratio);
        context.fillStyle = theme.paper;
        context.fillRect(frame.x, frame.y, frame.width, frame.height);
        context.globalAlpha = opacity;
        context.drawImage(image, frame.x, frame.y, frame.width, frame.height);
        context.globalAlpha = 1;
    }
}

function drawGrid(context, theme, grid, size, area) {
    context.beginPath();
    for (let at = grid; at < size.width; at += grid) {
        const x = Math.round(area.x + (at / size.width) * area.width) + 0.5;
        context.moveTo(x, area.y);
        context.lineTo(x, area.y + area.height);
    }
    for (let at = grid; at < size.height; at += grid) {
        const y = Math.round(area.y + (at / size.height) * area.height) + 0.5;
        context.moveTo(area.x, y);
        context.lineTo(area.x + area.width, y);
    }
    context.globalAlpha = 0.5;
    context.strokeStyle = theme.line;
    context.lineWidth = 1;
    context.stroke();
    context.globalAlpha = 1;
}

/** A veil of paper first, so that a box dims what it lies on: the order can be seen. */
function drawBox(context, scene, box, index, frame) {
    const { theme, picture, selection, hover } = scene;
    const on = option(box, "enabled"), strong = selection.includes(box.id) || hover === box.id;
    const color = boxColor(box, index), line = lineColor(`${color} ${theme.paper}`);
    const opacity = (on ? 0.16 : 0.04) + (strong ? 0.1 : 0) + (on ? 0.14 * option(box, "strength") : 0);
    if (scene.freehand?.painting?.target === box.id) return; // drawn as it is painted
    if (box.shape?.kind === "paint") {
        drawStencil(context, stencilOf(box.shape, line), frame, opacity, on ? 1 : 0.55);
        return;
    }
    context.fillStyle = `rgba(${theme.veil},${on ? (picture ? 0.12 : 0.5) : 0})`;
    trace(context, box.shape, frame);
    context.fill("evenodd");
    context.globalAlpha = opacity;
    context.fillStyle = color;
    context.fill("evenodd");
    context.globalAlpha = on ? 1 : 0.55;
    if (!on) context.setLineDash([5, 4]);
    context.strokeStyle = `rgba(${theme.veil},0.8)`;
    context.lineWidth = 4;
    context.stroke();
    context.strokeStyle = line;
    context.lineWidth = 2;
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
}

function drawLabel(context, { theme, flags, editing, area, canvas }, box, index, frame) {
    if (editing === box.id) return;
    const color = boxColor(box, index), letters = ink(color), flag = flags.get(box.id);
    const size = 12, height = 18, pad = 5;
    context.font = `600 ${size}px ${FONT}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const room = Math.max(frame.width, LABEL_ROOM) - (flag ? 16 : 0) - 2 * pad;
    const words = labelWords(box), number = `${index + 1}`, least = Math.floor(room);
    const shown = label(`${number} ${least} ${words}`, context, number, words, least);
    const width = shown.width + 2 * pad + (flag ? 15 : 0);
    const far = Math.min(area.x + area.width, canvas.width), top = Math.min(0, frame.y + frame.height - height);
    const x = Math.max(area.x, 0, Math.min(frame.x, far - width));
    const above = frame.height < height + 8 && frame.y - height >= 0;
    const y = above ? frame.y - height : Math.max(frame.y, top);
    context.globalAlpha = option(box, "enabled") ? 1 : 0.6;
    context.fillStyle = color;
    context.fillRect(x, y, width, height);
    context.fillStyle = letters;
    context.fillText(shown.text, x + pad, y + height / 2 + 0.5);
    if (flag) drawFlag(context, x + width - 11, y + height / 2, letters, color);
    if (option(box, "locked")) drawLock(context, frame.x + frame.width - 14, frame.y + 6, theme.ink);
    context.globalAlpha = 1;
}

function labelWords(box) {
    const strength = option(box, "strength");
    const words = box.phrase.slice(0, LETTERS).replace(/\s+/gu, " ").trim();
    return strength === 1 ? words : `${words} · ${Math.round(strength * 100)} %`;
}

const ink = remembering(inkOn);
const label = remembering((key, context, number, words, room) => {
    const text = fitted(context, number, words, room);
    return { text, width: context.measureText(text).width };
});

/** "3 red heart", the words cut to fit into `room` pixels; the number always stays. */
function fitted(context, number, words, room) {
    if (!words) return number;
    const whole = `${number}  ${words}`;
    if (context.measureText(whole).width <= room) return whole;
    let low = 0, high = words.length;
    while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (context.measureText(`${number}  ${words.slice(0, middle)}…`).width <= room) low = middle;
        else high = middle - 1;
    }
    return low > 0 ? `${number}  ${words.slice(0, low).trimEnd()}…` : number;
}

function drawFlag(context, x, y, ink, color) {
    context.fillStyle = ink;
    context.beginPath();
    context.arc(x, y, 6, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = color;
    context.fillRect(x - 1, y - 4, 2, 5);
    context.fillRect(x - 1, y + 2, 2, 2);
}

function drawLock(context, x, y, color) {
    context.strokeStyle = color;
    context.fillStyle = color;
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x + 4, y + 4, 2.6, Math.PI, 0);
    context.stroke();
    context.fillRect(x, y + 4, 8, 6);
}

/** Diagonal lines over what no box covers. */
function drawGaps(context, { gaps, theme, ratio }, area) {
    context.save();
    context.beginPath();
    for (const gap of gaps) {
        const frame = frameOf(gap, area, ratio);
        context.rect(frame.x, frame.y, frame.width, frame.height);
    }
    context.clip();
    context.beginPath();
    for (let at = -area.height; at < area.width; at += 9) {
        context.moveTo(area.x + at, area.y + area.height);
        context.lineTo(area.x + at + area.height, area.y);
    }
    context.globalAlpha = 0.55;
    context.strokeStyle = theme.quiet;
    context.lineWidth = 1;
    context.stroke();
    context.restore();
}

function drawSelection(context, { boxes, selection, theme, ratio, handles = true }, area) {
    const chosen = boxes.filter((box) => selection.includes(box.id) && !option(box, "hidden"));
    if (!chosen.length) return;
    context.strokeStyle = theme.ink;
    context.lineWidth = 1;
    for (const box of chosen) {
        const frame = frameOf(box, area, ratio);
        context.strokeRect(frame.x - 2.5, frame.y - 2.5, frame.width + 5, frame.height + 5);
    }
    const free = chosen.filter((box) => !option(box, "locked"));
    if (!free.length || !handles) return;
    const rect = bounds(free);
    if (free.length > 1) {
        const frame = frameOf(rect, area, ratio);
        context.setLineDash([3, 3]);
        context.strokeRect(frame.x - 0.5, frame.y - 0.5, frame.width + 1, frame.height + 1);
        context.setLineDash([]);
    }
    for (const handle of HANDLES) {
        const at = handlePoint(rect, handle);
        const x = Math.round(area.x + at.x * area.width), y = Math.round(area.y + at.y * area.height);
        context.fillStyle = "#ffffff";
        context.fillRect(x - HANDLE / 2, y - HANDLE / 2, HANDLE, HANDLE);
        context.strokeStyle = "#1c1d20";
        context.strokeRect(x - HANDLE / 2, y - HANDLE / 2, HANDLE, HANDLE);
    }
    if (free.length > 1 || free[0].shape?.kind !== "polygon") return;
    for (const corner of cornersOf(free[0])) drawCorner(context, onCanvas(corner, area));
}

function drawGuides(context, { guides, theme }, area) {
    if (!guides) return;
    context.strokeStyle = theme.accent;
    context.lineWidth = 1;
    context.beginPath();
    for (const at of guides.x) {
        const x = Math.round(area.x + at * area.width) + 0.5;
        context.moveTo(x, area.y - 6);
        context.lineTo(x, area.y + area.height + 6);
    }
    for (const at of guides.y) {
        const y = Math.round(area.y + at * area.height) + 0.5;
        context.moveTo(area.x - 6, y);
        context.lineTo(area.x + area.width + 6, y);
    }
    context.stroke();
}

function drawRubber(context, { theme }, shape, frame) {
    trace(context, shape, { x: frame.x + 0.5, y: frame.y + 0.5, width: frame.width - 1, height: frame.height - 1 });
    context.fillStyle = theme.accent;
    context.globalAlpha = 0.12;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = theme.accent;
    context.lineWidth = 1;
    context.stroke();
}
