"""Difference masks inside the host's own sampling, on tiny models."""

import comfy.model_management
import comfy.samplers
import pytest
import tiny_models
import torch
from editing import close, every_family, every_size, mask_of, pictures, prompt, sample
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.samplers import diff_mask as host_diff_mask
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.samplers.diff_mask import DiffMask


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
            sample(
                models[family],
                family,
                comfy.samplers.KSAMPLER(predict),
                torch.tensor([sigma, 0.0]),
                latent,
                noise,
                cfg=1.0,
                positive=positive,
            )
            for positive in (1, 4)
        )
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
