// Ties the box editor to ComfyUI: the only file that knows the app. Everything else is plain modules beside it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { BoxEditor } from "./editor/widget.js";
import { STYLE } from "./editor/view/style.js";
import { translator } from "./editor/model/words.js";

const NODE = "BoxwrightBoxEditor";
const VIEW = "boxwright.view"; // node property: how the editor shows things; Python needs none of it
const HEARTBEAT = 500; // ms: changes that come without an event, such as the zoom or a theme
const START_SIZE = [820, 760];
const MIN_HEIGHT = 420;
const MAX_SIDE = 8192;
const MAX_HISTORIES = 64; // nodes whose steps are remembered
const AFTERLIFE = 3000; // ms: how long the host may take to put a new node in the place of an old one
const FRAMES = 20; // the same for its element

const histories = new Map(); // node of a graph -> history; outlives the node, which the host's undo makes anew
const editors = new Set();
let lastPicture = null; // of whatever was sampled or shown last, in any node
let t = translator();

app.registerExtension({
    name: "boxwright.BoxEditor",
    async setup() {
        const style = document.createElement("style");
        style.textContent = STYLE;
        document.head.append(style);
        watchPictures();
        setInterval(() => editors.forEach((tie) => tie.beat()), HEARTBEAT);
    },
    async beforeRegisterNodeDef(type, definition) {
        if (definition.name === NODE) t = translator(await ownWords());
    },
    nodeCreated(node) {
        if (node.comfyClass === NODE) tie(node);
    },
});

/** Our words in the user's language, from locales/; undefined where there are none. */
async function ownWords() {
    try {
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        const answer = await api.fetchApi("/i18n");
        return (await answer.json())?.[language]?.boxwright;
    } catch (error) {
        console.warn("Boxwright: no translations", error);
        return undefined;
    }
}

/** Give a node its editor. */
function tie(node) {
    const text = node.widgets?.find((widget) => widget.name === "regions_json");
    if (!text) return;
    hide(text);
    const editor = new BoxEditor(hostOf(node, text));
    const widget = node.addDOMWidget("box_editor", "BOXWRIGHT_BOX_EDITOR", editor.element, {
        serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT, margin: 8,
    });
    widget.serialize = false; // and no value of it in the workflow: the text is all
    node.setSize?.([Math.max(node.size[0], START_SIZE[0]), Math.max(node.size[1], START_SIZE[1])]);
    const live = { beat: () => beat(editor, node) };
    const resizes = new ResizeObserver(() => {
        editor.render();
        if (editor.stage.canvas.isConnected) takeFocus(editor, node);
    });
    const begin = () => {
        editors.add(live);
        resizes.observe(editor.stage.canvas);
    };
    chain(node, "onConfigure", () => {
        editor.sync();
        takePlace(editor, node, FRAMES);
    });
    chain(node, "onAdded", begin);
    chain(node, "onResize", () => editor.render());
    chain(node, "onExecuted", (output) => takeOutput(editor, node, output));
    chain(node, "onRemoved", () => {
        editors.delete(live);
        resizes.disconnect();
        if (editor.stage.hadFocus()) focusWanted.set(keyOf(node), performance.now());
    });
    begin();
    editor.element.addEventListener("wheel", (event) => wheel(event, editor), { passive: false });
    queueMicrotask(() => editor.sync());
}

const focusWanted = new Map(); // node -> when it went away with the focus on its canvas

/** Focus the canvas if the node that it replaces had the focus. */
function takeFocus(editor, node) {
    const since = performance.now() - (focusWanted.get(keyOf(node)) ?? -Infinity);
    focusWanted.delete(keyOf(node));
    if (since < AFTERLIFE) editor.stage.canvas.focus({ preventScroll: true });
}

/**
 * Nodes 2.0 tells nodes apart by their number only: after an undo, or between a graph and its subgraph, it may keep the
 * editor of another node with our number on the page. Ours takes its place. The host needs some frames.
 */
