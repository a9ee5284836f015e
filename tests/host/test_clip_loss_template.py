"""The muted part of the template of Loss Guidance, which users unmute when they have the files of a CLIP.

The host's loaders take such files in their real sizes only: here the small random pair stands in the loaders' place.
"""

import sys
from pathlib import Path

import pytest
import robust
import torch
from graph_sense import VISION

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from wb_demo import load_workflow
from wb_graph import MUTED, to_api
from wb_templates import for_toy, template

OUTPUTS = {"CLIPVisionLoader": 0, "CLIPLoader": 1}  # loader -> which output of the pair
SHORT = {"steps": 2, "width": 64, "height": 64, "batch_size": 1, "crops": 2}


@pytest.fixture(scope="module", autouse=True)
def registered(toy, tmp_path_factory):
    with robust.registered(toy, tmp_path_factory.mktemp("robust")):
        yield


def patched(info, unmuted):
    """What the patched half of the template draws, without or with its muted nodes."""
    workflow = for_toy(load_workflow(template("loss_guidance")))
    muted = [node for node in workflow["nodes"] if node["mode"] == MUTED]
    assert {node["type"] for node in muted} == {*OUTPUTS, "BoxwrightClipLoss"}
    for node in muted:
        node["mode"] = 0 if unmuted else MUTED
    graph = to_api(workflow, info)
    given = {
        number: ["pair", OUTPUTS[node["class_type"]]] for number, node in graph.items() if node["class_type"] in OUTPUTS
    }
    graph = {number: node for number, node in graph.items() if number not in given}
    for node in graph.values():
        inputs = node["inputs"]
        inputs |= {name: value for name, value in SHORT.items() if isinstance(inputs.get(name), int)}
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] in given:
                inputs[name] = given[value[0]]
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "RobustToy", "inputs": {}}
        if node["class_type"] == "SaveImage":
            saved = inputs.pop("filename_prefix"), inputs.pop("images")
            node |= {"class_type": "Look", "inputs": {"value": saved[1]}, "wanted": saved[0].endswith("/patched")}
    graph = {number: node for number, node in graph.items() if node.pop("wanted", True)}
    graph["pair"] = {"class_type": VISION, "inputs": {}}
    done = robust.Host("none").run(graph)
    assert done.kind == "drawn", done.words
    (found,) = done.found
    return found


def test_the_template_draws_with_and_without_the_nodes_that_are_muted(object_info):
    alone, both = patched(object_info, False), patched(object_info, True)
    assert torch.equal(alone, patched(object_info, False))
    assert not torch.equal(alone, both)
