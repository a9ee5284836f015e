"""Rectified attention on the toy model: objects go to their boxes."""

import pytest
import torch
from measure import layout_of, score_layouts
from pack.attention_patches.host.run import install
from pack.attention_patches.rectified_attention import RectifiedAttention
from toyworld import sampling
from toyworld.layouts import LAYOUTS


@pytest.fixture(scope="module")
def unpatched(toy):
    return score_layouts(toy, lambda layout: [], "unpatched")


@pytest.fixture(scope="module")
def published(toy):
    return score_layouts(toy, RectifiedAttention(strength=1.0).edits, "rectified attention, as published")


def test_as_published_it_moves_objects_into_their_boxes(unpatched, published):
    assert published["iou"][0] > unpatched["iou"][0] + 0.1
    assert published["inside_mass"][0] > unpatched["inside_mass"][0] + 0.25


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
