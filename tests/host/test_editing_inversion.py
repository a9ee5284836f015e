"""Inversion and DiffEdit inside the host's own sampling, on tiny models."""

import logging

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_sag
from editing import INF, NAN, close, every_family, every_size, inverted, left_mask, pictures, prompt, sample
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.samplers.diff_edit import diff_edit_sampler, edit
from pack.attention_patches.host.samplers.inversion import InvertedNoise, invert_latent
from pack.attention_patches.host.samplers.loops import SCHEDULERS, levels_of, schedule

# Noise levels


@every_family
def test_levels_are_those_the_host_starts_a_run_with(models, family):
    model_sampling = models[family].get_model_object("model_sampling")
    level = levels_of(model_sampling)(0.7)
    assert (level.signal, level.noise) == pytest.approx((0.3, 0.7) if family == "flux" else (1.0, 0.7))


def test_a_patch_that_reads_the_negative_prediction_finds_one(models):
    """Self-Attention Guidance, in a run that has one prompt only."""
    model = nodes_sag.SelfAttentionGuidance.execute(models["sd15"], 0.0, 2.0)[0]
    latent = pictures("sd15", size=(16, 24))
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    guided, plain = (invert_latent(each, latent, prompt("sd15", 1), sigmas) for each in (model, models["sd15"]))
    close(guided.trajectory.states[-1], plain.trajectory.states[-1], 2e-3)


# Inversion


@pytest.mark.parametrize("family, strength", [("sd15", 1.0), ("sd2", 0.6), ("flux", 1.0), ("flux", 0.6)])
def test_the_hosts_euler_draws_the_picture_again_from_inverted_noise(models, family, strength):
    """Through the NOISE output: the host's own scaling at the start, whatever latent is beneath."""
    model, latent = models[family], pictures(family)
    sigmas = schedule(model, "normal", 10, strength)
    errors = []
    for refinements in (0, 6):
        found = invert_latent(model, latent, prompt(family, 1), sigmas, refinements=refinements, check=True)
        assert found.evaluations == 10 * (1 + refinements) and found.check_evaluations == 10
        errors += [error.rms / error.spread for error in found.errors]
        for beneath in (latent, torch.zeros_like(latent)):
            noise = InvertedNoise(model, found.trajectory).generate_noise({"samples": beneath})
            again = sample(model, family, comfy.samplers.ksampler("euler"), sigmas, beneath, noise, cfg=1.0)
            error = float((again - latent).pow(2).mean().sqrt() / latent.std())
            assert error == pytest.approx(errors[-1], rel=0.01, abs=1e-4)
    if (family, strength) != ("sd15", 1.0):  # random weights: there one step too steep for any fixed point
        assert errors[1] < 0.02 and errors[1] < 0.1 * errors[0]


@every_family
def test_inverted_pictures_do_not_influence_each_other(models, family):
    model, latent = models[family], pictures(family, 3, (15, 23))
    sigmas = schedule(model, "simple", 4, 1.0)
    together = invert_latent(model, latent, prompt(family, 1), sigmas, refinements=1, storage="disk").trajectory
    for row in range(3):
        alone = invert_latent(model, latent[row : row + 1], prompt(family, 1), sigmas, refinements=1).trajectory
        close(together.states[:, row : row + 1], alone.states)
    assert together.sigmas[0] == 0.0 and together.sigmas == tuple(sorted(together.sigmas))
    close(together.states[0], model.model.process_latent_in(latent))


def test_guidance_counts_while_inverting(models):
    model, latent, sigmas = models["sd15"], pictures("sd15"), schedule(models["sd15"], "normal", 3, 1.0)
    plain = invert_latent(model, latent, prompt("sd15", 1), sigmas)
    guided = invert_latent(model, latent, prompt("sd15", 1), sigmas, negative=prompt("sd15", 2), cfg=3.0)
    assert guided.evaluations == 2 * plain.evaluations and guided.errors is None
    assert not torch.allclose(plain.trajectory.states[-1], guided.trajectory.states[-1], atol=0.1)
    with pytest.raises(BoxwrightError, match="Guidance 3 needs a negative prompt"):
        invert_latent(model, latent, prompt("sd15", 1), sigmas, cfg=3.0)
    with pytest.raises(BoxwrightError, match="refinements is 21; choose 0 to 20"):
        invert_latent(model, latent, prompt("sd15", 1), sigmas, refinements=21)


