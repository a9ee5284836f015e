// Boxes of other programs from a text of any origin. nodes/parts/layout_import.py says the rules and reads the same:
// tests/golden/layouts.json holds both to it.

import {
    checkNumber, isObject, isShallow, MAX_BOXES, MAX_DEPTH, MAX_PHRASE, MAX_TEXT, parseDrawing, parsedJson, Problem,
    ROUNDING,
} from "./json.js";

const SLACK = 0.1; // share of the picture by which a box may reach over the edge; more means another picture
const ORDERS = {
    xyxy: "[x1, y1, x2, y2]", xywh: "[x, y, width, height]", yxyx: "[top, left, bottom, right]",
    cxcywh: "[centre x, centre y, width, height]",
};
const UNIT_WORDS = {
    pixels: "unitPixels", fractions: "unitFractions", percent: "unitPercent", thousandths: "unitThousandths",
};
const UNITS = { pixels: 0, fractions: 1, percent: 100, thousandths: 1000 };
const HINT = new RegExp(`^\\s*(?:(?:${[...Object.keys(ORDERS), ...Object.keys(UNITS)].join("|")})[\\s,:]+)+(?=[[{])`, "i");
const KEYED = [
    ["xywh", ["x", "y", "width", "height"]], ["xywh", ["x", "y", "w", "h"]], ["xyxy", ["x1", "y1", "x2", "y2"]],
    ["xyxy", ["x0", "y0", "x1", "y1"]], ["xyxy", ["xmin", "ymin", "xmax", "ymax"]],
    ["xyxy", ["x_min", "y_min", "x_max", "y_max"]], ["xyxy", ["startX", "startY", "endX", "endY"]],
    ["xyxy", ["left", "top", "right", "bottom"]], ["xywh", ["left", "top", "width", "height"]],
    ["cxcywh", ["cx", "cy", "w", "h"]], ["cxcywh", ["cx", "cy", "width", "height"]],
];
const LISTED = [
    ["box_2d", "yxyx", "thousandths"], ["bbox_2d", "xyxy", ""], ["xyxy", "xyxy", ""], ["bbox_xyxy", "xyxy", ""],
    ["xywh", "xywh", ""], ["bbox_xywh", "xywh", ""], ["bbox", "", ""], ["box", "", ""], ["bounding_box", "", ""],
    ["boundingBox", "", ""], ["location", "", ""], ["rect", "", ""],
];
const BOX_LISTS = ["boxes", "bboxes", "bounding_boxes", "locations", "elements", "objects", "detections", "items"];
const PHRASE_LISTS = ["phrases", "labels", "captions", "names", "texts"];
const COORDINATES = /^\s*cx\s*:\s*(\S+?)\s*,\s*cy\s*:\s*(\S+?)\s*,\s*w\s*:\s*(\S+?)\s*,\s*h\s*:\s*(\S+?)\s*$/;
const MAX_TABLES = 8; // places in a text, from its end, where a table may begin

/**
 * Boxes from a text of any origin: {boxes, source, order, unit, words}. `words` says how its numbers were understood:
 * {order, unit}, unit as a key of words.js; null for our own format. Throws Problem, also where it cannot be told what
 * the numbers mean. `width` and `height`: pixels of the image, unless the text says them.
 */
