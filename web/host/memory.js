// What outlives a node, which the host makes anew at every undo: steps, pins, what runs have told. And the editors there are.

import { app } from "../../../scripts/app.js";

export const DRAWING = "regions_json"; // the input of the drawing
const MAX_HISTORIES = 64; // nodes whose steps are remembered
const MAX_PINNED = 8; // nodes whose pins are remembered
const MAX_RUNS = 256; // nodes whose last run is remembered

export const editors = new Set(); // {node, beat, end} of each
const histories = new Map(); // node of a graph -> history
const pins = new Map(); // the same -> the parts of pictures that are pinned there: box id -> {image, x, y, width, height}
const runs = new Map(); // the same, in one workflow -> what the last run told: {size, image}

export function rootGraph() {
    return app.rootGraph ?? app.graph;
}

/** The steps of the input `name` of a node, or null. */
export function historyOf(node, name) {
    return histories.get(keyOf(node, name)) ?? null;
}

export function keepHistory(node, name, history) {
    keepLast(histories, keyOf(node, name), history, MAX_HISTORIES);
}

/** What is pinned in the drawing of the input `name` of a node. */
export function pinsOf(node, name) {
    return pins.get(keyOf(node, name)) ?? new Map();
}

export function keepPins(node, name, parts) {
    const key = keyOf(node, name);
    if (parts.size) keepLast(pins, key, parts, MAX_PINNED);
    else pins.delete(key);
}

/** What the last run told of a node: {size, image, when}, each only if it did. */
export function runOf(node) {
    const told = [runKey(node), strayKey(rootGraph()?.id, node)].map((key) => runs.get(key) ?? { when: -1 });
    return told[1].when > told[0].when ? told[1] : told[0];
}

/** Remember what a run tells of a node; `workflow`: of another workflow than the one that is open. */
export function keepRun(node, told, workflow = null) {
    const key = workflow ? strayKey(workflow, node) : runKey(node);
    keepLast(runs, key, { ...runs.get(key), ...told, when: performance.now() }, MAX_RUNS);
}

/** Set a key, and forget the ones that were set longest ago. */
function keepLast(map, key, value, count) {
    map.delete(key);
    map.set(key, value);
    if (map.size > count) map.delete(map.keys().next().value);
}

/** What tells an input of a node from all others of the open workflows. */
export function keyOf(node, name) {
    const workflow = app.extensionManager?.workflow?.activeWorkflow?.path ?? "";
    const graph = node.graph === rootGraph() ? "" : node.graph?.id ?? "";
    return `${workflow}/${graph}/${node.id}/${name}`;
}

/** The root's number tells workflows apart that are opened under one name, one after the other. */
function runKey(node) {
    return `${rootGraph()?.id}/${keyOf(node, DRAWING)}`;
}

/** A node of a workflow that is not open right now: its number in the outermost graph is all that a run tells. */
function strayKey(workflow, node) {
    return `${workflow}//${node.graph === rootGraph() ? node.id : null}`;
}
