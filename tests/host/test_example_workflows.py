"""Every example workflow opens, fits the nodes of the running server, and draws its pictures there."""

import json
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import wb_templates as templates
from wb_common import Failure
from wb_demo import execute, load_workflow, save_pictures
from wb_graph import NOTES, OPEN_ENDED, declared_inputs, to_api, widget_values

PATCHED = {"prompt_to_prompt": 2}  # pictures of one seed where there are several: source and target
FEWER = {"steps": ({20}, 8), "batch_size": ({4}, 1), "draws": ({4, 10}, 2)}  # input -> (as saved, as run here)
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
PIXELS_OF_PICTURE = 65_000  # bytes of a template's picture, at most


def pixels(file):
    """A picture as uint8 [256, 256, 3]."""
    image = np.asarray(Image.open(file))
    assert image.shape == (256, 256, 3)
    return image


def test_the_server_offers_the_examples_as_templates(server):
    offered = server.get_json("/api/workflow_templates")["boxwright"]
    assert set(offered) == {path.stem for path in WORKFLOWS} != set()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_sockets_are_saved_as_the_nodes_declare_them(path, object_info):
    """The browser trusts the saved sockets; a renamed input or a moved output would be wired wrongly in silence."""
    for node in load_workflow(path)["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        declared = declared_inputs(info, widget_values(node, info))
        sockets = {name for name, (_, options) in declared.items() if not options.get("socketless")}
        slots = {slot["name"] for slot in node["inputs"]}
        assert slots <= sockets if node["type"] in OPEN_ENDED else slots == sockets, node["type"]
        for slot in node["inputs"]:
            assert slot["type"] == declared[slot["name"]][0], (node["type"], slot["name"])
        saved, given = [slot["type"] for slot in node["outputs"]], info["output"]
        assert saved[: len(given)] == given[: len(saved)], node["type"]  # newer hosts add outputs behind
        assert not any(slot["links"] for slot in node["outputs"][len(given) :]), node["type"]  # which nobody may need


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_agree_with_both_of_their_ends(path):
    workflow = load_workflow(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len({link[0] for link in workflow["links"]}) == len(workflow["links"]) > 0
    for number, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        source, sink = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        assert number in source["links"]
        assert sink["link"] == number
        assert source["type"] == kind and sink["type"] in (kind, "*")  # Preview as Text takes anything


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_do_not_cover_each_other_and_lie_in_one_group_each(path):
    workflow = load_workflow(path)
    title = 40  # pixels above a node's own position
    rects = [
        (node["pos"][0], node["pos"][1] - title, node["size"][0], node["size"][1] + title, node["type"])
        for node in workflow["nodes"]
    ]
    for a, b in combinations(rects, 2):
        apart = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        assert apart, (a, b)
    for x, y, width, height, kind in rects:
        holders = [
            g["title"]
            for g in workflow["groups"]
            if g["bounding"][0] <= x
            and g["bounding"][1] <= y
            and x + width <= g["bounding"][0] + g["bounding"][2]
            and y + height <= g["bounding"][1] + g["bounding"][3]
        ]
        assert len(holders) == (0 if kind in NOTES else 1), (kind, holders)


def seeds(graph, number):
    """The seed of a node that is decoded: its own, or that of the noise which is wired to it, arranged or not."""
    node = graph[number]
    if node["class_type"] in ("KSampler", "RandomNoise"):
        return [node["inputs"]["seed" if node["class_type"] == "KSampler" else "noise_seed"]]
    return seeds(graph, node["inputs"]["noise"][0]) if "noise" in node["inputs"] else []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_and_the_patch_changes_the_pictures(path, server, object_info, tmp_path):
    """Run as saved, but for fewer steps and pictures: what they show is the demo's and the semantic tests' business."""
    graph = to_api(templates.for_toy(load_workflow(path)), object_info)
    for node in graph.values():
        for name, (saved, fewer) in FEWER.items():
            if name in node["inputs"] and node["class_type"] != "TrainLoraNode":
                assert node["inputs"][name] in saved
                node["inputs"][name] = fewer
        if node["class_type"] == "TrainLoraNode":
            node["inputs"]["steps"] = 2
    decoded = {node["inputs"]["samples"][0] for node in graph.values() if node["class_type"] == "VAEDecode"}
    assert len({seed for number in decoded for seed in seeds(graph, number)}) == 1
    pictures = save_pictures(server, graph, execute(server, graph), tmp_path)
    counts = {name: len(files) for name, files in pictures.items()}
    assert counts == {"unpatched": 1, "patched": PATCHED.get(templates.stem_of(path), 1)}
    assert (pixels(pictures["unpatched"][0]) != pixels(pictures["patched"][0])).any()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_notes_can_be_read_in_both_renderers(path):
    """Nodes 2.0 sets code in dark blue on dark grey."""
    notes = [each["widgets_values"][0] for each in load_workflow(path)["nodes"] if each["type"] == "MarkdownNote"]
    assert notes and not any("`" in note for note in notes)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_names_a_checkpoint_that_users_have_and_its_size_and_says_what_it_shows(path):
    nodes = load_workflow(path)["nodes"]
    ((checkpoint,),) = [n["widgets_values"] for n in nodes if n["type"] == "CheckpointLoaderSimple"]
    model, side = templates.CHECKPOINTS[checkpoint]
    sizes = {
        node["widgets_values"][place]
        for node in nodes
        for place in templates.PIXELS.get(node["type"], ())
        if node["type"] != "GrowMask"
    }
    assert sizes <= {side, 0} and side in sizes
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] in NOTES]
    assert "Try it" in note and f"Made for {model} ({checkpoint}) at {side} x {side}." in note
    assert not any(words.search(note) for words in templates.OF_THE_TOY)
    assert note.endswith(templates.OF_THE_PICTURE)
    said = [value for node in nodes if node["type"] not in NOTES for value in node.get("widgets_values") or ()]
    assert not any(
        re.search(rf"\b{words}\b", value) for value in said if isinstance(value, str) for words in templates.WORDS
    )
    assert not any(re.search(r"\b(?:circle|square|star|heart|ring|cross)\b", str(value)) for value in said)


