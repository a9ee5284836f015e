// Text <-> boxes. The text is the only thing a workflow keeps; nodes/boxes.py reads the same format, strictly.

export const FORMAT = "boxwright.regions";
export const VERSION = 1;
export const MAX_BOXES = 64;
export const MAX_PHRASE = 1000; // characters
export const MAX_TEXT = 1_000_000; // characters
export const MIN_SIZE = 0.001; // fraction of the image: the thinnest box the editor makes
const MAX_DEPTH = 32;
const ROUNDING = 1e-6; // how far a box may stick out of the image through rounding
const COLOR = /^#[0-9a-f]{6}$/i;
const OPTIONAL = ["strength", "negative", "start", "end", "feather", "color", "enabled", "locked", "hidden"];
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
 * A box is {phrase, x, y, width, height, extra} in fractions of the image, and the optional keys that were there.
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

/** Boxes from the clipboard: our JSON, one box, or a list of boxes or elements as other programs write them. Throws
 * Problem. `width` and `height`: pixels of the image, for boxes that are not fractions. */
export function parsePasted(text, width, height) {
    if (text.length > MAX_TEXT) throw new Problem("tooLong", { count: text.length, limit: MAX_TEXT });
    const data = parsedJson(text);
    if (isObject(data) && data.type === FORMAT) return parseDrawing(text).boxes;
    const list = Array.isArray(data) ? data.flat() : [data];
    if (!list.length) throw new Problem("pasteEmpty");
    if (list.length > MAX_BOXES) throw new Problem("tooMany", { count: list.length, limit: MAX_BOXES });
    return list.map((entry, index) => foreignBox(entry, index + 1, width, height));
}

function parsedJson(text) {
    let data;
    try {
        data = JSON.parse(text);
    } catch (error) {
        throw new Problem("notJson", { detail: error instanceof Error ? error.message.slice(0, 120) : "" });
    }
    if (!isShallow(data, MAX_DEPTH)) throw new Problem("tooDeep", { limit: MAX_DEPTH });
    return data;
}

function isShallow(data, levels) {
    if (typeof data !== "object" || data === null) return true;
    return levels > 0 && Object.values(data).every((child) => isShallow(child, levels - 1));
}

function parsedBox(entry, index) {
    const number = index + 1;
    if (!isObject(entry)) throw new Problem("boxNotObject", { number });
    if (typeof entry.phrase !== "string") throw new Problem("boxPhrase", { number });
    if (entry.phrase.length > MAX_PHRASE) throw new Problem("boxPhraseLong", { number, limit: MAX_PHRASE });
    for (const key of ["x", "y", "width", "height"]) checkNumber(entry[key], key, number);
    checkInside(entry, number);
    const box = { phrase: entry.phrase, x: entry.x, y: entry.y, width: entry.width, height: entry.height };
    for (const key of OPTIONAL) {
        if (entry[key] === undefined || entry[key] === null) continue;
        checkOptional(key, entry[key], number);
        box[key] = entry[key];
    }
    if ((box.start ?? 0) >= (box.end ?? 1)) throw new Problem("boxWindow", { number });
    box.extra = without(entry, KNOWN);
    return box;
}

function checkNumber(value, key, number) {
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
        if (typeof value !== "string") throw new Problem("boxNegative", { number });
        if (value.length > MAX_PHRASE) throw new Problem("boxPhraseLong", { number, limit: MAX_PHRASE });
    } else if (key === "color") {
        if (typeof value !== "string" || !COLOR.test(value)) throw new Problem("boxColor", { number });
    } else {
        checkNumber(value, key, number);
        if (value < 0 || value > 1) throw new Problem("boxRange", { number, key });
    }
}

function boxObject(box) {
    const object = {};
    for (const key of KNOWN) if (box[key] !== undefined) object[key] = box[key];
    return { ...object, ...box.extra };
}

/** A box or element of another program: fractions if every number is at most 1, else pixels; elements count to 1000. */
function foreignBox(entry, number, imageWidth, imageHeight) {
    if (!isObject(entry)) throw new Problem("pasteNotBox", { number });
    let x, y, width, height;
    if (Array.isArray(entry.bbox) && entry.bbox.length === 4) {
        entry.bbox.forEach((value) => checkNumber(value, "bbox", number));
        const [top, left, bottom, right] = entry.bbox.map((value) => value / 1000);
        [x, y, width, height] = [left, top, right - left, bottom - top];
    } else {
        ({ x, y, width, height } = entry);
        for (const key of ["x", "y", "width", "height"]) checkNumber(entry[key], key, number);
        if (Math.max(x, y, width, height) > 1) {
            [x, y, width, height] = [x / imageWidth, y / imageHeight, width / imageWidth, height / imageHeight];
        }
    }
    const left = Math.max(0, x), top = Math.max(0, y);
    const box = { x: left, y: top, width: Math.min(1, x + width) - left, height: Math.min(1, y + height) - top };
    if (!(box.width >= MIN_SIZE && box.height >= MIN_SIZE)) throw new Problem("boxOutside", { number });
    const texts = [entry.phrase, entry.desc, entry.metadata?.desc, entry.text, entry.metadata?.text, entry.label];
    const phrase = texts.find((text) => typeof text === "string" && text.trim()) ?? "";
    return { phrase: phrase.trim().slice(0, MAX_PHRASE), ...box, extra: {} };
}

function isObject(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** An object's other keys. Built from entries, so that a key named __proto__ stays a key. */
function without(object, keys) {
    return Object.fromEntries(Object.entries(object).filter(([key]) => !keys.includes(key)));
}