@pytest.mark.parametrize("sigmas, words", [
    ([], "no noise level"), ([5.0], "1 noise level"), ([0.0, 1.0, 5.0], "Sigma 2 of 3 is 1, after 0.*Flip Sigmas"),
    ([5.0, 1.0], "ends at sigma 1, not at 0"), ([5.0, NAN, 0.0], "Sigma 2 of 3 is nan"), ([INF, 1.0, 0.0], "is inf"),
], ids=str)  # fmt: skip
def test_schedules_that_do_not_end_in_the_picture_are_refused(models, sigmas, words):
    with pytest.raises(BoxwrightError, match=words):
        invert_latent(models["sd15"], pictures("sd15"), prompt("sd15", 1), torch.tensor(sigmas))


def test_a_repeated_level_is_inverted_once(models):
    sigmas = torch.tensor([5.0, 5.0, 1.0, 0.0, 0.0])
    found = invert_latent(models["sd15"], pictures("sd15"), prompt("sd15", 1), sigmas)
    assert found.trajectory.sigmas == (0.0, 1.0, 5.0) and found.evaluations == 2


@every_family
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_makes_a_schedule_of_few_and_of_many_steps(models, family, scheduler):
    """Of many there are more than the model has noise levels, so that schedulers repeat some."""
    for steps, strength in ((2, 1.0), (25, 0.8), (25, 0.05), (100, 0.05), (1100, 1.0)):
        sigmas = schedule(models[family], scheduler, steps, strength)
        assert 1 <= len(sigmas) - 1 <= steps and float(sigmas[-1]) == 0.0 and bool((sigmas.diff() < 0).all())


# DiffEdit's sampler


@every_size
def test_outside_the_mask_the_latent_comes_back(models, family, size):
    model, latent, middle = models[family], pictures(family, 2, size), size[1] // 2 + 1
    sigmas = schedule(model, "normal", 4, 0.8)
    path = inverted(model, family, latent, sigmas)
    edited = sample(model, family, diff_edit_sampler(path, left_mask(size)), sigmas, latent, positive=4)
    close(edited[..., middle:], latent[..., middle:], 1e-5)
    assert (edited[..., : middle - 2] - latent[..., : middle - 2]).abs().mean() > 0.05
    noisy = sample(
        model, family, diff_edit_sampler(path, left_mask(size)), sigmas, latent, torch.randn_like(latent), positive=4
    )
    assert torch.equal(edited, noisy)
    for row in range(2):
        part = slice(row, row + 1)
        alone = diff_edit_sampler(inverted(model, family, latent[part], sigmas), left_mask(size))
        close(sample(model, family, alone, sigmas, latent[part], positive=4), edited[part], 0.02)


def test_the_one_call_edit_is_the_sampler(models, caplog):
    model, latent = models["sd15"], pictures("sd15")
    sigmas = schedule(model, "normal", 3, 1.0)
    path = inverted(model, "sd15", latent, sigmas)
    found, evaluations = edit(model, latent, path, left_mask(), prompt("sd15", 4), prompt("sd15", 2), 3.0, sigmas)
    with caplog.at_level(logging.INFO):
        expected = sample(model, "sd15", diff_edit_sampler(path, left_mask()), sigmas, latent, positive=4)
    assert "DiffEdit: 3 steps, 6 model evaluations" in caplog.text
    close(found, expected, 1e-5)
    assert evaluations == 2 * 3


def test_a_path_of_another_model_size_or_schedule_is_refused(models):
    latent, sigmas = pictures("sd15"), schedule(models["sd15"], "normal", 3, 0.5)
    method = diff_edit_sampler(inverted(models["sd15"], "sd15", latent, sigmas), left_mask())
    with pytest.raises(BoxwrightError, match="another kind of model"):
        sample(models["flux"], "flux", method, schedule(models["flux"], "normal", 3, 0.5), pictures("flux"))
    with pytest.raises(BoxwrightError, match=r"shape \(1, 4, 8, 12\), the sampler's \(2, 4, 8, 12\)"):
        sample(models["sd15"], "sd15", method, sigmas, pictures("sd15", 2))
    with pytest.raises(BoxwrightError, match="was inverted up to"):
        sample(models["sd15"], "sd15", method, schedule(models["sd15"], "normal", 3, 1.0), latent)
