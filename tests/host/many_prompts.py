"""The templates as many prompts for a real server, and their results."""

import io
import itertools
import time
import uuid
from pathlib import Path

import numpy as np
import wb_templates as templates
from PIL import Image
from wb_demo import load_workflow
from wb_graph import to_api

ROOT = Path(__file__).resolve().parents[2]
FEW = {"steps": 2, "draws": 1, "batch_size": 1}
TRAINING = "TrainLoraNode"  # the host's, and slow
LIMIT = 300  # seconds of one prompt


def graphs(object_info):
    """The templates in the host's API format, with few steps."""
    paths = sorted((ROOT / "example_workflows").glob("*.json"))
    found = [to_api(templates.for_toy(load_workflow(path)), object_info) for path in paths]
    return [_few(graph) for graph in found if TRAINING not in {node["class_type"] for node in graph.values()}]


def endless(object_info):
    """The templates in turn, each with seeds of its own, for ever."""
    own = graphs(object_info)
    for number in itertools.count(1):
        yield from (_seeded(graph, number) for graph in own)


def _few(graph):
    return _with_inputs(graph, lambda inputs: {name: FEW[name] for name in inputs if name in FEW})


def _seeded(graph, seed):
    names = ("seed", "noise_seed")
    return _with_inputs(graph, lambda inputs: {n: seed for n in names if isinstance(inputs.get(n), int)})


def _with_inputs(graph, changes):
    return {name: {**node, "inputs": {**node["inputs"], **changes(node["inputs"])}} for name, node in graph.items()}


def run(server, graph):
    """Queue a prompt and wait for its end; what the server's history has of it."""
    number = server.queue(graph, uuid.uuid4().hex)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        history = server.get_json(f"/history/{number}")
        if number in history:
            status = history[number]["status"]
            assert status["status_str"] == "success", status["messages"][-1]
            return history[number]
        server.check_alive()
        time.sleep(0.05)
    raise AssertionError(f"a prompt was not done within {LIMIT} s")


def shown(server, done):
    """Of what a prompt has shown: node -> its pictures as numbers, and all else as it stands in the history."""
    found = {}
    for name, output in done["outputs"].items():
        rest = {key: value for key, value in output.items() if key != "images"}
        pictures = [
            np.asarray(Image.open(io.BytesIO(server.get("/view", **file)))) for file in output.get("images", ())
        ]
        found[name] = pictures, rest
    return found


def same(one, other):
    """Whether two prompts have shown the same, to the last bit."""
    return one.keys() == other.keys() and all(
        len(one[name][0]) == len(other[name][0])
        and all(np.array_equal(a, b) for a, b in zip(one[name][0], other[name][0], strict=True))
        and one[name][1] == other[name][1]
        for name in one
    )
