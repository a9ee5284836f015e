"""Box constraint on the toy model: objects go to their boxes, and only there.

Thresholds lie well inside what was measured (docs/results.md).
"""

from dataclasses import replace

import pytest
from measure import SEEDS, draw, score, score_layouts
from pack.attention_patches.box_constraint import preset
from pack.attention_patches.rectified_attention import RectifiedAttention
from toyworld.layouts import LAYOUTS

STANDARD = preset("standard", "boxdiff")
# The same layouts turned half round: other boxes of the same sizes.
ELSEWHERE = [
    replace(case, regions=tuple((phrase, (1 - x - w, 1 - y - h, w, h)) for phrase, (x, y, w, h) in case.regions))
    for case in LAYOUTS
]


@pytest.fixture(scope="module")
def guided(toy):
    return draw(toy, STANDARD.guides)


def test_the_standard_preset_moves_objects_into_their_boxes(guided, unpatched):
    scores = score(guided, "box constraint, standard")
    assert scores["iou"][0] > unpatched["iou"][0] + 0.15
    assert scores["inside_mass"][0] > unpatched["inside_mass"][0] + 0.25
    assert scores["presence"][0] > unpatched["presence"][0] - 0.12
    assert scores["strange"][0] < 0.01, "blotches"


def test_they_go_to_these_boxes_and_not_to_others(guided):
    assert score(guided, "the same, scored with other boxes", ELSEWHERE)["iou"][0] < 0.06


def test_with_rectified_attention_more_of_them_arrive(toy, unpatched):
    both = score_layouts(
        toy, lambda layout: [*RectifiedAttention().edits(layout), *STANDARD.guides(layout)], "with rectified attention"
    )
    assert both["iou"][0] > unpatched["iou"][0] + 0.2
    assert both["presence"][0] > unpatched["presence"][0] - 0.2


def test_the_fast_mode_moves_them_too(toy, unpatched):
    fast = score_layouts(toy, preset("standard", "fast").guides, "box constraint, fast", SEEDS[: len(SEEDS) // 2])
    assert fast["iou"][0] > unpatched["iou"][0] + 0.1
