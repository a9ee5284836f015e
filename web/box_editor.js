// Ties the box editor to ComfyUI: its widget lives with its node, on the faces of subgraphs, through undo and workflows.
// Only this file and those in host/ know the app; everything else is plain modules in editor/.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { BoxEditor } from "./editor/widget.js";
import { facesOf, graphsOf, innerEnd } from "./editor/wires.js";
import { translator } from "./editor/model/words.js";
import { hostOf } from "./host/host_of.js";
import { watchPictures } from "./host/images.js";
import { isLight, wheel } from "./host/page.js";
import { forgetLoras, knownLoras } from "./host/loras.js";
import { DRAWING, editors, keepRun, keyOf, rootGraph } from "./host/memory.js";

const NODE = "BoxwrightBoxEditor";
const WIDGET = "BOXWRIGHT_BOX_EDITOR"; // the type of its drawing's widget, as nodes/box_editor.py names it
const HEARTBEAT = 500; // ms: changes that come without an event, such as the zoom or a theme
const START_SIZE = [820, 760];
const MIN_HEIGHT = 420;
const PROMPT_HEIGHT = 60; // the most that the prompt's text takes of the node: what is left is the canvas's
const AFTERLIFE = 3000; // ms: how long the host may take to put a new node in the place of an old one
const FRAMES = 20; // the same for its element

const owners = new WeakMap(); // element -> the node and editor that it belongs to
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
        forgetLoras();
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
    const editor = new BoxEditor(hostOf(node, name, access, t));
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

// node -> {since, focus, lens, tool, brush} of an editor that went away in use: the next one takes over
const gone = new Map();

function leave(editor, node) {
    const focus = editor.stage.hadFocus(), lens = editor.isFull ? editor.stage.lens.value : null;
    const { tool, brush } = editor.stage.freehand;
    editor.setFull(false);
    if (!focus && !lens && tool === "box") return;
    gone.set(keyOf(node, editor.host.name), { since: performance.now(), focus, lens, tool, brush });
}

/** Take the focus, the full screen and the tool of the editor that this one replaces. */
function comeBack(editor, node) {
    const key = keyOf(node, editor.host.name), left = gone.get(key);
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
    const key = editor.element.dataset.node = keyOf(node, editor.host.name);
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
    const shown = new Map(); // name of an input -> the widget with its editor
    const look = () => node.inputs?.forEach((input) => {
        const projected = input._widget;
        if (!node.graph || projected?.type !== WIDGET || projected.editor) return;
        shown.get(input.name)?.onRemove?.(); // the host has made the input's widget anew: the page would keep both
        input._widget = faceOf(node, input, projected);
        shown.set(input.name, input._widget);
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
    const editor = new BoxEditor(hostOf(node, input.name, access, t));
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

/** The number of a workflow if it is another open one than the one that is shown, else null. */
function otherWorkflow(number) {
    const { openWorkflows = [], activeWorkflow } = app.extensionManager?.workflow ?? {};
    const isOpen = openWorkflows.some((each) => each !== activeWorkflow && each.activeState?.id === number);
    return typeof number === "string" && number !== rootGraph()?.id && isOpen ? number : null;
}

/** What a run says of a node. The host gives it to the node of that number in whatever workflow is open by then. */
function takeOutput(editor, node, output) {
    const [text, mark] = output?.boxwright_upstream ?? [], other = otherWorkflow(output?.boxwright_workflow?.[0]);
    const isWired = !other && node.inputs?.some((input) => input.name === "boxes" && (input.link ?? null) !== null);
    if (isWired && typeof text === "string" && typeof mark === "string") {
        faces(node, editor).forEach((each) => each.takeOver(text, mark));
    }
    const [image] = output?.boxwright_image ?? [], size = output?.boxwright_size;
    const told = { ...(image?.filename && { image }), ...(Array.isArray(size) && { size }) };
    keepRun(node, told, other);
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