def test_words_for_users_lead_back_to_those_of_the_toy():
    users = list(templates.WORDS.values())
    assert len(set(users)) == len(users) and not {*users} & templates.WORDS.keys()
    for toy, user in templates.WORDS.items():
        text = f"a large {toy} and a {toy}, not {toy}s"
        changed = templates.said(text, templates.WORDS)
        assert changed == f"a large {user} and a {user}, not {toy}s"
        assert templates.said(changed, {there: here for here, there in templates.WORDS.items()}) == text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_template_has_a_title_and_a_picture(path):
    assert path.stem in templates.TITLES.values(), f"give {path.stem} a title: tools/wb_templates.py, then templates.py"
    picture = path.with_suffix(".jpg")
    assert picture.is_file(), f"python tools/templates.py --pictures {path.stem}"
    assert Image.open(picture).size == (templates.PICTURE, templates.PICTURE)
    assert np.asarray(Image.open(picture)).std() > 20 and picture.stat().st_size < PIXELS_OF_PICTURE


def test_what_pictures_show_beside_is_of_their_templates():
    """The latent of what is changed, and a sampler for the seed."""
    assert {*templates.BEFORE, *templates.SEEDS} <= templates.TITLES.keys()
    for stem, number in templates.BEFORE.items():
        (node,) = [each for each in load_workflow(templates.template(stem))["nodes"] if str(each["id"]) == number]
        assert node["outputs"][0]["type"] == "LATENT" and node["outputs"][0]["links"], stem
    for stem in templates.SEEDS:
        kinds = {node["type"] for node in load_workflow(templates.template(stem))["nodes"]}
        assert kinds & {"KSampler", "RandomNoise"}, stem


def test_every_picture_is_of_a_template():
    pictures = {path.stem for path in (ROOT / "example_workflows").glob("*.jpg")}
    assert pictures <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_variant_for_the_toy_becomes_the_template_again(path):
    """What a workflow says, but for its note and whatever only the model decides, survives the way there and back."""
    shipped = load_workflow(path)
    toy = templates.for_toy(shipped)
    assert templates.for_users(shipped) is shipped
    ((checkpoint,),) = [n["widgets_values"] for n in toy["nodes"] if n["type"] == "CheckpointLoaderSimple"]
    assert checkpoint == "toyworld.safetensors"
    named = next(n["widgets_values"][0] for n in shipped["nodes"] if n["type"] == "CheckpointLoaderSimple")
    again = templates.for_users(toy, named)
    for before, after in zip(shipped["nodes"], again["nodes"], strict=True):
        if before["type"] not in (*NOTES, *templates.CFG):
            assert before == after


def test_a_workflow_the_host_refuses_is_one_line_naming_node_and_input(server, object_info):
    graph = to_api(templates.for_toy(load_workflow(WORKFLOWS[0])), object_info)
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["sampler_name"] = "no such sampler"
    with pytest.raises(Failure, match="KSampler .*no such sampler") as refused:
        execute(server, graph)
    assert "\n" not in str(refused.value)


def test_a_node_that_fails_is_named_with_its_message(server, object_info):
    graph = to_api(templates.for_toy(load_workflow(templates.template("rectified_attention"))), object_info)
    prompt = next(node for node in graph.values() if node["class_type"] == "BoxwrightLayoutPrompt")
    prompt["inputs"].update(prompt="a green tree", append_missing=False)
    for node in graph.values():  # the host may run the unpatched half first
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 1
    regions = next(node["inputs"]["regions_json"] for node in graph.values() if "regions_json" in node["inputs"])
    phrase = json.loads(regions)["regions"][0]["phrase"]
    with pytest.raises(Failure, match=f"BoxwrightLayoutPrompt .*{phrase}"):
        execute(server, graph)
