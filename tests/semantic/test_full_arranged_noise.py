"""The tables of arranged noise in docs/results.md: drawn only with BOXWRIGHT_FULL, printed with -s."""

import pytest
from measure import draw, score, score_layouts
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.region_prompt import RegionPrompt
from toyworld.layouts import PHOTOGRAPHS

STANDARD = preset("standard", "boxdiff")
FILL = preset("fill", "boxdiff")
PARTS = {
    "noise": ArrangedNoise().edits,
    "standard": STANDARD.guides,
    "fill": FILL.guides,
    "couple": RegionPrompt().edits,
    "couple that confines no words": RegionPrompt(confine_end=0.0).edits,
}
COMBINATIONS = [
    ("noise",), ("noise", "standard"), ("noise", "fill"), ("standard",), ("fill",), ("couple",), ("noise", "couple"),
    ("noise", "fill", "couple"), ("standard", "couple"), ("noise", "fill", "couple that confines no words"),
    ("fill", "couple that confines no words"),
]  # fmt: skip


@pytest.mark.parametrize("parts", COMBINATIONS, ids=" + ".join)
def test_a_combination_on_the_four_layouts(toy, parts):
    scores = score_layouts(toy, lambda layout: [e for part in parts for e in PARTS[part](layout)], " + ".join(parts))
    assert scores["presence"][0] > 0.6 and scores["strange"][0] < 0.02


@pytest.mark.parametrize("parts", [(), *COMBINATIONS[:4]], ids=lambda parts: " + ".join(parts) or "unpatched")
def test_a_combination_on_boxes_of_photographs(toy, parts):
    """One picture of each of the 41 layouts."""
    name = f"photographs, {' + '.join(parts) or 'unpatched'}"
    pictures = draw(toy, lambda layout: [e for p in parts for e in PARTS[p](layout)], (0,), PHOTOGRAPHS)
    assert score(pictures, name, PHOTOGRAPHS)["strange"][0] < 0.02