function takePlace(editor, node, frames = 0) {
    if (editor.element.isConnected) return;
    if (node.graph && node.graph === app.canvas?.graph) {
        const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .bw-editor`);
        shown?.replaceWith(editor.element);
    }
    if (frames > 0) requestAnimationFrame(() => takePlace(editor, node, frames - 1));
}

/** The editor writes this widget; people need not see its text. Both renderers look at different places. */
function hide(widget) {
    widget.hidden = true;
    widget.options = Object.assign(widget.options ?? {}, { hidden: true });
    widget.computeSize = () => [0, -4];
}

/** Call `act` after whatever the node does there already. */
function chain(node, name, act) {
    const before = node[name];
    node[name] = function (...values) {
        const result = before?.apply(this, values);
        act(...values);
        return result;
    };
}

function hostOf(node, text) {
    const value = (name) => node.widgets.find((widget) => widget.name === name)?.value;
    const side = (name) => {
        const number = Number(value(name));
        return Number.isFinite(number) ? Math.min(MAX_SIDE, Math.max(1, Math.round(number))) : 512;
    };
    return {
        t,
        read: () => text.value ?? "",
        write: (words) => {
            text.value = words;
            node.graph?.setDirtyCanvas?.(true, true);
        },
        settle: snapshot,
        undo: () => run("Comfy.Undo"),
        redo: () => run("Comfy.Redo"),
        canUndo: () => (tracker()?.undoQueue?.length ?? 0) > 0,
        canRedo: () => (tracker()?.redoQueue?.length ?? 0) > 0,
        size: () => ({ width: side("width"), height: side("height") }),
        prompt: () => (isLinked(node, "prompt") ? null : String(value("prompt") ?? "")),
        opacity: () => Math.max(0, Math.min(1, Number(value("image_opacity")) || 0)),
        picture: (source) => (source === "last" ? lastPicture : inputPicture(node)),
        view: () => (isRecord(node.properties?.[VIEW]) ? node.properties[VIEW] : {}),
        setView: (view) => {
            if (Object.keys(view).length) node.properties[VIEW] = view;
            else delete node.properties[VIEW];
        },
        recall: () => histories.get(keyOf(node)) ?? null,
        keep: (history) => keepHistory(keyOf(node), history),
        forward: forwardPointer,
        isPanning: () => Boolean(app.canvas?.read_only),
        notify: (words) => app.extensionManager?.toast?.add({ severity: "warn", summary: "Boxwright", detail: words, life: 6000 }),
    };
}

/** The nodes that were edited last are remembered. */
function keepHistory(key, history) {
    histories.delete(key);
    histories.set(key, history);
    if (histories.size > MAX_HISTORIES) histories.delete(histories.keys().next().value);
}

function isRecord(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

function keyOf(node) {
    const workflow = app.extensionManager?.workflow?.activeWorkflow?.path ?? "";
    const graph = node.graph === (app.rootGraph ?? app.graph) ? "" : node.graph?.id ?? "";
    return `${workflow}/${graph}/${node.id}`;
}

function isLinked(node, name) {
    return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

// --- undo -------------------------------------------------------------------------------------------------------------

function tracker() {
    return app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
}

/** Let the host compare the graph with its last snapshot; it keeps a step only if something changed. */
function snapshot() {
    const current = tracker();
    if (current?.captureCanvasState) current.captureCanvasState();
    else current?.checkState?.();
}

function run(command) {
    snapshot();
    return app.extensionManager?.command?.execute(command);
}

// --- pictures behind the boxes ----------------------------------------------------------------------------------------

const loaded = new Map(); // address -> image; the last few

/** An image that can be drawn, or null while it is loading. Editors draw anew when it is there. */
function imageAt(address) {
    if (!loaded.has(address)) {
        const image = new Image();
        image.onload = () => editors.forEach((live) => live.beat(true));
        image.src = address;
        loaded.set(address, image);
        if (loaded.size > 8) loaded.delete(loaded.keys().next().value);
    }
    const image = loaded.get(address);
    return image.complete && image.naturalWidth > 0 ? image : null;
}

function addressOf({ filename, subfolder = "", type = "output" }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** What comes in at `image`: as of the last run, else what the connected node shows. */
function inputPicture(node) {
    if (!isLinked(node, "image")) return null;
    if (node.boxwrightImage) return imageAt(addressOf(node.boxwrightImage));
    const origin = node.getInputNode?.(node.inputs.findIndex((input) => input.name === "image"));
    const shown = origin?.imgs?.[0];
    if (shown?.complete && shown.naturalWidth > 0) return shown;
    const output = app.nodeOutputs?.[origin?.id]?.images?.[0];
    return output ? imageAt(addressOf(output)) : null;
}

function watchPictures() {
    let address = null;
    api.addEventListener("b_preview", ({ detail }) => {
        if (!(detail instanceof Blob)) return;
        if (address) URL.revokeObjectURL(address);
        address = URL.createObjectURL(detail);
        showLast(address);
    });
    api.addEventListener("executed", ({ detail }) => {
        const image = detail?.output?.images?.at?.(-1);
        if (image?.filename) showLast(addressOf(image));
    });
}

function showLast(address) {
    const image = new Image();
    image.onload = () => {
        lastPicture = image;
        editors.forEach((live) => live.beat(true));
    };
    image.src = address;
}

function takeOutput(editor, node, output) {
    const [text, mark] = output?.boxwright_upstream ?? [];
    if (typeof text === "string" && typeof mark === "string") editor.takeOver(text, mark);
    const [image] = output?.boxwright_image ?? [];
    if (image?.filename) node.boxwrightImage = image;
    editor.render();
}

// --- the page around us -----------------------------------------------------------------------------------------------

/** What changes without telling: the zoom, the theme, a widget, the text. */
function beat(editor, node) {
    takePlace(editor, node);
    if (!editor.element.isConnected || editor.stage.gesture || editor.stage.nudging) return;
    const theme = isLight(editor) ? "light" : "dark";
    editor.element.classList.toggle("bw-light", theme === "light");
    const signs = [theme, editor.size.width, editor.size.height, editor.host.prompt(), editor.host.opacity(), editor.picture(),
        Math.round(editor.stage.zoom * 20), text(node)];
    if (editor.signs?.every((sign, index) => sign === signs[index])) return;
    editor.signs = signs;
    editor.theme = theme;
    editor.sync();
}

function text(node) {
    return node.widgets.find((widget) => widget.name === "regions_json")?.value;
}

/** Dark letters mean a light theme, whatever it is called. */
function isLight(editor) {
    const parts = getComputedStyle(editor.element).color.match(/[\d.]+/g)?.map(Number) ?? [];
    return parts.length >= 3 && parts[0] * 0.3 + parts[1] * 0.6 + parts[2] * 0.1 < 128;
}

/** The wheel zooms the graph, except over a list that can scroll. */
function wheel(event, editor) {
    const scroller = event.target.closest?.("[data-capture-wheel]");
    if (scroller && scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey) {
        event.stopPropagation();
        return;
    }
    if (!editor.element.closest(".dom-widget")) return; // the other renderer passes it on by itself
    event.preventDefault();
    event.stopPropagation();
    app.canvas?.processMouseWheel?.(event);
}

function forwardPointer(event) {
    const act = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" }[event.type];
    event.preventDefault();
    app.canvas?.[act]?.(event);
}
