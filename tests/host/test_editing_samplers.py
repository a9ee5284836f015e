"""The masked samplers inside the host's own sampling, on tiny models; and what all samplers of edits refuse."""

import logging

import comfy.sample
import pytest
import tiny_models
import torch
from editing import (
    INF,
    NAN,
    close,
    every_family,
    every_size,
    inverted,
    left_mask,
    mask_of,
    pictures,
    prompt,
    sample,
)
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.samplers.diff_edit import diff_edit_sampler
from pack.attention_patches.host.samplers.inversion import direct_inversion_sampler, invert_latent
from pack.attention_patches.host.samplers.loops import check_model, picture_latent, sampler, schedule
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.ilvr import ILVR
from pack.attention_patches.samplers.repaint import RePaint

# Masked samplers

LOOPS = {
    "repaint": ("RePaint", RePaint(2, 2).sample),
    "blended": ("Blended Latents", BlendedLatents(1).sample),
    "ilvr": ("ILVR", ILVR(2, StepWindow()).sample),
}
every_loop = pytest.mark.parametrize("loop", LOOPS)


def seeds(family, first, batch, size=(8, 12)):
    return torch.cat([tiny_models.latent(family, size, 1, seed=100 + first + row) for row in range(batch)])


@every_size
@pytest.mark.parametrize("loop", ["repaint", "blended"])
def test_what_is_not_masked_stays(models, family, loop, size):
    model, latent, middle = models[family], pictures(family, 2, size), size[1] // 2 + 3
    sigmas = schedule(model, "normal", 4, 0.8)
    out = sample(model, family, sampler(*LOOPS[loop], left_mask(size)), sigmas, latent, seeds(family, 0, 2, size))
    close(out[..., middle:], latent[..., middle:], 1e-5)
    assert (out[..., : middle - 4] - latent[..., : middle - 4]).abs().mean() > 0.1


@every_family
@every_loop
def test_a_batch_is_single_runs_with_seeds_that_follow(models, family, loop):
    model, latent = models[family], pictures(family, 4)
    sigmas = schedule(model, "normal", 3, 1.0)
    method = sampler(*LOOPS[loop], left_mask())
    together = sample(model, family, method, sigmas, latent, seeds(family, 0, 4), seed=20)
    for row in range(4):
        alone = sample(model, family, method, sigmas, latent[row : row + 1], seeds(family, row, 1), seed=20 + row)
        close(alone, together[row : row + 1], 0.02)


def test_the_noise_of_a_loop_is_not_that_it_starts_from(models):
    """The host draws the start from the same seed and generator; ancestral steps would add up what they should mix."""
    latent, seen = pictures("sd15"), {}
    start = comfy.sample.prepare_noise(latent, 5)

    def loop(model, x, sigmas, scene, callback):
        seen["drawn"] = scene.draw(x)
        return x

    sample(models["sd15"], "sd15", sampler("loop", loop, left_mask()), torch.tensor([5.0, 0.0]), latent, start, seed=5)
    alike = torch.nn.functional.cosine_similarity(seen["drawn"].flatten(), start.flatten(), dim=0)
    assert abs(float(alike)) < 0.3


@every_family
def test_ilvr_with_factor_1_reproduces_the_reference(models, family):
    model, latent = models[family], pictures(family)
    method = sampler("ILVR", ILVR(1, StepWindow()).sample, whole=True)
    out = sample(model, family, method, schedule(model, "normal", 3, 1.0), latent, seeds(family, 0, 1))
    close(out, latent, 1e-4)


@pytest.mark.parametrize("loop", ["repaint", "blended"])
def test_the_latents_own_noise_mask_counts_and_none_is_refused(models, loop):
    model, latent, sigmas = models["sd15"], pictures("sd15"), schedule(models["sd15"], "normal", 3, 1.0)
    cells = torch.zeros(1, 1, 8, 12)
    cells[..., :6] = 1.0
    given, wired = (
        sample(model, "sd15", sampler(*LOOPS[loop], mask), sigmas, latent, seeds("sd15", 0, 1), noise_mask=noise_mask)
        for mask, noise_mask in ((None, cells), (left_mask(), None))
    )
    close(given, wired, 1e-5)
    with pytest.raises(BoxwrightError, match="There is no mask"):
        sample(model, "sd15", sampler(*LOOPS[loop]), sigmas, latent)
    with pytest.raises(BoxwrightError, match="latent's noise mask is empty"):
        sample(model, "sd15", sampler(*LOOPS[loop]), sigmas, latent, noise_mask=torch.zeros_like(cells))


