"""Box constraint on the toy model: objects go to their boxes, and only there.

Thresholds lie well inside what was measured (docs/results.md).
"""

import numpy as np
import pytest
from measure import layout_of, score_layouts
from pack.attention_patches.box_constraint import preset
from pack.attention_patches.host.run import install
from toyworld import sampling, scorer
from toyworld.layouts import LAYOUTS
from toyworld.scorer import off_palette

FEW = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def unpatched(toy):
    return score_layouts(toy, lambda layout: [], "unpatched", FEW)


def test_the_standard_preset_moves_objects_into_their_boxes(toy, unpatched):
    guided = score_layouts(toy, preset("standard", "boxdiff").guides, "box constraint, standard", FEW)
    assert guided["iou"][0] > unpatched["iou"][0] + 0.15
    assert guided["inside_mass"][0] > unpatched["inside_mass"][0] + 0.25
    assert guided["presence"][0] > unpatched["presence"][0] - 0.12


def test_the_fast_mode_moves_them_too(toy, unpatched):
    fast = score_layouts(toy, preset("standard", "fast").guides, "box constraint, fast", FEW[:2])
    assert fast["iou"][0] > unpatched["iou"][0] + 0.08


def test_boxes_elsewhere_do_not_bring_objects_into_these(toy):
    """The control: guided into the mirror image of the layout, scored with the layout."""
    model, clip, vae = toy
    case = LAYOUTS[1]
    mirrored = [(phrase, (1 - x - w, 1 - y - h, w, h)) for phrase, (x, y, w, h) in case.regions]
    scores = {}
    for name, regions in (("true", case.regions), ("mirrored", mirrored)):
        positive, layout = layout_of(clip, case.prompt, regions)
        patched = install(model, layout, preset("standard", "boxdiff").guides(layout))
        images = sampling.sample(patched, vae, positive, sampling.encode(clip, ""), FEW)
        scores[name] = scorer.summarise([scorer.score_image(image, case.expected) for image in images])["iou"][0]
        strange = float(np.mean([off_palette(image) for image in images]))
        print(f"\n{name} boxes: IoU {scores[name]:.3f}, strange pixels {strange:.4f}")
        assert strange < 0.02
    assert scores["mirrored"] < scores["true"] - 0.15