export function parsePasted(text, width, height) {
    if (text.length > MAX_TEXT) throw new Problem("tooLong", { count: text.length, limit: MAX_TEXT });
    const hint = HINT.exec(text.slice(0, 200))?.[0] ?? "", said = hint.toLowerCase().split(/[\s,:]+/);
    const body = text.slice(hint.length);
    const data = /^\s*[[{]/.test(body) ? parsedJson(body) : tableIn(body);
    if (isObject(data) && "regions" in data) {
        return { boxes: parseDrawing(body).boxes, source: "boxwright", order: "", unit: "", words: null };
    }
    if (isObject(data) && Array.isArray(data.layers)) return mingLayers(data.layers);
    const size = isObject(data) ? sizeIn(data, { width, height }) : { width, height };
    const { source, raws } = rawBoxes(data);
    if (!raws.length) throw new Problem("pasteEmpty");
    const order = said.find((word) => word in ORDERS), unit = said.find((word) => word in UNITS);
    for (const raw of raws) Object.assign(raw, { order: order ?? raw.order, unit: unit ?? raw.unit });
    settleUnit(raws, size);
    settleOrder(raws, size);
    const boxes = raws.map((raw, index) => importedBox(raw, size, index + 1));
    return understood(boxes, source, raws[0].order, raws[0].unit);
}

function understood(boxes, source, order, unit) {
    return { boxes, source, order, unit, words: { order: ORDERS[order], unit: UNIT_WORDS[unit] } };
}

/** The table behind the caption of a FLUX.3 prompt. */
function tableIn(text) {
    const places = [...text.matchAll(/\[\s*\{/g)].slice(-MAX_TABLES).reverse(); // a caption may hold brackets too
    for (const { index } of places) {
        let rows;
        try {
            rows = JSON.parse(text.slice(index));
        } catch {
            continue;
        }
        if (!isShallow(rows, MAX_DEPTH)) throw new Problem("tooDeep", { limit: MAX_DEPTH });
        return rows;
    }
    return parsedJson(text);
}

function mingLayers(layers) {
    checkCount(layers);
    if (!layers.length) throw new Problem("pasteEmpty");
    const boxes = layers.map((layer, index) => {
        if (!isObject(layer)) throw new Problem("pasteNotBox", { number: index + 1 });
        return { phrase: phraseOf(layer, index + 1), ...mingBox(layer.coordinates, index + 1), extra: {} };
    });
    return understood(boxes, "ming", "cxcywh", "fractions");
}

function mingBox(coordinates, number) {
    const found = typeof coordinates === "string" && coordinates.length <= 200 ? COORDINATES.exec(coordinates) : null;
    const [cx, cy, w, h] = (found?.slice(1) ?? [NaN]).map(Number);
    if (![cx, cy, w, h].every(Number.isFinite) || w <= 0 || h <= 0) throw new Problem("boxCoordinates", { number });
    const low = Math.min(cx - w / 2, cy - h / 2), high = Math.max(cx + w / 2, cy + h / 2);
    const span = (middle, length) => {
        const whole = [Math.round(length * 1000), Math.round(middle * 1000)];
        const onGrid = Math.abs(length * 1000 - whole[0]) < 1e-6 && Math.abs(middle * 1000 - whole[1]) < 1e-6;
        const start = onGrid ? whole[1] - Math.floor(whole[0] / 2) : (middle - length / 2) * 1000;
        const from = Math.max(0, start), to = Math.min(1000, start + (onGrid ? whole[0] : length * 1000));
        return [from / 1000, (to - from) / 1000];
    };
    const [x, width] = span(cx, w), [y, height] = span(cy, h);
    if (low < -0.02 || high > 1.02 || width <= 0 || height <= 0) throw new Problem("boxCoordinates", { number });
    return { x, y, width, height };
}

/** The picture's size where the text says it: beside its list of boxes, or as COCO's one image. */
function sizeIn(data, size) {
    const images = data.images;
    const holder = Array.isArray(images) && images.length === 1 && isObject(images[0]) ? images[0]
        : [...BOX_LISTS, "annotations"].some((key) => Array.isArray(data[key])) ? data : {};
    const good = [holder.width, holder.height].every((side) => Number.isInteger(side) && side >= 1 && side <= 65536);
    return good ? { width: holder.width, height: holder.height } : size;
}

function checkCount(list) {
    if (list.length > MAX_BOXES) throw new Problem("tooMany", { count: list.length, limit: MAX_BOXES });
}

/** What was found in JSON data: {source, raws: [{numbers, order, unit, phrase}]}; "" = not said. */
function rawBoxes(data) {
    let list = data;
    if (isObject(data)) {
        if (isObject(data.compositional_deconstruction)) {
            const { elements } = data.compositional_deconstruction;
            const isPlaced = (each) => !isObject(each) || (each.bbox ?? null) !== null;
            const placed = (Array.isArray(elements) ? elements : []).filter(isPlaced);
            checkCount(placed);
            return { source: "ideogram", raws: placed.map((each, index) => rawBox(each, index + 1)) };
        }
        if (Array.isArray(data.annotations)) return { source: "coco", raws: cocoBoxes(data) };
        const boxes = BOX_LISTS.map((key) => data[key]).find(Array.isArray);
        const phrases = PHRASE_LISTS.map((key) => data[key]).find(Array.isArray);
        if (boxes && phrases && phrases.length !== boxes.length) {
            throw new Problem("pastePhrases", { count: phrases.length, boxes: boxes.length });
        }
        if (boxes) return rawBoxes(phrases ? boxes.map((box, index) => [phrases[index], box]) : boxes);
        list = [data];
    }
    if (!Array.isArray(list)) throw new Problem("pasteNotBox", { number: 1 });
    if (isFour(list)) list = [list];
    else if (list.length && list.every((each) => Array.isArray(each) && (!each.length || isObject(each[0])))) list = list[0];
    checkCount(list);
    const source = isFlux(list[0]) ? "flux3" : isElement(list[0]) ? "elements" : "boxes";
    return { source, raws: list.map((entry, index) => rawBox(entry, index + 1)) };
}

function cocoBoxes(data) {
    checkCount(data.annotations);
    const images = new Set(data.annotations.filter(isObject).map((each) => JSON.stringify(each.image_id)));
    if (images.size > 1) throw new Problem("pastePictures", { count: images.size });
    const categories = Array.isArray(data.categories) ? data.categories.filter(isObject) : [];
    return data.annotations.map((entry, index) => {
        const raw = rawBox(entry, index + 1);
        const name = categories.find((each) => each.id === entry.category_id)?.name;
        return { ...raw, order: "xywh", unit: "pixels", phrase: raw.phrase || phraseOf({ name }, index + 1) };
    });
}

const isFour = (value) => Array.isArray(value) && value.length === 4 && value.every((each) => typeof each === "number");
const isFlux = (entry) => isObject(entry) && typeof entry.id === "string" && "desc" in entry;
/** Of the host's elements or Ideogram's: their words are called desc, or the type is said. */
const isElement = (entry) => isObject(entry) && ("desc" in entry || entry.type === "obj" || entry.type === "text");

function rawBox(entry, number) {
    if (Array.isArray(entry)) {
        if (isFour(entry)) return { numbers: checkedNumbers(entry, number), order: "", unit: "", phrase: "" };
        const words = entry.findIndex((each) => typeof each === "string");
        if (entry.length === 2 && words >= 0 && typeof entry[1 - words] !== "string") {
            return { ...rawBox(entry[1 - words], number), phrase: phraseOf({ phrase: entry[words] }, number) };
        }
    }
    if (!isObject(entry)) throw new Problem("pasteNotBox", { number });
    const phrase = phraseOf(entry, number);
    if ("src_bbox" in entry || "tgt_bbox" in entry) throw new Problem("pasteEdit", { number });
    for (const [order, keys] of KEYED) {
        if (!keys.every((key) => key in entry)) continue;
        return { numbers: checkedNumbers(keys.map((key) => entry[key]), number), order, unit: "", phrase };
    }
    for (const [key, order, unit] of LISTED) {
        const box = Object.hasOwn(entry, key) ? entry[key] : undefined;
        if (isObject(box)) return { ...rawBox(box, number), phrase };
        if (!Array.isArray(box) || box.length !== 4) continue;
        const element = key === "bbox" && isElement(entry);
        return {
            numbers: checkedNumbers(box, number), order: element ? "yxyx" : order, unit: element ? "thousandths" : unit, phrase,
            either: key === "bbox_2d", // some programs write pixels under this key, others thousandths
        };
    }
    throw new Problem("pasteNotBox", { number });
}

function checkedNumbers(values, number) {
    values.forEach((value) => checkNumber(value, "bbox", number));
    return values;
}

function phraseOf(entry, number) {
    const inner = isObject(entry.metadata) ? entry.metadata : {};
    const texts = [entry.phrase, entry.desc, inner.desc, entry.text, inner.text, entry.label, entry.caption, entry.name,
        entry.description, entry.category, entry.prompt];
    const phrase = texts.find((text) => typeof text === "string" && text.trim()) ?? "";
    if (phrase.length > MAX_PHRASE) throw new Problem("boxPhraseLong", { number, limit: MAX_PHRASE });
    return phrase.trim();
}

/** Say for each box what its numbers count, in place. */
function settleUnit(raws, size) {
    const open = raws.filter((raw) => !raw.unit);
    if (open.length) {
        const largest = Math.max(...open.flatMap((raw) => raw.numbers.map(Math.abs)));
        if (largest > 1 + ROUNDING && largest < 2) throw new Problem("unitUnknown", { number: largest });
        let unit = largest <= 1 + ROUNDING ? "fractions" : "pixels";
        if (unit === "pixels" && largest <= 1000 && open.some((raw) => raw.either)) {
            if (open.every((raw) => fits({ ...raw, unit }, raw.order, size))) throw new Problem("pixelsOrThousandths");
            unit = "thousandths";
        }
        for (const raw of open) raw.unit = unit;
    }
    const units = [...new Set(raws.map((raw) => raw.unit))].sort();
    if (units.length > 1) throw new Problem("unitsMixed", { units: units.join(", ") });
}

/** Say for each box in which order its numbers stand, in place. */
function settleOrder(raws, size) {
    const open = raws.filter((raw) => !raw.order);
    if (open.length) {
        const fitting = ["xyxy", "xywh"].filter((order) => open.every((raw) => fits(raw, order, size)));
        const numbers = `[${open[0].numbers.join(", ")}]`.slice(0, 60);
        if (fitting.length > 1) throw new Problem("orderUnknown", { numbers });
        if (!fitting.length) throw new Problem("orderNeither", { numbers });
        for (const raw of open) [raw.order] = fitting;
    }
    if (new Set(raws.map((raw) => raw.order)).size > 1) throw new Problem("ordersMixed");
}

/** The rectangle in fractions that four numbers mean in an order. */
function rectOf({ numbers: [a, b, c, d], unit }, order, size) {
    const across = UNITS[unit] || size.width, down = UNITS[unit] || size.height;
    const [x, y, width, height] = {
        xyxy: [a, b, c - a, d - b], xywh: [a, b, c, d], yxyx: [b, a, d - b, c - a], cxcywh: [a - c / 2, b - d / 2, c, d],
    }[order];
    return { x: x / across, y: y / down, width: width / across, height: height / down };
}

function fits(raw, order, size) {
    const { x, y, width, height } = rectOf(raw, order, size);
    return Math.min(width, height) > 0 && Math.min(x, y) >= -SLACK && Math.max(x + width, y + height) <= 1 + SLACK;
}

function importedBox(raw, size, number) {
    const { x, y, width, height } = rectOf(raw, raw.order, size);
    if (!(width > 0 && height > 0)) throw new Problem("boxSize", { number });
    const slack = raw.unit === "thousandths" ? ROUNDING : SLACK;
    const isOutside = Math.min(x, y) < -slack || Math.max(x + width, y + height) > 1 + slack;
    if (isOutside) throw new Problem("pasteOutside", { number });
    const left = Math.max(0, x), top = Math.max(0, y);
    const box = {
        x: left, y: top, width: left === x && x + width <= 1 ? width : Math.min(1, x + width) - left,
        height: top === y && y + height <= 1 ? height : Math.min(1, y + height) - top,
    };
    if (!(box.width >= ROUNDING && box.height >= ROUNDING)) throw new Problem("boxOutside", { number });
    return { phrase: raw.phrase, ...box, extra: {} };
}
