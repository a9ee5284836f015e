"""Differences between nodes and what workflows have saved of them, in words, and which of them lose a workflow."""

import copy
import json
from types import SimpleNamespace

import pytest
from schemas import HOSTS_OWN, contract, differences, golden, written

BEFORE = {
    "Box": {
        "inputs": [
            {"id": "model", "type": "MODEL"},
            {"id": "step", "type": "INT", "default": 3, "min": 1, "max": 9, "step": 1},
            {"id": "mode", "type": "COMFY_DYNAMICCOMBO_V3", "options": ["fast", "good"]},
            {"id": "mode.end", "type": "FLOAT", "where": "mode is fast", "default": 0.5, "min": 0.0, "max": 1.0},
            {"id": "mode.end", "type": "FLOAT", "where": "mode is good", "default": 0.9, "min": 0.0, "max": 1.0},
            {"id": "mask", "type": "MASK", "optional": True},
            {"id": "kind", "type": "COMBO", "default": "a", "options": ["a", "b"]},
            {"id": "times", "type": "COMBO", "default": "normal", "options": HOSTS_OWN},
        ],
        "outputs": [{"id": "model", "type": "MODEL"}, {"id": "report", "type": "STRING"}],
    },
    "Gone": {"inputs": [], "outputs": []},
}


def inputs(nodes, place):
    return nodes["Box"]["inputs"][place]


def insert(place, **entry):
    return lambda nodes: nodes["Box"]["inputs"].insert(place, entry)


def setting(place, **values):
    return lambda nodes: inputs(nodes, place).update(values)


def moved(place, to):
    return lambda nodes: nodes["Box"]["inputs"].insert(to, nodes["Box"]["inputs"].pop(place))


@pytest.mark.parametrize("change, words, breaks", [
    (setting(1, default=4), "Box Constraint: input step's default 3 became 4", False),
    (setting(1, step=2), "Box Constraint: input step's step 1 became 2", False),
    (setting(1, min=2), "Box Constraint: input step's minimum 1 became 2", True),
    (setting(1, min=0), "Box Constraint: input step's minimum 1 became 0", False),
    (setting(1, max=8), "Box Constraint: input step's maximum 9 became 8", True),
    (setting(1, max=10), "Box Constraint: input step's maximum 9 became 10", False),
    (setting(1, type="FLOAT"), "Box Constraint: input step was INT and is FLOAT", True),
    (setting(3, default=0.6), "Box Constraint: input mode.end where mode is fast's default 0.5 became 0.6", False),
    (setting(5, optional=False), "Box Constraint: input mask is required now", True),
    (setting(0, optional=True), "Box Constraint: input model is optional now", False),
    (setting(6, options=["a"]), "Box Constraint: input kind has no choice 'b' any more", True),
    (setting(6, options=["a", "b", "c"]), "Box Constraint: input kind has the new choices ['c']", False),
    (setting(6, options=["b", "a"]), "Box Constraint: input kind's choices stand in another order", False),
    (setting(7, options=["normal"]),
     "Box Constraint: input times's choices the host's schedulers became ['normal']", True),
    (lambda nodes: nodes["Box"]["inputs"].pop(5), "Box Constraint: input mask is gone", True),
    (insert(8, id="clip", type="CLIP", optional=True), "Box Constraint: input clip is new", False),
    (insert(0, id="clip", type="CLIP", optional=True), "Box Constraint: input clip is new", False),
    (insert(8, id="clip", type="CLIP"), "Box Constraint: input clip is new and must be given", True),
    (insert(8, id="end", type="INT", default=1), "Box Constraint: input end is new", False),
    (moved(6, 1), "Box Constraint: input kind is moved before step, whose saved values it takes", True),
    (moved(5, 0), None, False),  # no widget: nothing is saved by its place
    (lambda nodes: nodes["Box"]["outputs"].pop(), "Box Constraint: output 2 (report) is gone", True),
    (lambda nodes: nodes["Box"]["outputs"].reverse(), "Box Constraint: output 1 was MODEL and is STRING", True),
    (lambda nodes: nodes["Box"]["outputs"][1].update(id="said"),
     "Box Constraint: output 2 was called report and is called said", False),
    (lambda nodes: nodes["Box"]["outputs"].append({"id": "mask", "type": "MASK"}),
     "Box Constraint: output 3 (mask) is new", False),
    (lambda nodes: nodes.update(New={"inputs": [], "outputs": []}), "node New is new", False),
    (lambda nodes: nodes.pop("Gone"), "node Gone is gone", True),
    (lambda nodes: nodes.update(Box=nodes.pop("Box")), "the nodes stand in another order", False),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_change_is_said_in_words(change, words, breaks):
    after = copy.deepcopy(BEFORE)
    change(after)
    found = differences(BEFORE, after, {"Box": "Box Constraint"})
    if words is None:
        assert found == []
    else:
        assert found[0].words == words
        assert any(each.breaks for each in found) == breaks


def test_a_widget_before_others_takes_their_saved_values():
    after = copy.deepcopy(BEFORE)
    insert(1, id="end", type="INT", default=1)(after)
    new, taken = differences(BEFORE, after)
    assert (new.words, new.breaks) == ("Box: input end is new", False)
    assert (taken.words, taken.breaks) == ("Box: input end is new before step, whose saved values it takes", True)


def test_a_node_that_workflows_are_led_away_from_may_go():
    after = {"Box": BEFORE["Box"]}
    (gone,) = differences(BEFORE, after, replaced={"Gone"})
    assert not gone.breaks and gone.words == "node Gone is gone (workflows are led to another)"


def test_the_file_is_read_as_it_was_written():
    assert json.loads(written(BEFORE)) == BEFORE
    assert differences(golden(), golden()) == []


def test_a_schema_becomes_its_contract():
    def entry(name, kind, **values):
        return SimpleNamespace(id=name, optional=False, get_io_type=lambda: kind, **values)

    end = entry("end", "FLOAT", default=0.5, min=0.0, max=1.0, step=0.01)
    mode = entry("mode", "COMFY_DYNAMICCOMBO_V3", options=[SimpleNamespace(key="fast", inputs=[end])])
    node = SimpleNamespace(
        inputs=[mode], outputs=[SimpleNamespace(id=None, display_name="x", get_io_type=lambda: "MASK")]
    )
    assert contract(node) == {
        "inputs": [
            {"id": "mode", "type": "COMFY_DYNAMICCOMBO_V3", "options": ["fast"]},
            {"id": "mode.end", "type": "FLOAT", "where": "mode is fast", "default": 0.5, "min": 0.0, "max": 1.0,
             "step": 0.01},
        ],
        "outputs": [{"id": "x", "type": "MASK"}],
    }  # fmt: skip
