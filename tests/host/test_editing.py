"""Difference masks, inversion, DiffEdit and the masked samplers inside the host's own sampling, on tiny models."""

import logging

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import tiny_models
import torch
from comfy_extras import nodes_sag
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.samplers import diff_mask as host_diff_mask
from pack.attention_patches.host.samplers.diff_edit import diff_edit_sampler, edit
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.inversion import InvertedNoise, direct_inversion_sampler, invert_latent
from pack.attention_patches.host.samplers.loops import (
    SCHEDULERS,
    check_model,
    levels_of,
    picture_latent,
    sampler,
    schedule,
)
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.diff_mask import DiffMask
from pack.attention_patches.samplers.ilvr import ILVR
from pack.attention_patches.samplers.repaint import RePaint

FAMILIES = ["sd15", "sd2", "flux"]  # eps, v and flow
every_family = pytest.mark.parametrize("family", FAMILIES)
every_size = pytest.mark.parametrize("family, size", [("sd15", (8, 12)), ("sd2", (12, 8)), ("flux", (7, 11))])


@pytest.fixture(scope="module")
def models():
    return {family: tiny_models.build(family) for family in FAMILIES}


def prompt(family, seed):
    return tiny_models.conditioning(family, tiny_models.text(seed=seed), seed=seed)


def pictures(family, batch=1, size=(8, 12)):
    """Latents as a VAE gives them."""
    return tiny_models.latent(family, size, batch, seed=11)


def sample(model, family, sampler, sigmas, latent, noise=None, cfg=3.0, seed=5, positive=1, **kw):
    noise = torch.zeros_like(latent) if noise is None else noise
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, prompt(family, positive), prompt(family, 2), latent, disable_pbar=True,
        seed=seed, **kw,
    )  # fmt: skip


def left_mask(size=(8, 12)):
    """1 in the left half of the picture, in pixels."""
    mask = torch.zeros(size[0] * 8, size[1] * 8)
    mask[:, : size[1] * 4] = 1.0
    return mask


def close(a, b, share=1e-3):
    torch.testing.assert_close(a, b, rtol=0, atol=share * float(b.abs().max()))


# Noise levels


@every_family
def test_levels_are_those_the_host_starts_a_run_with(models, family):
    model_sampling = models[family].get_model_object("model_sampling")
    level = levels_of(model_sampling)(0.7)
    assert (level.signal, level.noise) == pytest.approx((0.3, 0.7) if family == "flux" else (1.0, 0.7))


# The difference mask


def mask_of(models, family, latent, seed=3, source=1, target=4, settings=None, **kw):
    settings = settings or DiffMask(draws=3)
    return measure(models[family], latent, prompt(family, source), prompt(family, target), settings, seed, **kw)


@every_family
def test_the_heat_is_the_difference_of_the_hosts_predictions(models, family):
    settings, latent = DiffMask(draws=2, noise_level=0.4, clip=1.0, blur=0.0), pictures(family)
    model_sampling = models[family].get_model_object("model_sampling")
    sigma = float(model_sampling.percent_to_sigma(0.6))
    found = mask_of(models, family, latent, settings=settings)
    generator = torch.Generator().manual_seed(3)
    total = 0.0

    def predict(model_k, x, sigmas, extra_args, **unused):
        return model_k(x, sigmas[:1].expand(x.shape[0]), **extra_args)

    process = models[family].model.process_latent_in
    for _ in range(2):
        noise = torch.randn(latent.shape[1:], generator=generator)[None]
        one, two = (
            sample(models[family], family, comfy.samplers.KSAMPLER(predict), torch.tensor([sigma, 0.0]), latent, noise,
                   cfg=1.0, positive=positive)
            for positive in (1, 4)
        )  # fmt: skip
        total = total + (process(one) - process(two)).abs().mean(1)
    expected = settings.heat(total)
    close(found.heat, expected, 2e-3)
    assert torch.equal(found.mask, settings.mask(found.heat))


@every_size
def test_a_batch_of_pictures_is_single_pictures(models, family, size):
    latent = pictures(family, 4, size)
    together = mask_of(models, family, latent)
    assert together.heat.shape == (4, *size)
    for row in range(4):
        alone = mask_of(models, family, latent[row : row + 1])
        close(together.heat[row : row + 1], alone.heat)
        assert (together.mask[row] != alone.mask[0]).float().mean() < 0.02


def test_draws_may_be_split_as_memory_allows(models, monkeypatch):
    latent = pictures("sd15", 2)
    whole = mask_of(models, "sd15", latent)
    assert whole.batches == 3
    monkeypatch.setattr(host_diff_mask.comfy.model_management, "get_free_memory", lambda *args: 0)
    split = mask_of(models, "sd15", latent)
    assert split.batches == 1 and split.evaluations == whole.evaluations
    close(split.heat, whole.heat)


