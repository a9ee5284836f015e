// Where a wired value comes from, on graphs as the host keeps them.

import assert from "node:assert/strict";
import test from "node:test";

import { facesOf, graphsOf, hostsOf, innerEnd, locatorOf, sourceOf } from "../../web/editor/wires.js";

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

/** An editor in a subgraph in a subgraph; two copies of the outer one stand in the root graph. */
function nested() {
    const node = { id: 1, type: "BoxwrightBoxEditor", inputs: [{ name: "regions_json", link: 1 }, { name: "width", widget: { name: "width" }, link: 2 }] };
    const slots = () => [{ name: "drawing", linkIds: [1] }, { name: "width", linkIds: [2] }];
    const wired = (links) => [{ name: "drawing", link: links?.[0] ?? null }, { name: "width", widget: { name: "width" }, link: links?.[1] ?? null }];
    const inside = graph([node], { 1: [-10, 0, 1, 0], 2: [-10, 1, 1, 1] }, { id: "inside", inputs: slots() });
    const middle = { id: 1, title: "Middle", subgraph: inside, inputs: wired([1, 2]) };
    const around = graph([middle], { 1: [-10, 0, 1, 0], 2: [-10, 1, 1, 1] }, { id: "around", inputs: slots() });
    const copy = (id, width) => ({ id, title: `Copy ${id}`, subgraph: around, inputs: wired(), widgets: [{ name: "width", value: width }] });
    const copies = [copy(1, 640), copy(2, 320)];
    const root = graph(copies, {}, { id: "root", subgraphs: new Map([["inside", inside], ["around", around]]) });
    return { root, around, inside, middle, copies, node };
}

test("who looks from one of two copies of a subgraph is told what that one sends", () => {
    const { root, copies, middle, node } = nested();
    for (const host of copies) {
        const { hosts } = innerEnd(host, host.inputs[0]);
        assert.deepEqual(hosts, [host, middle]);
        const found = sourceOf(node, "width", (graph) => hostsOf(root, graph, hosts));
        assert.deepEqual(found, { title: host.title, value: host.widgets[0].value });
    }
    assert.equal(sourceOf(node, "width", (graph) => hostsOf(root, graph)).value, undefined);
});

test("a drawing is kept on the outermost faces that nothing feeds", () => {
    const { root, around, middle, node } = nested();
    const keepers = () => facesOf(root, node, "regions_json").map(({ host, input }) => [host.title, input.name]);
    assert.deepEqual(keepers(), [["Copy 1", "drawing"], ["Copy 2", "drawing"]]);
    middle.inputs[0].link = null;
    around.inputs[0].linkIds = [];
    assert.deepEqual(keepers(), [["Middle", "drawing"]]);
});

test("a node in a subgraph is not the one of its number in the root graph", () => {
    const { root, inside, copies, node } = nested();
    assert.deepEqual([locatorOf(root, copies[0]), locatorOf(root, node)], ["1", "inside:1"]);
    assert.ok(graphsOf(root).includes(inside) && !graphsOf({ ...root, subgraphs: new Map() }).includes(inside));
});
