"""A second server process in the place of one that ended in the middle of its work: what was drawn is drawn again."""

import contextlib
import os
import sys
import time
import uuid
from pathlib import Path

import many_prompts
import pytest
import test_wrong_input as single
from wb_environment import host_at
from wb_server import base_directory, running_server

FULL = bool(os.environ.get("BOXWRIGHT_FULL"))
EVERY = 1 if FULL else 4  # template


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts a server on folders that outlive it."""
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path))
    host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    with base_directory() as base:
        yield lambda: running_server(Path(sys.executable), host, directory=lambda: contextlib.nullcontext(base))


def test_a_restarted_server_draws_the_same(started):
    """Anew from the history of the first, in the other order; and then, asked once more, from its cache."""
    with started() as server:
        graphs = many_prompts.graphs(server.get_json("/object_info"))[::EVERY]
        before = [many_prompts.shown(server, many_prompts.run(server, graph)) for graph in graphs]
        history = list(server.get_json("/history").values())
        assert [entry["prompt"][2].keys() for entry in history] == [graph.keys() for graph in graphs]
        kill_at_work(server)
    with started() as server:
        assert server.get_json("/history") == {}
        for entry, expected in reversed(list(zip(history, before, strict=True))):
            graph = entry["prompt"][2]
            done = many_prompts.run(server, graph)
            # Loaders and texts of a prompt before it may be kept, where there is memory; not what draws.
            assert cached(done) < graph.keys(), graph
            assert many_prompts.same(many_prompts.shown(server, done), expected), graph
            done = many_prompts.run(server, graph)
            again = many_prompts.shown(server, done)  # the host shows the pictures again, and not all texts
            assert cached(done) and again, graph
            assert many_prompts.same(again, {name: expected[name] for name in again}), graph


def cached(done):
    """The nodes of a prompt that the server had results of."""
    return {name for kind, data in done["status"]["messages"] if kind == "execution_cached" for name in data["nodes"]}


def kill_at_work(server):
    """End the server without a word while it samples."""
    server.queue(single.good(sampler={"steps": 10_000, "seed": 77}), uuid.uuid4().hex)
    end = time.monotonic() + 60
    while not server.get_json("/queue")["queue_running"] and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(2)  # past its first steps
    assert server.get_json("/queue")["queue_running"]
    server.process.kill()
    server.process.wait()
