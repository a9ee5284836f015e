// How the editor shows things: what a workflow keeps of it, read as the untrusted text that it is.

export const GRIDS = [0, 8, 16, 32, 64]; // pixels; 0 = no grid
export const BEHIND = ["input", "last", "file", "nothing"];
const PANEL = ["auto", "on", "off"];
const FOLDERS = ["input", "output", "temp"];
const MAX_NAME = 300; // characters of a file's name or folder
const MAX_SIDE = 8192; // pixels, as nodes/box_editor.py allows

export const DEFAULT_VIEW = {
    snap: true, grid: 0, gaps: false, behind: "input", file: null, percent: false, panel: "auto",
};

/** A whole view from what a workflow holds: every value is one of those that the editor itself writes. */
export function viewOf(kept) {
    const raw = typeof kept === "object" && kept !== null ? kept : {};
    const flag = (key) => (typeof raw[key] === "boolean" ? raw[key] : DEFAULT_VIEW[key]);
    const one = (key, values) => (values.includes(raw[key]) ? raw[key] : DEFAULT_VIEW[key]);
    return {
        snap: flag("snap"), grid: one("grid", GRIDS), gaps: flag("gaps"), behind: one("behind", BEHIND),
        file: fileOf(raw.file), percent: flag("percent"), panel: one("panel", PANEL),
    };
}

/** What of a view a workflow has to keep. */
export function keptView(view) {
    return Object.fromEntries(Object.entries(view).filter(([key, value]) => value !== DEFAULT_VIEW[key]));
}

/** An image file on the server, or null. */
function fileOf(raw) {
    const isText = (value) => typeof value === "string" && value.length <= MAX_NAME;
    if (typeof raw !== "object" || raw === null || !isText(raw.filename) || !raw.filename) return null;
    return {
        filename: raw.filename,
        subfolder: isText(raw.subfolder) ? raw.subfolder : "",
        type: FOLDERS.includes(raw.type) ? raw.type : "input",
    };
}

/** A number of pixels from a file or a wire as one that a picture can have, or `fallback`. */
export function sideOf(value, fallback = 512) {
    const number = typeof value === "boolean" || value === null || value === "" ? NaN : Number(value);
    return Number.isFinite(number) ? Math.min(MAX_SIDE, Math.max(1, Math.round(number))) : fallback;
}
