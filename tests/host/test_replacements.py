"""Nodes that had other ids: the host's own manager turns what workflows have saved into today's nodes."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import nodes as host_nodes
import pytest
import server
from app.node_replace_manager import NodeReplaceManager
from comfy_api.latest import io
from pack.nodes import replacements
from schemas import WIDGETS, golden

NODES = Path(__file__).resolve().parents[2] / "nodes"
REGIONS = io.NodeReplace(
    old_node_id="BoxwrightOldRegions",
    new_node_id="BoxwrightRegions",
    old_widget_ids=["boxes", "width", "height"],
    input_mapping=[
        {"new_id": "regions_json", "old_id": "boxes"},
        {"new_id": "width", "old_id": "width"},
        {"new_id": "height", "old_id": "height"},
        {"new_id": "phrases", "set_value": ""},
    ],
    output_mapping=[{"old_idx": 0, "new_idx": 1}],
)


@pytest.fixture
def manager(monkeypatch):
    """The host's manager as its server would hold it, with the pack's nodes known."""
    manager = NodeReplaceManager()
    monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(node_replace_manager=manager), raising=False)
    known = host_nodes.NODE_CLASS_MAPPINGS | dict.fromkeys(golden(), object)
    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", known)
    return manager


@pytest.fixture
def loaded():
    """The nodes as the host imports them, with their extension, beside those of all other tests."""
    before, name = set(sys.modules), "pack.nodes_as_loaded"
    spec = importlib.util.spec_from_file_location(name, NODES / "__init__.py", submodule_search_locations=[str(NODES)])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for each in set(sys.modules) - before:
        if each.startswith(name):
            del sys.modules[each]


def faults(entries, contracts):
    """What of replacements would lose a workflow, in lines."""
    found = []
    for each in entries:
        name = f"{each.old_node_id} -> {each.new_node_id}"
        if each.old_node_id in contracts:
            found.append(f"{name}: {each.old_node_id} is a node, and the host leads away only from ids that are none")
        if each.new_node_id not in contracts:
            found.append(f"{name}: there is no node {each.new_node_id}")
            continue
        new = contracts[each.new_node_id]
        known = {entry["id"]: entry for entry in new["inputs"]}
        mapped = [entry["new_id"] for entry in each.input_mapping or ()]
        found += [f"{name}: {each.new_node_id} has no input {key}" for key in mapped if key not in known]
        for key, entry in known.items():
            if not entry.get("optional") and "where" not in entry and key not in mapped:
                found.append(f"{name}: input {key} gets no value")
        widgets = {entry["old_id"] for entry in each.input_mapping or () if "old_id" in entry}
        for entry in each.input_mapping or ():
            kind = known.get(entry["new_id"], {}).get("type")
            if "old_id" in entry and kind in WIDGETS and entry["old_id"] not in (each.old_widget_ids or ()):
                found.append(f"{name}: {entry['old_id']} is a widget and not in old_widget_ids")
        found += [f"{name}: nothing takes {key}" for key in each.old_widget_ids or () if key not in widgets]
        for entry in each.output_mapping or ():
            if entry["new_idx"] >= len(new["outputs"]):
                found.append(f"{name}: there is no output {entry['new_idx']}")
    return found


def test_every_replacement_leads_somewhere():
    assert faults(replacements.REPLACEMENTS, golden()) == []


def changed(**values):
    return io.NodeReplace(**{**vars(REGIONS), **values})


@pytest.mark.parametrize(
    "replacement, words",
    [
        (REGIONS, None),
        (changed(old_node_id="BoxwrightReweight"), "BoxwrightReweight is a node"),
        (changed(new_node_id="BoxwrightNone"), "there is no node BoxwrightNone"),
        (changed(input_mapping=REGIONS.input_mapping[:-1]), "input phrases gets no value"),
        (changed(input_mapping=[*REGIONS.input_mapping, {"new_id": "size", "set_value": 1}]), "no input size"),
        (changed(old_widget_ids=["boxes", "width"]), "height is a widget"),
        (changed(old_widget_ids=["boxes", "width", "height", "x"]), "nothing takes x"),
        (changed(output_mapping=[{"old_idx": 0, "new_idx": 2}]), "no output 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replacement_that_would_lose_something_is_named(replacement, words):
    found = faults([replacement], golden())
    assert found == [] if words is None else words in found[0]


def test_the_host_leads_a_saved_workflow_to_todays_node(manager, loaded, monkeypatch):
    monkeypatch.setattr(loaded.replacements, "REPLACEMENTS", (REGIONS,))
    asyncio.run(loaded.BoxwrightExtension().on_load())  # as the host does, once it has the nodes
    prompt = {
        "1": {
            "class_type": "BoxwrightOldRegions",
            "inputs": {"boxes": "[]", "width": 64, "height": ["3", 0]},
            "_meta": {"title": "Regions"},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}, "_meta": {"title": "Preview"}},
    }
    manager.apply_replacements(prompt)
    assert prompt["1"]["class_type"] == "BoxwrightRegions"
    assert prompt["1"]["inputs"] == {"regions_json": "[]", "width": 64, "height": ["3", 0], "phrases": ""}
    assert prompt["2"]["inputs"]["source"] == ["1", 1]
