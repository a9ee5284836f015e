"""Rectified attention on the toy model: objects go to their boxes.

Thresholds lie well inside what was measured (docs/results.md).
"""

import torch
from measure import layout_of, score_layouts
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.rectified_attention import PUBLISHED, RectifiedAttention
from toyworld import sampling
from toyworld.layouts import LAYOUTS


def test_as_published_it_moves_objects_into_their_boxes(toy, unpatched):
    published = score_layouts(toy, PUBLISHED.edits, "rectified attention, as published")
    assert published["iou"][0] > unpatched["iou"][0] + 0.15
    assert published["inside_mass"][0] > unpatched["inside_mass"][0] + 0.25
    assert published["bound"][0] > unpatched["bound"][0] + 0.15


def test_the_defaults_move_objects_and_keep_them(toy, unpatched):
    default = score_layouts(toy, RectifiedAttention().edits, "rectified attention, default settings")
    assert default["presence"][0] >= 0.9 * unpatched["presence"][0]
    assert default["iou"][0] > unpatched["iou"][0] + 0.08
    assert default["inside_mass"][0] > unpatched["inside_mass"][0] + 0.12


def test_strength_0_is_the_unpatched_picture_to_the_last_bit(toy):
    model, clip, vae = toy
    case = LAYOUTS[1]
    positive, layout = layout_of(clip, case.prompt, case.regions)
    off = install(model, layout, RectifiedAttention(strength=0.0).edits(layout))
    args = (vae, positive, sampling.encode(clip, ""), [0, 1])
    before = sampling.sample(model, *args, steps=4)
    assert torch.equal(sampling.sample(off, *args, steps=4), before)
    on = install(model, layout, RectifiedAttention().edits(layout))
    assert not torch.equal(sampling.sample(on, *args, steps=4), before)
    assert torch.equal(sampling.sample(model, *args, steps=4), before)
