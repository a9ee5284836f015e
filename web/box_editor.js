// Ties the box editor to ComfyUI. One file, since it is the only one that may know the app. Everything else is plain modules in editor/.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isThere, Pictures } from "./editor/pictures.js";
import { BoxEditor } from "./editor/widget.js";
import { facesOf, graphsOf, hostsOf, innerEnd, locatorOf, sourceOf } from "./editor/wires.js";
import { sideOf } from "./editor/model/view.js";
import { translator } from "./editor/model/words.js";

const NODE = "BoxwrightBoxEditor";
const WIDGET = "BOXWRIGHT_BOX_EDITOR"; // the type of its drawing's widget, as nodes/box_editor.py names it
const DRAWING = "regions_json";
const VIEW = "boxwright.view"; // node property: how the editor shows things; Python needs none of it
const UPLOADS = "boxwright"; // folder of images dropped on an editor
const HEARTBEAT = 500; // ms: changes that come without an event, such as the zoom or a theme
const START_SIZE = [820, 760];
const MIN_HEIGHT = 420;
const PROMPT_HEIGHT = 76; // the most that the prompt's text takes of the node: what is left is the canvas's
const MAX_HISTORIES = 64; // nodes whose steps are remembered
const MAX_PINNED = 8; // nodes whose pins are remembered
const MAX_RUNS = 256; // nodes whose last run is remembered
const AFTERLIFE = 3000; // ms: how long the host may take to put a new node in the place of an old one
const FRAMES = 20; // the same for its element

const histories = new Map(); // node of a graph -> history; outlives the node, which the host's undo makes anew
const pins = new Map(); // the same -> the parts of pictures that are pinned there: box id -> {image, x, y, width, height}
const runs = new Map(); // the same, in one workflow -> what the last run told: {size, image}
const editors = new Set();
const owners = new WeakMap(); // element -> the node and editor that it belongs to
const pictures = new Pictures(() => editors.forEach((each) => each.beat()));
let lastPicture = null; // of whatever was sampled or shown last, in any node
let loras = null; // names of files on the server; null = not known yet
let t = translator();

