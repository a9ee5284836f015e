"""Box constraint on the toy model: objects go to their boxes, and only there.

Thresholds lie well inside what was measured (docs/results.md).
"""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import torch
from measure import ELSEWHERE, SEEDS, draw, layout_of, score, score_layouts
from pack.attention_patches.host.guidance import latent as guidance
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from toyworld import sampling
from toyworld.layouts import LAYOUTS

STANDARD = preset("standard", "boxdiff")


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


SIZES = [(64, 64), (96, 128), (192, 192), (192, 256), (320, 320)]


@pytest.mark.parametrize("size", SIZES)
def test_every_phrase_is_pulled_at_every_size(toy, size, monkeypatch):
    """At the first step, each phrase for itself: the published losses level off where another word holds the box."""
    model, clip, _ = toy
    case = LAYOUTS[1]
    positive, layout = layout_of(clip, case.prompt, case.regions)
    pulls = []

    def noted(run, guide, gradient, level):
        pulls.append(float(latent_change(run, guide, gradient, level).abs().max()) / level)
        return torch.zeros_like(gradient)

    latent_change = guidance.latent_change
    monkeypatch.setattr(guidance, "latent_change", noted)
    for number in range(len(layout.regions)):
        regions = [replace(r, strength=float(i == number)) for i, r in enumerate(layout.regions)]
        alone = replace(layout, regions=tuple(regions))
        noise = sampling.noise_for(0, size)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 20)
        guided = install(model, alone, STANDARD.guides(alone))
        comfy.sample.sample_custom(
            guided,
            noise,
            1.0,
            comfy.samplers.sampler_object("euler"),
            sigmas[:2],
            positive,
            sampling.encode(clip, ""),
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
    assert len(pulls) == 2 and min(pulls) > 0.01, "of the noise"
