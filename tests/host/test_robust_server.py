"""Two clients of one server at once, each of whom hears of its own; an executor that goes on with a cache."""

import json
import struct
import time
import uuid

import numpy as np
import pytest
import robust
import test_wrong_input as graphs
import torch
from test_wrong_input import node

TEXT = 3  # the host's number for a message that a node shows


def arranged(seed):
    """A graph with a node of ours that says what it does, while it runs."""
    method = node("BoxwrightArrangedNoise", model=["checkpoint", 0], layout=["prompt", 1], strength=1.0, block=0)
    return graphs.good(method=method, sampler={"seed": seed})


class Listening:
    """A client's connection, with everything that it is sent."""

    def __init__(self, server):
        self.name, self.events, self.lines = uuid.uuid4().hex, [], []
        self.socket = server.events(self.name)

    def hear(self, seconds, always=False):
        """Take what comes, until the prompt is done or the time is over; or for all of the time."""
        self.socket._socket.settimeout(0.2)
        end = time.monotonic() + seconds
        while time.monotonic() < end and (always or not self.done()):
            try:
                _, kind, payload = self.socket._frame()
            except TimeoutError:
                continue
            if kind == 1:
                self.events.append(json.loads(payload))
            elif kind == 2 and struct.unpack(">I", payload[:4])[0] == TEXT:
                length = struct.unpack(">I", payload[4:8])[0]
                self.lines.append((payload[8 : 8 + length].decode(), payload[8 + length :].decode()))

    def done(self):
        return any(event["type"] == "executing" and event["data"]["node"] is None for event in self.events)


def test_two_clients_hear_of_their_own(server):
    one, two = Listening(server), Listening(server)
    with one.socket, two.socket:
        ids = [server.queue(arranged(900 + number), client.name) for number, client in enumerate((one, two))]
        for client in (one, two):
            client.hear(120)
        for client in (one, two):
            client.hear(0.5, always=True)  # what was meant for the other
    for client, own in ((one, ids[0]), (two, ids[1])):
        named = {event["data"]["prompt_id"] for event in client.events if "prompt_id" in event["data"]}
        assert named == {own}, "a client has heard of another's prompt"
        said = [line for name, line in client.lines if name == "method" and "moved" in line]
        assert len(said) == 1, said
    shown = [server.get_json(f"/history/{own}")[own]["outputs"]["show"]["images"] for own in ids]
    pictures = [graphs.pictures_of(server, each) for each in shown]
    assert not np.array_equal(*pictures)
    for number, picture in enumerate(pictures):  # once more with nobody beside, and not from the cache
        again = arranged(900 + number)
        again["show"]["inputs"]["images"] = ["other", 0]
        again["other"] = {**again["decode"], "_meta": {"title": "decoded anew"}}
        assert np.array_equal(graphs.draw(server, again), picture)


# --- an executor with what another has kept ---


@pytest.fixture(scope="module")
def registered(toy, tmp_path_factory):
    with robust.registered(toy, tmp_path_factory.mktemp("server")):
        yield


METHODS = {
    "BoxwrightRectifiedAttention": dict(
        strength=1.0, start=0.0, end=1.0, feather=0.0, resolutions="all", end_tokens="visible"
    ),
    "BoxwrightReweight": dict(weights="red: 3", start=0.0, end=1.0, region=0, renormalize=False),
    "BoxwrightBoxConstraint": dict(mode="fast", preset="standard"),
    "BoxwrightArrangedNoise": dict(strength=1.0, block=0),
}


def patched(kind, seed):
    graph = robust.plain(seed)
    regions = graphs.written(graphs.CIRCLE, graphs.STAR)
    prompt = dict(prompt="a red circle and a blue star", append_missing=False)
    graph["regions"] = node("BoxwrightRegions", regions_json=regions, width=64, height=64, phrases="")
    graph["text"] = node("BoxwrightLayoutPrompt", clip=["toy", 1], regions=["regions", 0], **prompt)
    graph["method"] = node(kind, model=["toy", 0], layout=["text", 1], **METHODS[kind])
    graph["draw"]["inputs"]["model"] = ["method", 0]
    return graph


@pytest.mark.parametrize("cache", ["classic", "lru", "ram"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_new_executor_goes_on_with_the_cache_of_another(registered, kind, cache):
    """The patched model and the layout come from the cache, and draw what they draw where all is made anew."""
    first, second = robust.Host(cache), robust.Host(cache)
    (before,) = first.run(patched(kind, 1)).found
    second.executor.caches = first.executor.caches
    del first
    (after,) = second.run(patched(kind, 2)).found
    ran = dict(second.executor.status_messages)["execution_cached"]["nodes"]
    assert "method" in ran and "draw" not in ran
    (anew,) = robust.Host("none").run(patched(kind, 2)).found
    assert torch.equal(after, anew) and not torch.equal(after, before)
