"""Inversion against the decoding it inverts, in a world where the perfect denoiser is known."""

import math
import os
import tempfile

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.samplers import inversion
from pack.attention_patches.samplers.diff_edit import pasted, sample_diff_edit
from pack.attention_patches.samplers.inversion import (
    Trajectory,
    decode,
    deviations,
    directly_inverted,
    empty_states,
    invert,
    sample_beside,
)
from toy_diffusion import FINE, LEVELS, SIGMAS, Gaussian, half_mask, picture

KINDS = pytest.mark.parametrize("kind", LEVELS)


def trajectory(kind, source, refinements=60):
    """The exact path of the source under a Gaussian world of its own mean."""
    states = empty_states(len(SIGMAS[kind]), source.shape, "memory")
    invert(Gaussian(kind, spread=0.7), source, SIGMAS[kind], LEVELS[kind], refinements, states)
    return Trajectory(tuple(SIGMAS[kind][::-1]), states, "space")


@KINDS
def test_refinements_make_the_round_trip_exact(kind):
    source, errors = picture(), []
    for refinements in (0, 1, 3, 60):
        noise = invert(Gaussian(kind, 0.4, 0.7), source, SIGMAS[kind], LEVELS[kind], refinements)
        back = decode(Gaussian(kind, 0.4, 0.7), noise, SIGMAS[kind])
        errors.append(max(error.rms / error.spread for error in deviations(back, source)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-4 < errors[0]


@KINDS
def test_one_refinement_costs_one_evaluation_a_step_at_the_noisy_end(kind):
    model = Gaussian(kind)
    invert(model, picture(), SIGMAS[kind], LEVELS[kind], refinements=1)
    assert model.sigmas == [sigma for sigma in SIGMAS[kind][-2::-1] for _ in range(2)]


@KINDS
def test_the_noise_of_the_models_own_picture_is_normal(kind):
    source = 0.7 * torch.randn(2, 4, 60, 60, generator=torch.Generator().manual_seed(0))
    noise = invert(Gaussian(kind, 0.0, 0.7), source, FINE[kind], LEVELS[kind], 5)
    top = LEVELS[kind](FINE[kind][0])
    assert float(noise.std()) == pytest.approx(math.hypot(top.noise, 0.7 * top.signal), rel=0.05)


def test_the_first_guess_is_ddim_inversion():
    """With z = x / sqrt(1 + sigma^2): z' = sqrt(a'/a) (z - sqrt(1-a) e) + sqrt(1-a') e, where e = eps(z, t')."""
    x, low, high = picture(), 0.5, 2.0
    model = Gaussian("eps", 0.2)
    a, b = (1 / (1 + sigma**2) for sigma in (low, high))
    z = x * a**0.5
    noisy = z / b**0.5
    e = (noisy - model(noisy, high)) / high
    expected = (b / a) ** 0.5 * (z - (1 - a) ** 0.5 * e) + (1 - b) ** 0.5 * e

    def from_low_on(noisy, sigma):
        return noisy if sigma == low else model(noisy, sigma)  # the step below it goes nowhere

    found = invert(from_low_on, x, [high, low, 0.0], LEVELS["eps"])
    torch.testing.assert_close(found * b**0.5, expected, rtol=1e-4, atol=1e-4)


@KINDS
def test_states_are_the_path_from_the_picture_to_the_noise(kind):
    source = picture()
    states = empty_states(len(SIGMAS[kind]), source.shape, "memory")
    noise = invert(Gaussian(kind), source, SIGMAS[kind], LEVELS[kind], 1, states)
    assert torch.equal(states[0], source) and torch.equal(states[-1], noise)
    partial = invert(Gaussian(kind), source, SIGMAS[kind][3:], LEVELS[kind], 1)
    assert torch.equal(states[len(SIGMAS[kind]) - 4], partial)


@KINDS
def test_between_levels_the_path_is_straight(kind):
    path = trajectory(kind, picture())
    low, high = path.sigmas[2:4]
    torch.testing.assert_close(path.at(low), path.states[2])
    torch.testing.assert_close(path.at(low + 0.25 * (high - low)), torch.lerp(path.states[2], path.states[3], 0.25))
    torch.testing.assert_close(path.at(0.0), path.states[0])
    torch.testing.assert_close(path.at(path.sigmas[-1] * 1.00001), path.states[-1])
    with pytest.raises(BoxwrightError, match="inverted up to"):
        path.at(path.sigmas[-1] * 1.01)


def test_states_on_disk_hold_the_same_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = picture()
    found = {}
    for storage in ("memory", "disk"):
        states = empty_states(len(SIGMAS["eps"]), source.shape, storage)
        invert(Gaussian("eps"), source, SIGMAS["eps"], LEVELS["eps"], 1, states)
        found[storage] = states.clone()
        del states
    assert torch.equal(found["memory"], found["disk"])
    assert os.listdir(tmp_path) == []


def test_a_trajectory_too_large_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(inversion, "MAX_MEMORY", 1000)
    with pytest.raises(BoxwrightError, match='3 noise levels of 2 latent.*choose "disk"'):
        empty_states(3, (2, 4, 8, 8), "memory")
    monkeypatch.setattr(inversion, "MAX_DISK", 1000)
    with pytest.raises(BoxwrightError, match="Use fewer steps"):
        empty_states(3, (2, 4, 8, 8), "disk")


def test_errors_are_shares_of_the_spread():
    truth = picture(3)
    found = truth + torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1) * truth.flatten(1).std(1).view(3, 1, 1, 1)
    found = deviations(found, truth)
    assert [error.rms / error.spread for error in found] == pytest.approx([0.0, 0.1, 0.5], abs=1e-5)
    assert [str(error) for error in found] == ["0.0 %", "10.0 %", "50.0 %"]


def test_the_error_of_a_flat_latent_is_no_share():
    truth = torch.full((1, 4, 8, 8), 0.7)
    error = deviations(truth + 0.25, truth)[0]
    assert error.flat and str(error) == "0.25 (flat)"


# DiffEdit's decoding


@KINDS
def test_outside_the_mask_the_picture_comes_back_and_inside_the_target(kind):
    source = picture()
    path, mask = trajectory(kind, source), half_mask(source)
    edited = sample_diff_edit(Gaussian(kind, mean=5.0, spread=0.05), path, mask, SIGMAS[kind])
    left = source.shape[-1] // 2
    assert torch.equal(edited[..., :left], source[..., :left])
    assert float((edited[..., left:] - 5.0).abs().mean()) < 0.3


@KINDS
def test_the_background_has_the_noise_level_of_the_foreground_after_every_step(kind):
    source = picture()
    path, mask = trajectory(kind, source), half_mask(source)
    seen = []
    sample_diff_edit(Gaussian(kind, 5.0), path, mask, SIGMAS[kind], lambda step: seen.append(step["x"].clone()))
    left = source.shape[-1] // 2
    for x, sigma in zip(seen, SIGMAS[kind][1:]):
        assert torch.equal(x[..., :left], path.at(sigma)[..., :left])


@KINDS
def test_the_source_prompt_redraws_the_source(kind):
    source = picture()
    path = trajectory(kind, source)
    whole = torch.ones_like(half_mask(source))
    again = sample_diff_edit(Gaussian(kind, spread=0.7), path, whole, SIGMAS[kind])
    torch.testing.assert_close(again, source, atol=2e-3, rtol=0)
    nothing = sample_diff_edit(Gaussian(kind, 5.0), path, torch.zeros_like(whole), SIGMAS[kind])
    assert torch.equal(nothing, source)


def test_an_edit_may_start_lower_than_the_path():
    source = picture()
    path = trajectory("eps", source)
    again = sample_diff_edit(Gaussian("eps", spread=0.7), path, torch.ones_like(source[:, :1]), SIGMAS["eps"][2:])
    torch.testing.assert_close(again, source, atol=2e-3, rtol=0)


def test_pasting_keeps_every_pixel_outside_the_mask():
    original, edited = torch.rand(2, 37, 50, 3), torch.rand(2, 32, 48, 3)  # cropped by the VAE
    mask = torch.zeros(2, 32, 48)
    mask[:, 8:24, 16:40] = 1.0
    mask[:, 20:24, 18:20] = 0.0  # a notch
    for feather in (0, 4):
        out = pasted(edited, original, mask, feather)
        assert out.shape == original.shape
        changed = (out != original).any(-1)
        inside = torch.zeros(2, 37, 50, dtype=torch.bool)
        inside[:, 2:34, 1:49] = mask > 0.5
        assert not bool((changed & ~inside).any())
        torch.testing.assert_close(out[:, 2 + 14 : 2 + 18, 1 + 26 : 1 + 30], edited[:, 14:18, 26:30])
        assert bool(changed[inside].all()) == (feather == 0)
    with pytest.raises(BoxwrightError, match="48 x 32 pixels, more than the original"):
        pasted(edited, original[:, :30], mask, 0)


def test_pasting_through_a_grey_mask_mixes_both():
    original, edited = torch.zeros(1, 32, 48, 3), torch.ones(1, 32, 48, 3)
    mask = torch.zeros(1, 32, 48)
    mask[:, :, :24], mask[:, :, 24:36] = 0.3, 0.7
    out = pasted(edited, original, mask, 0)[0, 0, :, 0]
    torch.testing.assert_close(out, mask[0, 0])
    soft = pasted(edited, original, mask, 4)[0, 0, :, 0]
    assert float(soft[10]) == pytest.approx(0.3) and bool((soft <= mask[0, 0]).all())


# Direct inversion


def test_direct_inversion_puts_source_rows_on_the_path_and_leaves_the_others():
    source = picture(1)
    path = trajectory("eps", source)
    x = torch.randn(4, *source.shape[1:], dtype=torch.float16)
    fixed = directly_inverted(x, path, SIGMAS["eps"][3], [0, 2])
    expected = path.at(SIGMAS["eps"][3]).half()
    assert torch.equal(fixed[0], expected[0]) and torch.equal(fixed[2], expected[0])
    assert torch.equal(fixed[[1, 3]], x[[1, 3]]) and fixed.dtype == x.dtype


@KINDS
def test_with_direct_inversion_the_source_row_redraws_its_picture_exactly(kind):
    """Even when inversion and decoding use different models, as with guidance."""
    source = picture(2)
    path, like = trajectory(kind, source), picture(6)
    out = sample_beside(Gaussian(kind, 3.0), like, path, SIGMAS[kind])
    assert torch.equal(out[0], source[0]) and torch.equal(out[3], source[1])
    drawn = decode(Gaussian(kind, 3.0), path.states[-1], SIGMAS[kind])
    for row, group in ((1, 0), (2, 0), (4, 1), (5, 1)):
        torch.testing.assert_close(out[row], drawn[group])
    assert not torch.allclose(out[1], source[0], atol=0.1)


@pytest.mark.parametrize("shape", [(3, 4, 6, 9), (2, 4, 6, 8)])
def test_groups_that_do_not_fit_the_pictures_are_refused(shape):
    with pytest.raises(BoxwrightError, match="wire the one that comes out"):
        sample_beside(Gaussian("eps"), torch.zeros(shape), trajectory("eps", picture(2)), SIGMAS["eps"])
