"""The first picture with two things in two boxes: how many nodes and wires it takes, by hand and from a blueprint."""

import json
from pathlib import Path

import pytest
from browser import open_bench
from test_wrong_input import CIRCLE, STAR, node, written
from wb_demo import execute
from wb_graph import declared_inputs, widget_values

ROOT = Path(__file__).resolve().parents[2]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
NEWCOMER = {
    "checkpoint": node("CheckpointLoaderSimple", ckpt_name="toyworld.safetensors"),
    "editor": node("BoxwrightBoxEditor", regions_json=written(CIRCLE, STAR), width=64, height=64, image_opacity=0.5,
                   prompt="a red circle and a blue star"),
    "prompt": node("BoxwrightLayoutPrompt", clip=["checkpoint", 1], regions=["editor", 0], prompt="",
                   append_missing=True),
    "method": node("BoxwrightRectifiedAttention", model=["checkpoint", 0], layout=["prompt", 1], strength=1.0,
                   start=0.0, end=0.2, feather=0.1, resolutions="all", end_tokens="visible"),
    "sampler": node("KSampler", model=["method", 0], positive=["prompt", 0], negative=["prompt", 2],
                    latent_image=["editor", 7], seed=1, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal",
                    denoise=1.0),
    "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
    "show": node("PreviewImage", images=["decode", 0]),
}  # fmt: skip


def wires(graph):
    return sum(isinstance(value, list) for each in graph.values() for value in each["inputs"].values())


def test_two_things_in_two_boxes_need_seven_nodes_and_no_number_twice(server):
    assert (len(NEWCOMER), wires(NEWCOMER)) == (7, 11)
    typed = [name for each in NEWCOMER.values() for name in each["inputs"] if name in ("width", "height")]
    assert typed == ["width", "height"]
    outputs = execute(server, NEWCOMER)
    assert len(outputs["show"]["images"]) == 1


def test_a_preview_of_the_layout_is_one_more_wire(server):
    preview = node("BoxwrightRegionsPreview", regions=["editor", 0], width=0, height=0)
    graph = {name: NEWCOMER[name] for name in ("editor",)} | {"preview": preview}
    assert "on 64 x 64 pixels" in execute(server, graph)["preview"]["text"][0]


# Blueprints


def test_the_server_offers_the_blueprints(server):
    offered = server.get_json("/global_subgraphs").values()
    ours = {each["name"] for each in offered if each["info"]["node_pack"].endswith("boxwright")}
    assert ours == {"Place objects", "Regional characters", "Change this keep that"} == {p.stem for p in BLUEPRINTS}


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_saved_as_its_nodes_declare_them(path, object_info):
    """Sockets inside by name and type, outputs by place, promoted widgets by name: nothing else notices a renaming.

    What is on its face is wired to the face's inputs, not named by the numbers of the nodes inside: those are taken in
    most graphs, and the newest frontend gives others, and then shows an empty face.
    """
    blueprint = json.loads(path.read_text("utf-8"))
    (face,) = blueprint["nodes"]
    (inside,) = blueprint["definitions"]["subgraphs"]
    assert face["type"] == inside["id"]
    assert [(slot["name"], slot["type"]) for slot in face["inputs"]] == [
        (slot["name"], slot["type"]) for slot in inside["inputs"]
    ]
    nodes = {each["id"]: each for each in inside["nodes"]}
    for each in nodes.values():
        info = object_info[each["type"]]
        declared = declared_inputs(info, widget_values(each, info))
        sockets = {name for name, (_, options) in declared.items() if not options.get("socketless")}
        named = {slot["name"] for slot in each["inputs"]}
        assert sockets <= named <= declared.keys(), each["type"]
        assert all(slot["link"] for slot in each["inputs"] if slot["name"] not in sockets), each["type"]
        for slot in each["inputs"]:
            assert slot["type"] == declared[slot["name"]][0], (each["type"], slot["name"])
        assert [slot["type"] for slot in each["outputs"]] == info["output"][: len(each["outputs"])]
    for link in inside["links"]:
        origin = inside["inputs"] if link["origin_id"] == -10 else nodes[link["origin_id"]]["outputs"]
        target = inside["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
        assert origin[link["origin_slot"]]["type"] == target[link["target_slot"]]["type"] == link["type"]
    assert "proxyWidgets" not in face["properties"]
    for number, slot in enumerate(inside["inputs"]):
        (link,) = [link for link in inside["links"] if link["id"] in slot["linkIds"]][:1]
        target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
        assert (link["origin_id"], link["origin_slot"], target["link"]) == (-10, number, link["id"])
        assert ("widget" in face["inputs"][number]) == ("widget" in target), slot["name"]


@pytest.fixture(scope="module", params=["pinned", "newest"])
def page(request, chromium):
    server = request.getfixturevalue("server" if request.param == "pinned" else "newest_server")
    with open_bench(chromium, server.url, False) as bench:
        yield bench.page, server


# Load a blueprint as the host puts it into a workflow, fill in its face, and wire it. -> the graph as it would run.
PUT = """async ([blueprint, values, edit]) => {
    await app.loadGraphData(blueprint, true, false, app.extensionManager.workflow.activeWorkflow);
    const face = app.graph.nodes.find((node) => node.isSubgraphNode?.());
    const made = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const set = (node, name, value) => { node.widgets.find((widget) => widget.name === name).value = value; };
    const join = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex((each) => each.name === name));
    for (const [name, value] of Object.entries(values)) set(face, name, value);
    const checkpoint = made("CheckpointLoaderSimple"), show = made("PreviewImage");
    join(checkpoint, 0, face, "model"); join(checkpoint, 1, face, "clip");
    if (edit) {
        const image = made("EmptyImage");
        set(image, "width", 64); set(image, "height", 64);
        join(checkpoint, 2, face, "vae"); join(image, 0, face, "image"); join(face, 0, show, "images");
    } else {
        const sampler = made("KSampler"), decode = made("VAEDecode");
        set(sampler, "steps", 2);
        ["model", "positive", "negative", "latent_image"].forEach((name, slot) => join(face, slot, sampler, name));
        join(sampler, 0, decode, "samples"); join(checkpoint, 2, decode, "vae"); join(decode, 0, show, "images");
    }
    const links = app.graph.links.size ?? Object.keys(app.graph.links).length;
    const labels = face.widgets.map((widget) => widget.label);
    return { nodes: app.graph.nodes.length, links, labels, prompt: (await app.graphToPrompt()).output };
}"""


def put(page, name, values, edit=False):
    blueprint = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))
    made = page.evaluate(PUT, [blueprint, values, edit])
    graph = {key: each | {"_meta": {"title": each["class_type"]}} for key, each in made["prompt"].items()}
    return made, graph