def test_evaluations_are_those_announced_and_logged(models, caplog):
    model, latent, sigmas = models["sd15"], pictures("sd15"), schedule(models["sd15"], "normal", 6, 1.0)
    method = RePaint(2, 3)
    with caplog.at_level(logging.INFO):
        sample(model, "sd15", sampler("RePaint", method.sample, left_mask()), sigmas, latent, seeds("sd15", 0, 1))
    assert f"RePaint: 6 steps, {2 * method.evaluations(6)} model evaluations" in caplog.text


def test_progress_goes_from_the_first_to_the_last_step(models):
    model, latent, sigmas = models["sd15"], pictures("sd15"), schedule(models["sd15"], "normal", 4, 1.0)
    seen = []
    sample(
        model,
        "sd15",
        sampler(*LOOPS["repaint"], left_mask()),
        sigmas,
        latent,
        seeds("sd15", 0, 1),
        callback=lambda step, x0, x, total: seen.append((step, total)),
    )
    assert seen[0] == (0, 4) and seen[-1] == (3, 4) and seen == sorted(seen)


# What all refuse


def inpainting():
    """An SD1 inpainting model: nine input channels."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    tiny = tiny_models.FAMILIES["sd15"]
    config = comfy.supported_models.SD15({**tiny.settings, "in_channels": 9})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    assert model.diffusion_model.in_channels == 9
    model.set_inpaint()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def test_models_with_extra_channels_are_refused_aloud():
    model, latent = inpainting(), pictures("sd15")
    sigmas = schedule(model, "normal", 2, 1.0)
    words = "reads a mask or a second picture"
    with pytest.raises(BoxwrightError, match=words):
        mask_of({"sd15": model}, "sd15", latent)
    with pytest.raises(BoxwrightError, match=words):
        invert_latent(model, latent, prompt("sd15", 1), sigmas)
    with pytest.raises(BoxwrightError, match=words):
        sample(model, "sd15", sampler(*LOOPS["repaint"], left_mask()), sigmas, latent)


@pytest.mark.parametrize(
    "samples, words",
    [
        (torch.zeros(1, 4, 8, 8), "latent is empty"),
        (torch.ones(1, 16, 8, 8), "16 channels, this model's have 4"),
        (torch.ones(1, 4, 3, 8, 8), "not that of pictures"),
        (torch.ones(4, 8, 8), "not that of pictures"),
        (torch.ones(0, 4, 8, 8), "not that of pictures"),
        (torch.ones(1, 4, 0, 8), "at least one latent cell"),
        (torch.full((1, 4, 8, 8), NAN), "NaN or infinite"),
        (torch.full((1, 4, 8, 8), INF), "NaN or infinite"),
    ],
)
def test_latents_that_are_no_pictures_are_refused(models, samples, words):
    with pytest.raises(BoxwrightError, match=words):
        picture_latent(models["sd15"], {"samples": samples})


def test_a_sampler_on_an_empty_latent_is_refused(models):
    sigmas = schedule(models["sd15"], "normal", 2, 1.0)
    with pytest.raises(BoxwrightError, match="latent is empty"):
        sample(models["sd15"], "sd15", sampler(*LOOPS["repaint"], left_mask()), sigmas, torch.zeros(1, 4, 8, 12))


def samplers(models, family="sd15"):
    """All five samplers, for the latent of `pictures`."""
    path = inverted(models[family], family, pictures(family), schedule(models[family], "normal", 2, 1.0))
    loops = {name: sampler(*LOOPS[name], left_mask()) for name in LOOPS}
    return {**loops, "diff_edit": diff_edit_sampler(path, left_mask()), "direct": direct_inversion_sampler(path)}


FIVE = pytest.mark.parametrize("name", [*LOOPS, "diff_edit", "direct"])


@FIVE
@pytest.mark.parametrize("sigmas, words", [
    ([5.0, NAN, 0.0], "Sigma 2 of 3 is nan.*another scheduler"), ([NAN, 1.0, 0.0], "Sigma 1 of 3 is nan"),
    ([INF, 1.0, 0.0], "Sigma 1 of 3 is inf"), ([0.0, 1.0, 5.0], "Sigma 2 of 3 is 1, after 0.*Flip Sigmas"),
    ([5.0], "1 noise level .5.*more steps"), ([5.0, -1.0], "Sigma 2 of 2 is -1.*below 0"),
], ids=str)  # fmt: skip
def test_every_sampler_refuses_a_bad_schedule(models, name, sigmas, words):
    with pytest.raises(BoxwrightError, match=words):
        sample(models["sd15"], "sd15", samplers(models)[name], torch.tensor(sigmas), pictures("sd15"))


@FIVE
def test_every_sampler_takes_a_repeated_level_once(models, name, caplog):
    latent, method = pictures("sd15"), samplers(models)[name]
    once = sample(models["sd15"], "sd15", method, torch.tensor([5.0, 1.0, 0.0]), latent, seeds("sd15", 0, 1))
    repeated = torch.tensor([5.0, 5.0, 1.0, 1.0, 0.0, 0.0])
    with caplog.at_level(logging.INFO):
        again = sample(models["sd15"], "sd15", method, repeated, latent, seeds("sd15", 0, 1))
    assert torch.equal(once, again) and ": 2 steps, " in caplog.text


@FIVE
def test_sigmas_of_another_kind_of_model_are_refused(models, name):
    sigmas = schedule(models["sd15"], "normal", 2, 1.0)
    with pytest.raises(BoxwrightError, match="starts at sigma 14.6.*from 0 to 1 only.*with this model"):
        sample(models["flux"], "flux", samplers(models, "flux")[name], sigmas, pictures("flux"))


@pytest.mark.parametrize("value", [NAN, INF, -3.0, 4.0])
@pytest.mark.parametrize("own", [False, True])
def test_masks_that_are_none_are_refused(models, value, own):
    sigmas, mask = schedule(models["sd15"], "normal", 2, 1.0), torch.full((8, 12), value)
    with pytest.raises(BoxwrightError, match="mask has values from.*numbers from 0 to 1"):
        method = sampler(*LOOPS["repaint"], mask if own else None)
        sample(models["sd15"], "sd15", method, sigmas, pictures("sd15"), noise_mask=None if own else mask)


def test_nothing_stays_on_the_model(models):
    model, latent = models["sd15"], pictures("sd15")
    before = tiny_models.run("sd15", model, prompt("sd15", 1))
    options = {**model.model_options, "transformer_options": dict(model.model_options["transformer_options"])}
    sigmas = schedule(model, "normal", 2, 1.0)
    mask_of(models, "sd15", latent)
    path = inverted(model, "sd15", latent, sigmas)
    sample(model, "sd15", diff_edit_sampler(path, left_mask()), sigmas, latent)
    sample(model, "sd15", sampler(*LOOPS["repaint"], left_mask()), sigmas, latent)
    assert model.model_options == options
    assert torch.equal(tiny_models.run("sd15", model, prompt("sd15", 1)), before)


@pytest.mark.parametrize("family", [name for name, tiny in tiny_models.FAMILIES.items() if tiny.inpaints])
def test_every_supported_model_is_plain_enough_for_these_edits(family):
    """Some count the cells of a token as channels (Chroma, Qwen-Image); a model with a mask among them is another."""
    model = tiny_models.build(family)
    check_model(model)
    config = model.model.model_config.unet_config
    config["in_channels"] = 2 * model.model.latent_format.latent_channels + 1
    with pytest.raises(BoxwrightError, match="reads a mask or a second picture"):
        check_model(model)
