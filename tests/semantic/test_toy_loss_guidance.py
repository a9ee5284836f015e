"""Loss Guidance, Region Strength and Prompt Fit on the toy model; `pytest -s` prints what docs/results.md shows."""

import comfy.sample
import pytest
import torch
from pack.attention_patches.core.pictures import Part, PictureGuide
from pack.attention_patches.core.types import Box, Region, StepWindow
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_fit import fit_prompt
from pack.attention_patches.host.samplers.region_strength import redrawn_by_strength
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.attention_patches.samplers.prompt_fit import PromptFit
from pack.attention_patches.samplers.region_strength import RegionStrength
from picture_edits import psnr
from toyworld import sampling

SIZE = (128, 128)  # a quarter of the toy's own: enough to see a colour by
STRENGTHS = (2.0, 4.0, 8.0, 16.0, 32.0)
BLUE = (0.15, 0.35, 0.9)
LEFT = Box(0.0, 0.0, 0.5, 1.0)


def draw(toy, model, prompt, seeds=(0,), steps=8):
    _, clip, vae = toy
    positive = prompt if isinstance(prompt, list) else sampling.encode(clip, prompt)
    return sampling.sample(model, vae, positive, sampling.encode(clip, ""), list(seeds), steps=steps, size=SIZE)


@pytest.mark.parametrize("through", ["direct", "through model"])
def test_a_stronger_guide_draws_an_object_nearer_to_a_colour_and_keeps_the_rest(toy, through):
    prompt = "a red circle on a white background"
    plain = draw(toy, toy[0], prompt)
    red = (plain[0, ..., 0] - plain[0, ..., 2]) > 0.25
    rows, columns = (red.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    inside = torch.zeros(1, *SIZE)
    inside[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1.0

    def away(picture):
        return float((picture[inside > 0.5].mean(dim=0) - torch.tensor(BLUE)).norm())

    distances, outside = [away(plain)], []
    print(f"\n{through}; without: {distances[0]:.3f} from the colour", end="")
    for strength in STRENGTHS:
        # From when the composition is settled: before, all of the picture would follow.
        guide = PictureGuide(ColorLoss((BLUE,)), (Part(inside[0]),), strength, StepWindow(0.5, 1.0), through=through)
        drawn = draw(toy, guide_by_pictures(toy[0], guide, toy[2]), prompt)
        distances.append(away(drawn))
        outside.append(psnr(drawn, plain, inside))
        print(f"\nstrength {strength:g}: {distances[-1]:.3f} from the colour, rest {outside[-1]:.1f} dB", end="")
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.75 * distances[0]
    assert min(outside) >= 30.0


def picture_of(toy, prompt, seed=3):
    """A picture of the toy's own, [1, H, W, 3], and its latent."""
    picture = draw(toy, toy[0], prompt, (seed,), 12)
    return picture, toy[2].encode(picture)


def redraw(toy, model, conditioning, latent, denoise, steps=8, **options):
    """Image to image with fixed noise: [1, H, W, 3]."""
    _, clip, vae = toy
    found = comfy.sample.sample(
        model,
        sampling.noise_for(1, SIZE),
        steps,
        3.0,
        "euler",
        "normal",
        conditioning,
        sampling.encode(clip, ""),
        latent,
        denoise=denoise,
        disable_pbar=True,
        seed=1,
        **options,
    )
    return vae.decode(found).float()


def test_each_region_changes_as_much_as_it_may(toy):
    picture, samples = picture_of(toy, "a red circle on a white background")
    regions = (Region("left", LEFT), Region("right", Box(0.5, 0.0, 0.5, 1.0)))
    strengths = RegionStrength(0.0, 0.0).map_of(regions, (0.9, 0.3), (16, 16))
    model, latent = redrawn_by_strength(toy[0], {"samples": samples}, strengths)
    wanted = sampling.encode(toy[1], "a blue star on a black background")
    drawn = redraw(toy, model, wanted, latent["samples"], 1.0, noise_mask=latent["noise_mask"])
    kept = toy[2].decode(samples).float()
    left, right = (psnr(drawn[:, :, side], kept[:, :, side]) for side in (slice(0, 56), slice(72, None)))
    print(f"\nstrength 0.9: {left:.1f} dB from the picture, 0.3: {right:.1f} dB", end="")
    assert right > left + 6


def test_a_fitted_prompt_draws_its_picture_and_goes_back_to_the_text(toy):
    picture, samples = picture_of(toy, "a large red circle on a white background")
    text = sampling.encode(toy[1], "a large blue circle on a white background")
    settings = PromptFit(steps=40, learning_rate=0.02)
    found = fit_prompt(toy[0], samples, text, settings, seed=0)
    kept = toy[2].decode(samples).float()
    print(f"\nloss on the same noise {found.before:.4f} before, {found.after:.4f} after", end="")
    bluer, near_to = [], []
    for towards in (0.0, 0.25, 0.5, 0.75, 1.0):
        blended = torch.lerp(found.conditioning[0][0], text[0][0], towards)
        drawn = redraw(toy, toy[0], [[blended, text[0][1]]], samples, 0.6)
        bluer.append(float((drawn[..., 2] - drawn[..., 0]).mean()))
        near_to.append(psnr(drawn, kept))
        print(f"\ntowards the text {towards:g}: {near_to[-1]:.1f} dB, blue - red {bluer[-1]:.3f}", end="")
    source = redraw(toy, toy[0], sampling.encode(toy[1], "a large red circle on a white background"), samples, 0.6)
    print(f"\nthe prompt that the picture was drawn with: {psnr(source, kept):.1f} dB", end="")
    assert found.after < 0.8 * found.before
    assert near_to[0] > near_to[-1] + 1
    assert near_to[0] > psnr(source, kept) - 3  # not better than the true prompt (docs/results.md), near to it
    assert bluer == sorted(bluer)
