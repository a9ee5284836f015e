"""Random graphs of our nodes through the host's real executor: each is drawn, or refused in one clear sentence of ours.

They are made from the server's own object info (`random_graphs.py`), and are the same every time. In the suite 100, in
all cache modes. BOXWRIGHT_FULL=1 draws 2500 more; BOXWRIGHT_GRAPHS=5000:300 those of the seeds from 5000 on, 300 in
each cache mode.
"""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import comfy.model_management
import nodes
import pytest
import robust
import torch
from random_graphs import Graph, choices, ours, pool

TRIES = 200  # seeds of graphs among which one is to be drawn
EVERY = 50  # graphs after which an ordinary picture is drawn again
MEMORY = 150  # MiB that 200 graphs may add to the process, which the host's own allocations and torch's caches make
FULL = [(cache, 1000 + 500 * i, 500) for i, cache in enumerate(robust.CACHES)]
SUITE = [("classic", 0, 25), ("lru", 50, 25), ("ram", 100, 20), ("none", 130, 15), ("ram, short", 160, 15)]
# Faults of the host that are there only with nodes of ours: the node or its file, and words of the error.
HOSTS_OWN = (
    ("ConditioningConcat", "Sizes of tensors"),  # texts of several rows, as Prompt to Prompt's are, with those of one
    ("ConditioningAverage", "must match"),  # the same
    ("nodes_perpneg.py", "'str' and 'float'"),  # an area in fractions of the picture, as its empty conditioning
    ("nodes_easycache.py", "NoneType"),  # it expects noise that only falls, and Invert and RePaint raise it
)


def chosen():
    """(cache mode, first seed, how many) of each run."""
    if wanted := os.environ.get("BOXWRIGHT_GRAPHS"):
        first, count = map(int, wanted.split(":"))
        return [(cache, first + i * count, count) for i, cache in enumerate(robust.CACHES)]
    return SUITE + (FULL if os.environ.get("BOXWRIGHT_FULL") else [])


@pytest.fixture(scope="module")
def info(object_info):
    return pool(object_info)


@pytest.fixture(scope="module", autouse=True)
def registered(toy, tmp_path_factory):
    with robust.registered(toy, tmp_path_factory.mktemp("robust")):
        yield


@pytest.fixture(scope="module")
def expected():
    """What a graph without anything of ours draws in a process that has drawn nothing else."""
    return picture()


def picture():
    (found,) = robust.Host("none").run(robust.plain()).found
    return found


def tensors(value):
    """The tensors in what reached the end of a graph."""
    if isinstance(value, torch.Tensor):
        return [value.values()] if value.is_sparse else [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for each in value for tensor in tensors(each)] if isinstance(value, (tuple, list)) else []


def run(host, graph):
    """The outcome; of a fault, or of what is not finite, whether it is there without our nodes as well.

    An error is there only if one of the same type is: bypassing may break a graph in a way of its own.
    """
    outcome = host.run(graph.nodes)
    if outcome.kind == "drawn" and not finite(outcome):
        outcome = replace(outcome, kind="fault", words="not finite")
    if outcome.kind != "fault":
        return outcome
    if any((outcome.where == node or node in outcome.words) and words in outcome.words for node, words in HOSTS_OWN):
        return replace(outcome, kind="fault of the host")
    without = robust.Host("none").run(graph.bypassed())
    faulty = not finite(without) or (without.kind == "fault" and error_of(outcome) in ("not finite", error_of(without)))
    comfy.model_management.unload_all_models()
    return replace(outcome, kind="fault of the host") if faulty else outcome


def error_of(outcome):
    """The type of the error."""
    return outcome.words.partition(":")[0]


def finite(outcome):
    return all(bool(tensor.isfinite().all()) for tensor in tensors(outcome.found))


def faults_of(seed, graph, outcome):
    """What is wrong with an outcome, in words."""
    about = f"graph {seed} ({graph.subject}; {graph.wrong or 'nothing wrong on purpose'}), {outcome.where}"
    if outcome.kind == "fault":
        return [f"{about}: {outcome.words}"]
    if outcome.kind == "refused" and not robust.well_said(outcome.words):
        return [f"{about}: said badly: {outcome.words}"]
    if outcome.kind == "refused by the host" and not graph.wrong and "ustom validation" not in outcome.words:
        return [f"{about}: not as the object info says: {outcome.words}"]
    return []