app.registerExtension({
    name: "boxwright.BoxEditor",
    setup() {
        watchPictures();
        watchRefusals();
        setInterval(() => {
            letGo();
            editors.forEach((each) => each.beat());
        }, HEARTBEAT);
    },
    getCustomWidgets() {
        return { [WIDGET]: (node, name) => ({ widget: drawingWidget(node, name) }) };
    },
    async beforeRegisterNodeDef(type, definition) {
        if (definition.name === NODE) t = translator(await ownWords());
    },
    refreshComboInNodes() {
        loras = null;
    },
    nodeCreated(node) {
        if (node.comfyClass === NODE) tie(node);
        else if (node.subgraph) watchPromotions(node);
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

/** The LoRAs on the server, or null until it has told of them. */
function knownLoras() {
    if (!loras) {
        loras = []; // asked for once
        askForLoras();
    }
    return loras.isKnown ? loras : null;
}

async function askForLoras() {
    const mine = loras;
    try {
        const names = await (await api.fetchApi("/models/loras")).json();
        mine.push(...(Array.isArray(names) ? names : []).filter((name) => typeof name === "string"));
        mine.isKnown = true;
        editors.forEach((each) => each.beat());
    } catch (error) {
        console.warn("Boxwright: no list of LoRAs", error);
    }
}

// --- the widget -------------------------------------------------------------------------------------------------------

/** The editor as the widget of a text input: its value is the drawing's text. */
function drawingWidget(node, name) {
    let text = "";
    const access = {
        read: () => text ?? "",
        write: (words) => {
            widget.value = words;
        },
    };
    const editor = new BoxEditor(hostOf(node, name, access));
    const widget = addEditor(node, name, editor, {
        getValue: () => text,
        setValue: (value) => {
            text = value;
            queueMicrotask(() => editor.sync());
        },
    });
    return widget;
}

/**
 * A DOM widget that keeps its width, where a panel that draws it too would have it shrink to its own, and that is there
 * when its input is wired: then it says so itself.
 */
function addEditor(node, name, editor, options) {
    const widget = node.addDOMWidget(name, WIDGET, editor.element, {
        ...options, hideOnZoom: false, hideInPanel: true, getMinHeight: () => MIN_HEIGHT, margin: 8,
    });
    return made(node, widget, editor);
}

/** Bind an editor to the widget that shows it. */
function made(node, widget, editor) {
    for (const [key, value] of Object.entries({ width: undefined, computedDisabled: false, connectionSuppressed: false })) {
        Object.defineProperty(widget, key, { get: () => value, set: () => {}, configurable: true });
    }
    widget.editor = editor;
    owners.set(editor.element, { node, editor });
    live(node, widget, editor);
    return widget;
}

function rootGraph() {
    return app.rootGraph ?? app.graph;
}

/** Older frontends tell nobody of the nodes in subgraphs when a workflow goes: end the editors that no graph holds. */
function letGo() {
    const graphs = graphsOf(rootGraph());
    for (const each of editors) if (each.node.graph && !graphs.includes(each.node.graph)) each.end();
}

/** Let an editor live as long as its node. */
function live(node, widget, editor) {
    const pulse = {
        node,
        beat: () => beat(editor, node),
        end: () => {
            if (!editors.delete(pulse)) return;
            resizes.disconnect();
            leave(editor, node);
        },
    };
    const resizes = new ResizeObserver(() => {
        editor.render();
        if (editor.stage.canvas.isConnected) comeBack(editor, node);
    });
    const begin = () => {
        editors.add(pulse);
        resizes.observe(editor.stage.canvas);
    };
    editor.isCurrent = () => Boolean(node.graph?.getNodeById(node.id) === node
        && (node.inputs?.some((input) => input._widget === widget) || node.widgets?.includes(widget)));
    chain(node, "onConfigure", () => {
        editor.sync();
        takePlace(editor, node, FRAMES);
    });
    chain(node, "onAdded", begin);
    chain(node, "onResize", () => editor.render());
    chain(widget, "onRemove", pulse.end);
    letGo();
    begin();
    editor.element.addEventListener("wheel", (event) => wheel(event, editor), { passive: false });
    queueMicrotask(() => editor.sync());
}

/** What the node itself needs beside its widget. */
function tie(node) {
    const widget = node.widgets?.find((each) => each.name === DRAWING && each.editor);
    if (!widget) return;
    const prompt = node.widgets.find((each) => each.name === "prompt");
    if (prompt?.options) prompt.options.getMaxHeight = () => PROMPT_HEIGHT;
    node.setSize?.([Math.max(node.size[0], START_SIZE[0]), Math.max(node.size[1], START_SIZE[1])]);
    chain(node, "onExecuted", (output) => takeOutput(widget.editor, node, output));
    chain(node, "onConnectionsChange", () => queueMicrotask(() => widget.editor.sync()));
    preferPrompt(node);
}

/** A text dropped on the node is its prompt, then its boxes; the drawing's own input is for whoever aims at it. */
function preferPrompt(node) {
    const indexOf = (name) => node.inputs.findIndex((input) => input.name === name);
    const isFree = (index) => node.inputs[index]?.link == null;
    const textInput = () => ["prompt", "boxes"].map(indexOf).find(isFree) ?? indexOf("prompt");
    const isText = (type) => String(type).toUpperCase() === "STRING";
    const { findInputByType, findSlotByType } = node;
    node.findInputByType = function (type, ...rest) {
        const found = findInputByType?.call(this, type, ...rest);
        if (!isText(type) && found?.slot?.name !== DRAWING) return found;
        const index = textInput();
        return { index, slot: node.inputs[index] };
    };
    node.findSlotByType = function (isInput, type, asObject, ...rest) {
        const found = findSlotByType.call(this, isInput, type, asObject, ...rest);
        const slot = asObject ? found : node.inputs[found];
        if (!isInput || (!isText(type) && slot?.name !== DRAWING)) return found;
        return asObject ? node.inputs[textInput()] : textInput();
    };
}

const gone = new Map(); // node -> {since, focus, lens, tool, brush} of an editor that went away in use: the next one takes over

function leave(editor, node) {
    const focus = editor.stage.hadFocus(), lens = editor.isFull ? editor.stage.lens.value : null;
    const { tool, brush } = editor.stage.freehand;
    editor.setFull(false);
    if (focus || lens || tool !== "box") gone.set(keyOf(node, editor), { since: performance.now(), focus, lens, tool, brush });
}

/** Take the focus, the full screen and the tool of the editor that this one replaces. */
function comeBack(editor, node) {
    const key = keyOf(node, editor), left = gone.get(key);
    gone.delete(key);
    if (!left || performance.now() - left.since > AFTERLIFE) return;
    if (left.lens) editor.setFull(true, left.lens);
    editor.stage.freehand.takeUp(left);
    if (left.focus) editor.stage.canvas.focus({ preventScroll: true });
}

/**
 * The host tells nodes apart by their number only: after an undo, or between a graph and its subgraph, it may keep the
 * editor of another node with our number on the page, in a graph of Nodes 2.0 or in an app. Ours takes its place. The
 * host needs some frames.
 */
function takePlace(editor, node, frames = 0) {
    if (!editor.isCurrent()) return;
    const key = editor.element.dataset.node = keyOf(node, editor);
    if (editor.element.isConnected) return;
    const stale = [...document.querySelectorAll(".bw-editor")].find((each) => (
        each.dataset.node === key || (node.graph === app.canvas?.graph && isShownBy(each, node))) && !isAtHome(each));
    stale?.replaceWith(editor.element);
    if (frames > 0) requestAnimationFrame(() => takePlace(editor, node, frames - 1));
}

/** Whether an element belongs to a node that lives in the graph that is shown. */
function isAtHome(element) {
    const { node, editor } = owners.get(element) ?? {};
    return Boolean(node && node.graph === app.canvas?.graph && editor.isCurrent());
}

function isShownBy(element, node) {
    return element.closest("[data-node-id]")?.dataset.nodeId === String(node.id);
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

// --- on the face of a subgraph ----------------------------------------------------------------------------------------

/** A subgraph's node shows an editor for each drawing promoted to it, as the host does for its own widgets. */
function watchPromotions(node) {
    const look = () => node.inputs?.forEach((input) => {
        const projected = input._widget;
        if (!node.graph || projected?.type !== WIDGET || projected.editor) return;
        input._widget = faceOf(node, input, projected);
    });
    const { events } = node.subgraph;
    const promoted = () => {
        look(); // at once: before the host puts it on the page
        queueMicrotask(look); // older frontends make the widget after they have told of it
    };
    const watch = () => {
        events?.addEventListener?.("widget-promoted", promoted);
        promoted();
    };
    chain(node, "onConfigure", look);
    chain(node, "onAdded", watch);
    chain(node, "onRemoved", () => events?.removeEventListener?.("widget-promoted", promoted));
    watch();
}

/** An editor for the value that a subgraph's input keeps. */
function faceOf(node, input, projected) {
    const access = {
        read: () => projected.value ?? "",
        write: (words) => {
            projected.value = words;
        },
        inner: () => innerEnd(node, input),
    };
    const editor = new BoxEditor(hostOf(node, input.name, access));
    if (projected.element) { // older frontends have made a copy of the widget inside, with its element
        projected.element = editor.element;
        return made(node, projected, editor);
    }
    node.addCustomWidget = () => {}; // the input holds the widget; the list of the node's own is the host's to make
    try {
        return addEditor(node, input.name, editor, {
            getValue: () => projected.value,
            setValue: (value) => {
                projected.value = value;
                queueMicrotask(() => editor.sync());
            },
        });
    } finally {
        delete node.addCustomWidget;
    }
}

// --- what the editor is told ------------------------------------------------------------------------------------------

/**
 * The host of an editor that shows the value of an input of `node`. `access.inner`: on a subgraph's face, a function to
 * the {node, input} inside that the value is for: its size and prompt are shown.
 */
function hostOf(node, name, access) {
    const end = () => (access.inner ? access.inner() : { node, hosts: [] });
    const inner = () => end()?.node ?? null;
    return {
        t,
        name,
        read: access.read,
        write: (words) => {
            access.write(words);
            node.graph?.setDirtyCanvas?.(true, true);
        },
        settle: snapshot,
        undo: () => run("Comfy.Undo"),
        redo: () => run("Comfy.Redo"),
        canUndo: () => (tracker()?.undoQueue?.length ?? 0) > 0,
        canRedo: () => (tracker()?.redoQueue?.length ?? 0) > 0,
        facts: () => factsOf(end(), node, name),
        picture: (source, file) => {
            if (source === "file") return file && pictures.at(addressOf(file));
            return source === "last" ? lastPicture : inputPicture(inner());
        },
        setOpacity: (value) => {
            const widget = inner()?.widgets?.find((each) => each.name === "image_opacity");
            if (!widget) return;
            widget.value = value;
            widget.callback?.(value);
            node.graph?.setDirtyCanvas?.(true, true);
        },
        upload,
        fileAt,
        loras: knownLoras,
        pins: () => pins.get(keyOf(node, { host: { name } })) ?? new Map(),
        keepPins: (parts) => {
            const key = keyOf(node, { host: { name } });
            if (parts.size) keepLast(pins, key, parts, MAX_PINNED);
            else pins.delete(key);
        },
        view: () => node.properties?.[VIEW],
        setView: (view) => {
            if (Object.keys(view).length) node.properties[VIEW] = view;
            else delete node.properties[VIEW];
        },
        recall: () => histories.get(keyOf(node, { host: { name } })) ?? null,
        keep: (history) => keepHistory(keyOf(node, { host: { name } }), history),
        forward: forwardPointer,
        isPanning: () => Boolean(app.canvas?.read_only),
        notify: (words) => app.extensionManager?.toast?.add({ severity: "warn", summary: "Boxwright", detail: words, life: 6000 }),
    };
}

/**
 * What the graph says about the picture to be, at the inner end of a face or in the node itself: {width, height, prompt: text or null, opacity, sources, drawingFrom}.
 * sources = [{key, title, how}] for every wired input: how = "wire" (its value was read), "run" (that of the last run),
 * "unknown" or "input" (the value does not matter here); drawingFrom = the title of what sends the drawing, or null.
 */
function factsOf(end, node, name) {
    const sources = [], inner = end?.node;
    const wired = (of, key) => sourceOf(of, key, (graph) => hostsOf(rootGraph(), graph, end?.hosts));
    const value = (key) => inner?.widgets?.find((widget) => widget.name === key)?.value;
    const side = (key, index) => {
        const source = inner && wired(inner, key);
        if (!source) return sideOf(value(key));
        const read = sideOf(source.value, 0), ran = sideOf(runs.get(runKey(inner))?.size?.[index], 0);
        sources.push({ key, title: source.title, how: read ? "wire" : ran ? "run" : "unknown" });
        return read || ran || sideOf(value(key));
    };
    const width = side("width", 0), height = side("height", 1);
    const prompt = inner && wired(inner, "prompt");
    if (prompt) sources.push({ key: "prompt", title: prompt.title, how: "input" });
    const boxes = inner && wired(inner, "boxes");
    if (boxes) sources.push({ key: "boxes", title: boxes.title, how: "input" });
    const told = prompt ? prompt.value : value("prompt"), opacity = inner && wired(inner, "image_opacity");
    if (opacity) sources.push({ key: "opacity", title: opacity.title, how: "input" });
    return {
        width, height, sources,
        prompt: typeof told === "string" ? told : null,
        opacity: Math.max(0, Math.min(1, Number(opacity?.value ?? value("image_opacity")) || 0)),
        drawingFrom: wired(node, name)?.title ?? null,
    };
}

/** The nodes that were edited last are remembered. */
function keepHistory(key, history) {
    keepLast(histories, key, history, MAX_HISTORIES);
}

/** Set a key, and forget the ones that were set longest ago. */
function keepLast(map, key, value, count) {
    map.delete(key);
    map.set(key, value);
    if (map.size > count) map.delete(map.keys().next().value);
}

function keyOf(node, { host }) {
    const workflow = app.extensionManager?.workflow?.activeWorkflow?.path ?? "";
    const graph = node.graph === rootGraph() ? "" : node.graph?.id ?? "";
    return `${workflow}/${graph}/${node.id}/${host.name}`;
}

/** The root's number tells workflows apart that are opened under one name, one after the other. */
function runKey(node) {
    return `${rootGraph()?.id}/${keyOf(node, { host: { name: DRAWING } })}`;
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

function addressOf({ filename, subfolder = "", type = "output" }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** What comes in at `image`: as of the last run, else what the connected node shows. */
function inputPicture(node) {
    const index = node?.inputs?.findIndex((input) => input.name === "image" && input.link != null) ?? -1;
    if (index < 0) return null;
    const ran = runs.get(runKey(node))?.image;
    if (ran) return pictures.at(addressOf(ran));
    const origin = node.getInputNode?.(index);
    const shown = origin?.imgs?.[0];
    if (isThere(shown)) return shown;
    const output = origin && app.nodeOutputs?.[locatorOf(rootGraph(), origin)]?.images?.[0];
    return output ? pictures.at(addressOf(output)) : null;
}

/** Put an image file on the server, in a folder of its own among the inputs: {filename, subfolder, type}, or null. */
async function upload(file) {
    const body = new FormData();
    body.append("image", file);
    body.append("subfolder", UPLOADS);
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (answer.status !== 200) return null;
    const { name, subfolder, type } = await answer.json();
    return { filename: name, subfolder, type };
}

/** The file that an address of this server shows, or null. */
function fileAt(address) {
    const url = URL.canParse?.(address) ? new URL(address) : null;
    if (url?.origin !== location.origin || !url.pathname.endsWith("/view")) return null;
    const { filename, subfolder = "", type = "output" } = Object.fromEntries(url.searchParams);
    return filename ? { filename, subfolder, type } : null;
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

/** What the server tells of a node that then refuses: what came in by wire must be seen to be mended. */
function watchRefusals() {
    api.addEventListener("boxwright.output", ({ detail }) => {
        let graph = rootGraph(), node = null;
        for (const id of String(detail?.node ?? "").split(":")) { // from the outermost subgraph's node inwards
            node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
            graph = node?.subgraph;
        }
        const widget = node?.widgets?.find((each) => each.name === DRAWING && each.editor);
        if (!widget) return;
        takeOutput(widget.editor, node, detail.output);
        widget.editor.notify(String(detail.refusal)); // some frontends say no more than that a node failed
    });
}

function showLast(address) {
    const image = new Image();
    image.onload = () => {
        lastPicture = image;
        editors.forEach((each) => each.beat());
    };
    image.src = address;
}

/** What a run says of a node. The host gives it to the node of that number in whatever workflow is open by then. */
function takeOutput(editor, node, output) {
    const [text, mark] = output?.boxwright_upstream ?? [];
    const isWired = node.inputs?.some((input) => input.name === "boxes" && (input.link ?? null) !== null);
    if (isWired && typeof text === "string" && typeof mark === "string") faces(node, editor).forEach((each) => each.takeOver(text, mark));
    const [image] = output?.boxwright_image ?? [], size = output?.boxwright_size, run = { ...runs.get(runKey(node)) };
    if (image?.filename) run.image = image;
    if (Array.isArray(size)) run.size = size;
    keepLast(runs, runKey(node), run, MAX_RUNS);
    editor.sync();
}

/** The editors that keep a node's drawing: those on the faces of subgraphs where it is promoted, else its own. */
function faces(node, editor) {
    if (editor.facts.drawingFrom === null) return [editor];
    return facesOf(rootGraph(), node, DRAWING).map(({ input }) => input._widget?.editor).filter(Boolean);
}

// --- the page around us -----------------------------------------------------------------------------------------------

/** What changes without telling: the zoom, the theme, a widget, a wire, the text. */
function beat(editor, node) {
    takePlace(editor, node);
    if (!editor.element.isConnected || editor.isBusy()) return;
    const theme = isLight(editor) ? "light" : "dark";
    editor.element.classList.toggle("bw-light", theme === "light");
    const facts = JSON.stringify(editor.host.facts()), zoom = Math.round(editor.stage.zoom * 20);
    const signs = [theme, facts, editor.picture(), zoom, editor.host.read(), knownLoras()];
    if (editor.signs?.every((sign, index) => sign === signs[index])) return;
    editor.signs = signs;
    editor.theme = theme;
    editor.sync();
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