def test_evaluations_are_counted_by_rows(models):
    latent = pictures("sd15", 2)
    assert mask_of(models, "sd15", latent).evaluations == 2 * 3 * 2  # prompts, draws, pictures
    combined = mask_of(models, "sd15", latent, mode="cfg", negative=prompt("sd15", 2), cfg=4.0)
    assert combined.evaluations == 4 * 3 * 2


@pytest.mark.parametrize("mode", ["paper", "cfg"])
def test_a_model_with_edits_is_measured_however_many_draws_share_a_batch(models, mode, monkeypatch):
    """Draws are rows of their own, of which no recorder hears."""
    layout, records = tiny_models.layout(), Records(tiny_models.layout().prompt.tokens, Recording())
    edited = recorded(install(models["sd15"], layout, PUBLISHED.edits(layout)), layout, records)
    source = tiny_models.conditioning("sd15", layout.prompt, layout.key)
    settings, options = DiffMask(draws=3), dict(mode=mode, negative=prompt("sd15", 2), cfg=4.0)
    measured = lambda model: measure(model, pictures("sd15", 2), source, prompt("sd15", 4), settings, 3, **options)  # noqa: E731
    together = measured(edited)
    monkeypatch.setattr(host_diff_mask, "_draws_that_fit", lambda *args: 1)
    apart, plain = measured(edited), measured(models["sd15"])
    assert (together.batches, apart.batches) == (3, 1)
    close(together.heat, apart.heat, 2e-3)
    assert not torch.allclose(together.heat, plain.heat, atol=1e-2)
    with pytest.raises(BoxwrightError, match="record is empty"):
        records.latest.map_of("w1")


def test_a_patch_that_reads_the_negative_prediction_finds_one(models):
    """Self-Attention Guidance, in a run that has one prompt only."""
    model = nodes_sag.SelfAttentionGuidance.execute(models["sd15"], 0.0, 2.0)[0]
    latent = pictures("sd15", size=(16, 24))
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    guided, plain = (invert_latent(each, latent, prompt("sd15", 1), sigmas) for each in (model, models["sd15"]))
    close(guided.trajectory.states[-1], plain.trajectory.states[-1], 2e-3)


def test_the_mask_follows_its_seed_and_prompts(models):
    latent = pictures("sd15")
    first = mask_of(models, "sd15", latent)
    assert torch.equal(first.heat, mask_of(models, "sd15", latent).heat)
    assert not torch.allclose(first.heat, mask_of(models, "sd15", latent, seed=4).heat, atol=1e-2)
    assert not torch.allclose(first.heat, mask_of(models, "sd15", latent, target=5).heat, atol=1e-2)
    close(first.heat, mask_of(models, "sd15", latent, source=4, target=1).heat)


def test_mode_cfg_is_what_the_sampler_would_do(models):
    """Linear guidance is a factor, which normalising removes; a patch on guidance is not."""
    latent, negative = pictures("sd15"), prompt("sd15", 2)
    close(
        mask_of(models, "sd15", latent, mode="cfg", negative=negative, cfg=4.0).heat,
        mask_of(models, "sd15", latent).heat,
        0.01,
    )
    patched = models["sd15"].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * (args["input"] > 0))
    paper, combined = (
        mask_of({"sd15": patched}, "sd15", latent, mode=mode, negative=negative, cfg=4.0).heat
        for mode in ("paper", "cfg")
    )
    assert (paper - combined).abs().mean() > 0.02
    with pytest.raises(BoxwrightError, match="Wire negative"):
        mask_of(models, "sd15", latent, mode="cfg", cfg=4.0)


def test_prompts_that_do_not_differ_are_refused(models):
    with pytest.raises(BoxwrightError, match="no difference to make a mask of"):
        mask_of(models, "sd15", pictures("sd15"), source=1, target=1)


def test_predictions_that_are_no_numbers_are_refused(models):
    with pytest.raises(BoxwrightError, match="no numbers"):
        mask_of(models, "sd15", pictures("sd15") * float("nan"))


def test_it_can_be_interrupted_and_shows_its_progress(models, monkeypatch):
    seen = []
    monkeypatch.setattr(host_diff_mask, "_draws_that_fit", lambda *args: 1)

    class Bar:
        def update_absolute(self, done, total, preview):
            seen.append((done, total, preview[1].size))
            comfy.model_management.interrupt_current_processing()

    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            mask_of(models, "sd15", pictures("sd15"), bar=Bar())
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert seen == [(1, 3, (256, 171))]


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


NAN, INF = float("nan"), float("inf")


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


def inverted(model, family, latent, sigmas):
    return invert_latent(model, latent, prompt(family, 1), sigmas, refinements=1).trajectory


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
        model, "sd15", sampler(*LOOPS["repaint"], left_mask()), sigmas, latent, seeds("sd15", 0, 1),
        callback=lambda step, x0, x, total: seen.append((step, total)),
    )  # fmt: skip
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
    method = sampler(*LOOPS["repaint"], mask if own else None)
    with pytest.raises(BoxwrightError, match="mask has values from.*numbers from 0 to 1"):
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
