"""Region prompts on the toy model: attributes stay with their regions.

Thresholds lie well inside what was measured (docs/results.md); the full tables: test_full_region_prompt.py.
"""

import pytest
from attributes import HEAD, METHODS, SWAPS, line, score
from measure import SEEDS
from toyworld.layouts import LAYOUTS

FEW = (0,)


@pytest.fixture(scope="module")
def found(toy):
    print(f"\n{HEAD}")
    scores = {}
    for name in ("unpatched", "couple"):
        scores[name] = score(toy, METHODS[name], SWAPS[::2], FEW)
        print(line(name, scores[name]), flush=True)
    return scores


def test_what_a_region_shows_has_the_attributes_of_its_phrase(found):
    assert found["couple"]["filled"] >= 0.4
    assert found["couple"]["bound"] >= 0.8
    assert found["couple"]["strange"] < 0.02


def test_colours_stay_in_their_regions(found):
    assert found["couple"]["leakage"] < found["unpatched"]["leakage"] - 0.2


def test_with_a_box_constraint_objects_come_into_their_boxes(toy, unpatched):
    """The guide asks what the prompt alone would draw: a region's own text would satisfy it wherever the object is."""
    both = score(toy, METHODS["couple + box constraint"], LAYOUTS, SEEDS)
    print(f"\n{HEAD}\n{line('both', both)}")
    assert both["iou"] > unpatched["iou"][0] + 0.25
    assert both["presence"] > 0.7
    assert both["leakage"] < 0.5
