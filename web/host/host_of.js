// What an editor is told of the app, and what it asks of it.

import { app } from "../../../scripts/app.js";
import { hostsOf, sourceOf } from "../editor/wires.js";
import { sideOf } from "../editor/model/view.js";
import { fileAt, pictureOf, upload } from "./images.js";
import { knownLoras } from "./loras.js";
import { historyOf, keepHistory, keepPins, pinsOf, rootGraph, runOf } from "./memory.js";
import { run, snapshot, tracker } from "./undo.js";

const VIEW = "boxwright.view"; // node property: how the editor shows things; Python needs none of it

/**
 * The host of an editor that shows the value of an input of `node`. `access.inner`: on a subgraph's face, a function to
 * the {node, input} inside that the value is for: its size and prompt are shown.
 */
export function hostOf(node, name, access, t) {
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
        picture: (source, file) => pictureOf(source, file, inner()),
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
        pins: () => pinsOf(node, name),
        keepPins: (parts) => keepPins(node, name, parts),
        view: () => node.properties?.[VIEW],
        setView: (view) => {
            if (Object.keys(view).length) node.properties[VIEW] = view;
            else delete node.properties[VIEW];
        },
        recall: () => historyOf(node, name),
        keep: (history) => keepHistory(node, name, history),
        forward: forwardPointer,
        isPanning: () => Boolean(app.canvas?.read_only),
        notify: (detail) => app.extensionManager?.toast?.add({ severity: "warn", summary: "Boxwright", detail, life: 6000 }),
    };
}

/**
 * What the graph says about the picture to be, at the inner end of a face or in the node itself:
 * {width, height, prompt: text or null, opacity, sources, drawingFrom}.
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
        const read = sideOf(source.value, 0), ran = sideOf(runOf(inner).size?.[index], 0);
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

function forwardPointer(event) {
    const act = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" }[event.type];
    event.preventDefault();
    app.canvas?.[act]?.(event);
}
