"""Arranged noise on the toy model: objects stand in their boxes, and the noise is noise as before.

Thresholds lie well inside what was measured (docs/results.md).
"""

import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from measure import ELSEWHERE, draw, layout_of, score
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.box_constraint import preset
from toyworld import sampling
from toyworld.layouts import LAYOUTS


@pytest.fixture(scope="module")
def arranged(toy):
    return draw(toy, ArrangedNoise().edits)


def test_objects_stand_in_their_boxes(arranged, unpatched):
    scores = score(arranged, "arranged noise")
    assert scores["iou"][0] > unpatched["iou"][0] + 0.15
    assert scores["inside_mass"][0] > unpatched["inside_mass"][0] + 0.25
    assert scores["presence"][0] > unpatched["presence"][0] - 0.12
    assert scores["strange"][0] < 0.01, "blotches"


def test_they_stand_in_these_boxes_and_not_in_others(arranged):
    assert score(arranged, "the same, scored with other boxes", ELSEWHERE)["iou"][0] < 0.15


@pytest.fixture(scope="module")
def filled(toy):
    fill = preset("fill", "boxdiff")
    return draw(toy, lambda layout: [*ArrangedNoise().edits(layout), *fill.guides(layout)])


def test_with_the_constraint_made_for_it_they_fill_their_boxes(filled, arranged):
    """`standard` draws them in their boxes too, and smaller: AP50 falls below that of the noise alone."""
    alone, both = score(arranged, "arranged noise"), score(filled, "arranged noise + box constraint, fill")
    assert both["iou"][0] > alone["iou"][0] + 0.15
    assert both["ap50"][0] > alone["ap50"][0] + 0.2
    assert both["presence"][0] > 0.85
    assert both["strange"][0] < 0.01, "blotches"


def test_these_stand_in_their_own_boxes_too(filled):
    assert score(filled, "the same, scored with other boxes", ELSEWHERE)["iou"][0] < 0.06


def starts(toy, case, count, arrange=True):
    """The noises that runs of `count` seeds start from, [count, 4, 32, 32]; as drawn, or arranged."""
    model, clip, _ = toy
    positive, layout = layout_of(clip, case.prompt, case.regions)
    patched = install(model, layout, ArrangedNoise().edits(layout) if arrange else [])
    seen = []

    def stop(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        seen.append(noise.clone())
        return torch.zeros_like(noise)

    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "stop", stop)
    noise = torch.cat([sampling.noise_for(1000 + seed) for seed in range(count)])
    comfy.sample.sample(
        patched,
        noise,
        2,
        1.0,
        "euler",
        "normal",
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    return seen[0]


def correlations(noise, lags=range(1, 9)):
    """Of each channel with itself `lag` cells to the right and down, [lags, 2, C]; the mean over places and rows."""
    z = noise - noise.mean(dim=(0, 2, 3), keepdim=True)
    power = (z * z).mean(dim=(0, 2, 3))
    across = [(z[..., lag:] * z[..., :-lag]).mean(dim=(0, 2, 3)) / power for lag in lags]
    down = [(z[..., lag:, :] * z[..., :-lag, :]).mean(dim=(0, 2, 3)) / power for lag in lags]
    return torch.stack([torch.stack(across), torch.stack(down)], dim=1)


@pytest.mark.parametrize("case", LAYOUTS[1:3], ids=lambda case: case.name)
def test_arranged_noise_is_white(toy, case):
    """Mean and variance of each channel are those of the draw, exactly; no lag correlates more than fresh noise may."""
    count = 48
    drawn, moved = starts(toy, case, count, arrange=False), starts(toy, case, count)
    assert torch.equal(moved.flatten(2).sort().values, drawn.flatten(2).sort().values)
    assert float((moved != drawn).double().mean()) > 0.2
    error = (count * 32 * 32) ** -0.5  # the standard deviation of one correlation of fresh noise
    assert float(correlations(drawn).abs().max()) < 5 * error
    assert float(correlations(moved).abs().max()) < 5 * error