def all_but(graph, kind, info, *names):
    """The typed inputs of the one node of a kind, and its defaults, but for some names."""
    (inputs,) = [each["inputs"] for each in graph.values() if each["class_type"] == kind]
    declared = declared_inputs(info[kind], inputs)
    typed = {name: value for name, value in inputs.items() if not isinstance(value, list) and name not in names}
    return typed, {name: default(declared[name]) for name in typed}


def default(spec):
    """A dynamic combo has none of its own: its first choice."""
    options = spec[1]
    return options["default"] if "default" in options else options["options"][0]["key"]


def pictures(server, graph):
    (show,) = [key for key, each in graph.items() if each["class_type"] == "PreviewImage"]
    return execute(server, graph)[show]["images"]


@pytest.mark.every_version
@pytest.mark.parametrize(
    "name, methods",
    [
        ("Place objects", ("BoxwrightArrangedNoise", "BoxwrightBoxConstraint")),
        ("Regional characters", ("BoxwrightRegionPrompt",)),
    ],
)
def test_a_blueprint_draws_two_things_with_five_nodes_and_nine_wires(page, object_info, name, methods):
    """At the defaults of its nodes, but for what measured best: Box Constraint's preset for arranged noise."""
    page, server = page
    drawn = {name: NEWCOMER["editor"]["inputs"][name] for name in ("regions_json", "width", "height", "prompt")}
    set_on_face = {"mode.base_ratio": 0.35} if name == "Regional characters" else {}  # of the couple alone
    best = {"BoxwrightBoxConstraint": {"preset": "fill"}}
    made, graph = put(page, name, drawn | set_on_face)
    assert (made["nodes"], made["links"]) == (5, 9)
    (editor,) = [each["inputs"] for each in graph.values() if each["class_type"] == "BoxwrightBoxEditor"]
    assert drawn.items() <= editor.items()
    for method in methods:
        typed, defaults = all_but(graph, method, object_info)
        assert typed == defaults | set_on_face | best.get(method, {})
    assert in_a_chain(graph) == list(methods)
    assert len(pictures(server, graph)) == 1


def in_a_chain(graph):
    """The kinds of nodes that the sampler's model goes through, from the checkpoint on."""
    kinds, at = [], next(each for each in graph.values() if each["class_type"] == "KSampler")
    while "model" in at["inputs"]:
        at = graph[at["inputs"]["model"][0]]
        kinds.insert(0, at["class_type"])
    return kinds[1:]


@pytest.mark.every_version
def test_the_blueprint_of_an_edit_runs(page, object_info):
    """One text on the face goes to two nodes: what the picture shows, as prompt and as where the word is looked for."""
    page, server = page
    words = {"shows": "a red circle", "shall_show": "a blue star", "without": ""}
    on_face = {"strength": 0.5, "phrase": "red circle", "seed": 7}
    made, graph = put(page, "Change this keep that", on_face | words, edit=True)
    typed, defaults = all_but(graph, "BoxwrightFlowEdit", object_info, "strength", "seed")
    assert typed == defaults
    typed, defaults = all_but(graph, "BoxwrightFindWord", object_info, "prompt", "phrase")
    assert typed == defaults
    find, edit = (
        next((key, each["inputs"]) for key, each in graph.items() if each["class_type"] == kind)
        for kind in ("BoxwrightFindWord", "BoxwrightFlowEdit")
    )
    said = {"what it shows", "words of it that change", "what it shall show", "what it must not show"}
    assert said <= set(made["labels"])
    texts = {name: graph[edit[1][name][0]]["inputs"]["text"] for name in ("source", "target", "negative")}
    assert list(texts.values()) == list(words.values())
    assert (find[1]["prompt"], find[1]["phrase"]) == ("a red circle", "red circle")
    assert (edit[1]["strength"], edit[1]["seed"], edit[1]["mask"]) == (0.5, 7, [find[0], 0])
    edit[1]["steps"], find[1]["draws"] = 4, 1
    assert len(pictures(server, graph)) == 1
