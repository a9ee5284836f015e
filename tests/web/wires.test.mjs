// Where a wired value comes from, on graphs as the host keeps them.

import assert from "node:assert/strict";
import test from "node:test";

import { hostsOf, innerEnd, sourceOf } from "../../web/editor/wires.js";

/** A graph of nodes {id, type, ...} and links {id: [origin, slot, target, slot]}. */
function graph(nodes, links = {}, more = {}) {
    const made = { nodes, ...more };
    const wires = Object.fromEntries(Object.entries(links).map(([id, [origin_id, origin_slot, target_id, target_slot]]) => (
        [id, { id: Number(id), origin_id, origin_slot, target_id, target_slot }])));
    made.getNodeById = (id) => nodes.find((node) => String(node.id) === String(id));
    made.getLink = (id) => wires[id];
    for (const node of nodes) node.graph = made;
    return made;
}

const editor = (link) => ({ id: 1, type: "BoxwrightBoxEditor", inputs: [{ name: "width", widget: { name: "width" }, link }], outputs: [{ name: "regions" }, { name: "prompt" }] });
const number = (id, value, more = {}) => ({ id, type: "PrimitiveInt", title: `Int ${id}`, inputs: [], outputs: [{ name: "INT" }], widgets: [{ name: "value", value }], ...more });
const reroute = (id, link) => ({ id, type: "Reroute", title: "Reroute", inputs: [{ name: "", link }], outputs: [{ name: "" }] });
const none = () => [];

test("primitives are read, through reroutes and primitives that are wired themselves", () => {
    const node = editor(3);
    graph([node, number(2, 640), reroute(3, 1), number(4, 5, { inputs: [{ name: "value", widget: { name: "value" }, link: 2 }] })],
        { 1: [2, 0, 3, 0], 2: [3, 0, 4, 0], 3: [4, 0, 1, 0] });
    assert.deepEqual(sourceOf(node, "width", none), { title: "Int 2", value: 640 });
    assert.equal(sourceOf(node, "height", none), null);
    node.inputs[0].link = null;
    assert.equal(sourceOf(node, "width", none), null);
});

test("what cannot be read is named, not guessed", () => {
    for (const origin of [
        { id: 2, type: "EmptyImage", title: "Empty", inputs: [], outputs: [{ name: "width" }], widgets: [{ name: "width", value: 9 }] },
        number(2, 640, { mode: 2, title: "Empty" }), number(2, 640, { mode: 4, title: "Empty" }),
    ]) {
        const node = editor(1);
        graph([node, origin], { 1: [2, 0, 1, 0] });
        assert.deepEqual(sourceOf(node, "width", none), { title: "Empty", value: undefined });
    }
});

test("a ring of reroutes ends", () => {
    const node = editor(1);
    graph([node, reroute(2, 2), reroute(3, 3)], { 1: [2, 0, 1, 0], 2: [3, 0, 2, 0], 3: [2, 0, 3, 0] });
    assert.equal(sourceOf(node, "width", none).value, undefined);
});

test("values are followed into and out of subgraphs", () => {
    const node = editor(1), inner = number(7, 96);
    const inside = graph([node], { 1: [-10, 0, 1, 0] });
    const source = graph([inner], { 1: [7, 0, -20, 0] }, { outputs: [{ linkIds: [1] }] });
    const from = { id: 5, type: "b", title: "Source", subgraph: source, outputs: [{}] };
    const host = { id: 6, type: "a", title: "Host", subgraph: inside, inputs: [{ name: "width", widget: { name: "width" }, link: 1 }], widgets: [{ name: "width", value: 32 }] };
    inside.inputs = [{ name: "width", linkIds: [1] }];
    const root = graph([from, host], { 1: [5, 0, 6, 0] });
    const hosts = (each) => hostsOf(root, each);
    assert.deepEqual(sourceOf(node, "width", hosts), { title: "Int 7", value: 96 });
    host.inputs[0].link = null;
    assert.deepEqual(sourceOf(node, "width", hosts), { title: "Host", value: 32 });
    assert.equal(innerEnd(host, host.inputs[0]).node, node);
    const second = { ...host, id: 8, widgets: [{ name: "width", value: 64 }] };
    root.nodes.push(second);
    assert.equal(sourceOf(node, "width", hosts).value, undefined, "two copies may send two values");
});
