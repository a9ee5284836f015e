// Where the value of an input comes from: walks the host's graph, through reroutes and in and out of subgraphs.

const SUBGRAPH_INPUTS = -10; // the host's number for the node from which a subgraph's inputs start
const MUTED = 2, BYPASSED = 4; // modes of a node
const MAX_STEPS = 64;

/**
 * What an input is wired to: null if to nothing, else {title, value}: the node at the other end, and the value it will
 * send if that can be read from the graph, else undefined. `hosts`: graph -> the nodes that show it as a subgraph.
 */
export function sourceOf(node, name, hosts) {
    const input = node.inputs?.find((each) => each.name === name);
    const link = input && linkOf(node.graph, input.link);
    return link ? followed(node.graph, link, hosts, MAX_STEPS) : null;
}

/** A graph and all subgraphs of its workflow. */
export function graphsOf(root) {
    return [root, ...(root?.subgraphs?.values?.() ?? [])];
}

/**
 * Every node of a workflow that shows `graph` as a subgraph; only those of `through`, if there are any: who looks from
 * there means this copy.
 */
export function hostsOf(root, graph, through = []) {
    const meant = through.filter((node) => node.subgraph === graph);
    return meant.length ? meant : subgraphNodes(root).filter((node) => node.subgraph === graph);
}

/**
 * {host, input} of the inputs of subgraph nodes, however far out, that keep the value of the input `name` of `node`:
 * nothing sends it to them.
 */
export function facesOf(root, node, name) {
    const leadsHere = (end) => end?.node === node && end.input.name === name;
    return subgraphNodes(root).flatMap((host) => (host.inputs ?? [])
        .filter((input) => !linkOf(host.graph, input.link) && leadsHere(innerEnd(host, input)))
        .map((input) => ({ host, input })));
}

/** The host's name for a node in a workflow, in the table of what runs have shown. */
export function locatorOf(root, node) {
    return node.graph === root ? String(node.id) : `${node.graph?.id}:${node.id}`;
}

/**
 * The {node, input} at the inner end of a subgraph node's input, and `hosts`: the subgraph nodes passed, the outermost
 * first; or null.
 */
export function innerEnd(node, input, steps = MAX_STEPS) {
    const slot = node.subgraph?.inputs?.find((each) => each.name === input.name);
    for (const id of slot?.linkIds ?? []) {
        const link = linkOf(node.subgraph, id), inner = link && node.subgraph.getNodeById(link.target_id);
        const target = inner?.inputs?.[link.target_slot];
        if (!target) continue;
        if (!inner.subgraph) return { node: inner, input: target, hosts: [node] };
        const end = steps > 0 ? innerEnd(inner, target, steps - 1) : null;
        return end && { ...end, hosts: [node, ...end.hosts] };
    }
    return null;
}

function subgraphNodes(root) {
    return graphsOf(root).flatMap((each) => (each?.nodes ?? []).filter((node) => node.subgraph));
}

function linkOf(graph, id) {
    if (id === null || id === undefined || !graph) return null;
    return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

function followed(graph, link, hosts, steps) {
    if (steps <= 0) return { title: "", value: undefined };
    const further = (otherGraph, other) => followed(otherGraph, other, hosts, steps - 1);
    if (Number(link.origin_id) === SUBGRAPH_INPUTS) {
        const around = hosts(graph), [host] = around;
        if (!host) return { title: "", value: undefined };
        if (around.length > 1) return { title: host.title, value: undefined }; // each may send another value
        return slotValue(host, host.inputs?.[link.origin_slot], further);
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin || origin.mode === MUTED || origin.mode === BYPASSED) return { title: origin?.title ?? "", value: undefined };
    if (origin.subgraph) {
        const inner = linkOf(origin.subgraph, origin.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
        return inner ? further(origin.subgraph, inner) : { title: origin.title, value: undefined };
    }
    if (origin.type === "Reroute") {
        const before = linkOf(graph, origin.inputs?.[0]?.link);
        return before ? further(graph, before) : { title: origin.title, value: undefined };
    }
    const name = sentWidget(origin, link.origin_slot);
    if (!name) return { title: origin.title, value: undefined };
    return slotValue(origin, origin.inputs?.find((input) => input.widget?.name === name) ?? { name }, further);
}

/** The name of the widget whose value a node sends out as it is, or null: primitives, and our editor's own. */
function sentWidget(node, slot) {
    if (node.type === "PrimitiveNode") return node.widgets?.[0]?.name ?? null;
    if (String(node.type).startsWith("Primitive") && node.outputs?.length === 1) return "value";
    const output = node.outputs?.[slot]?.name;
    return node.type === "BoxwrightBoxEditor" && ["width", "height", "prompt"].includes(output) ? output : null;
}

/** The value of an input that has a widget: the wire's if it is wired, else the widget's. */
function slotValue(node, input, further) {
    const link = linkOf(node.graph, input?.link);
    if (link) return further(node.graph, link);
    const name = input?.widget?.name ?? input?.name;
    return { title: node.title, value: node.widgets?.find((widget) => widget.name === name)?.value };
}