class Fails:
    """A node that raises what it is told."""

    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), "fail", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"error": ("STRING", {})}}

    def fail(self, error):
        raise {"KeyError": KeyError, "ValueError": ValueError}[error]("as told")


@pytest.mark.parametrize("other, kind", [("KeyError", "fault of the host"), ("ValueError", "fault")])
def test_another_error_without_our_nodes_is_no_excuse(monkeypatch, other, kind):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Fails", Fails)
    graph = lambda error: {"1": {"class_type": "Fails", "inputs": {"error": error}}}  # noqa: E731
    tried = SimpleNamespace(nodes=graph("KeyError"), bypassed=lambda: graph(other))
    assert run(robust.Host("none"), tried).kind == kind


def test_every_node_of_ours_is_the_subject_of_some_graph(info):
    """And a graph of one seed is the same twice."""
    subjects = {Graph(info, seed).subject for seed in range(400)}
    assert subjects == set(ours(info))
    assert Graph(info, 3).nodes == Graph(info, 3).nodes != Graph(info, 4).nodes


def test_every_node_of_ours_is_drawn_in_some_graph(info):
    """Where nothing is wrong on purpose: a node that refuses whatever it gets would pass the test below."""
    host, refused = robust.Host("classic"), {}
    for subject in ours(info):
        graphs = (graph for graph in (Graph(info, seed, subject) for seed in range(TRIES)) if not graph.wrong)
        outcomes = []
        while (outcome := host.run(next(graphs).nodes)).kind != "drawn" and len(outcomes) < 20:
            outcomes.append(outcome.words)
        if outcome.kind != "drawn":
            refused[subject] = outcomes
    assert not refused


def test_every_choice_is_drawn_in_some_graph(info):
    """Of every list and every switch of ours; in the suite of one in six."""
    host, never = robust.Host("classic"), []
    for kind, name, choice in choices(info)[:: 1 if os.environ.get("BOXWRIGHT_FULL") else 6]:
        graphs = (Graph(info, seed, kind, **{name: choice}) for seed in range(TRIES))
        graphs = (graph for graph in graphs if has(graph, kind, name, choice))
        if not any(run(host, graph).kind == "drawn" for graph in graphs):
            never.append((kind, name, choice))
    assert not never


def has(graph, kind, name, choice):
    nodes = [node for node in graph.nodes.values() if node["class_type"] == kind]
    return any(node["inputs"].get(name) == choice for node in nodes)


@pytest.mark.parametrize("cache, first, count", chosen(), ids=lambda value: str(value))
def test_random_graphs_are_drawn_or_refused(info, expected, cache, first, count):
    host, kinds, faults = robust.Host(cache), Counter(), []
    for seed in range(first, first + count):
        graph = Graph(info, seed)
        outcome = run(host, graph)
        kinds[outcome.kind] += 1
        faults += faults_of(seed, graph, outcome)
        if (seed - first + 1) % EVERY == 0 and not torch.equal(picture(), expected):
            faults.append(f"after graph {seed} a picture without our nodes is another one")
    print(cache, first, dict(kinds))
    assert not faults, "\n\n".join(faults)
    assert torch.equal(picture(), expected)
    assert kinds["drawn"] >= count // 5, kinds  # what is refused throughout says nothing


@pytest.mark.parametrize("cache", list(robust.CACHES) if os.environ.get("BOXWRIGHT_FULL") else ["lru"])
def test_memory_stays_flat(info, cache):
    """Over 208 prompts in each cache mode (48 in the suite), once the same ones have been run: no more objects of ours,
    and of memory."""
    host = robust.Host(cache)
    drawn = (graph for graph in map(partial(Graph, info), range(TRIES)) if graph.samples())
    graphs = [graph.nodes for graph in islice((each for each in drawn if run(host, each).kind == "drawn"), 8)]

    def rounds(count):
        for number in range(count):
            host.run(graphs[number % len(graphs)])
            host.run(robust.plain(number))
        return robust.alive(), robust.resident()

    objects, before = rounds(16)
    more, after = rounds(104 if os.environ.get("BOXWRIGHT_FULL") else 24)
    print(f"{cache}: objects {sum(objects.values())} -> {sum(more.values())}, {before:.0f} -> {after:.0f} MiB")
    assert not more - objects, more - objects
    assert after - before < MEMORY
