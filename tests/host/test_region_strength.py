"""Image to image with a strength for every region, in the host's own samplers on tiny models."""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.attention_patches.host.install import install
from pack.attention_patches.host.samplers.region_strength import redrawn_by_strength
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.nodes.parts.schema import guarded
from pack.nodes.region_strength import BoxwrightRegionStrength, strengths_of

REGIONS = (Region("sky", Box(0, 0, 1, 0.5), 0.7), Region("sun", Box(0, 0.5, 0.5, 0.5)))
STEPS = 8


def picture(family, batch=1, size=(16, 24)):
    return 0.7 * tiny.latent(family, size, batch, seed=11)


def draw(family, model, latent, sampler="euler", first=0, cfg=3.0, layout=None):
    """What a sampler node makes of model and latent, from step `first` of STEPS on."""
    prompt = layout.prompt if layout else tiny.text()
    positive = tiny.conditioning(family, prompt, layout.key if layout else None)
    negative = tiny.conditioning(family, tiny.text(seed=2), seed=6)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)[first:]
    noise = tiny.latent(family, latent["samples"].shape[-2:], latent["samples"].shape[0])
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        positive,
        negative,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=1,
    )


def by_strength(model, samples, strengths):
    return redrawn_by_strength(model, {"samples": samples}, torch.as_tensor(strengths))


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_one_strength_for_all_is_image_to_image(models, family):
    """Oracle: the host's own img2img, which begins where the schedule has come down to the strength."""
    samples = picture(family)
    model, latent = by_strength(models[family], samples, torch.full((4, 4), 0.5))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    level = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    first = sum(float(sigma) > level * 1.001 for sigma in sigmas)
    assert 0 < first < STEPS - 1
    whole, part = draw(family, model, latent), draw(family, models[family], {"samples": samples}, first=first)
    torch.testing.assert_close(whole, part, rtol=0, atol=0.02 * float(part.abs().max()))
    other = draw(family, models[family], {"samples": samples}, first=first - 1)
    assert float((whole - part).norm()) < 0.1 * float((whole - other).norm())


@pytest.mark.parametrize("family, sampler", [("sd15", "euler_ancestral"), ("sd15", "dpmpp_2m"), ("flux", "euler")])
def test_strength_0_is_kept_and_1_is_drawn_anew(models, family, sampler):
    samples = picture(family, batch=2)
    strengths = torch.zeros(16, 24)
    strengths[:, 12:] = 1.0
    drawn = draw(family, *by_strength(models[family], samples, strengths), sampler)
    torch.testing.assert_close(drawn[..., :12], samples[..., :12], rtol=0, atol=1e-4)
    assert float((drawn[..., 12:] - samples[..., 12:]).abs().mean()) > 0.1
    whole = draw(family, *by_strength(models[family], samples, torch.ones(4, 4)), sampler)
    plain = draw(family, models[family], {"samples": samples}, sampler)
    torch.testing.assert_close(whole, plain, rtol=0, atol=1e-4)


def test_every_part_is_first_shown_to_the_model_as_the_noised_picture(models):
    """What the model reads: until its level a part is picture plus noise, from there on what the sampler has made."""
    samples, seen = picture("sd15"), []
    strengths = torch.full((16, 24), 0.8)
    strengths[:, 12:] = 0.3

    def spy(apply, inputs):
        seen.append((float(inputs["timestep"][0]), inputs["input"][:1].clone()))
        return apply(inputs["input"], inputs["timestep"], **inputs["c"])

    model, latent = by_strength(models["sd15"], samples, strengths)
    model.set_model_unet_function_wrapper(spy)
    draw("sd15", model, latent)
    scaled = model.get_model_object("latent_format").process_in(samples)
    kept = []
    for sigma, x in seen:
        noised = scaled + sigma * tiny.latent("sd15")
        away = (x - noised).abs().flatten(2)
        kept.append(
            [
                float(away.unflatten(2, (16, 24))[..., side].max()) < 0.05 * sigma
                for side in (slice(12), slice(12, None))
            ]
        )
    assert kept[0] == [True, True] and kept[-1] == [False, False]
    left, right = ([row[side] for row in kept].index(False) for side in (0, 1))
    assert left < right


def test_it_composes_with_region_prompt(models):
    layout = tiny.layout()
    patched = install(models["sd15"], layout, RegionPrompt().edits(layout))
    samples, strengths = picture("sd15"), torch.zeros(16, 24)
    strengths[:, :12] = 0.8
    drawn = draw("sd15", *by_strength(patched, samples, strengths), layout=layout)
    plain = draw("sd15", *by_strength(models["sd15"], samples, strengths), layout=layout)
    torch.testing.assert_close(drawn[..., 12:], samples[..., 12:], rtol=0, atol=1e-4)
    assert float((drawn[..., :12] - plain[..., :12]).abs().max()) > 0.01


def test_a_noise_mask_of_the_latent_still_holds(models):
    samples, given = picture("sd15"), torch.zeros(1, 128, 192)
    given[:, 64:] = 1.0
    model, latent = redrawn_by_strength(models["sd15"], {"samples": samples, "noise_mask": given}, torch.ones(16, 24))
    drawn = draw("sd15", model, latent)
    torch.testing.assert_close(drawn[..., :7, :], samples[..., :7, :], rtol=0, atol=1e-4)
    assert float((drawn[..., 9:, :] - samples[..., 9:, :]).abs().mean()) > 0.1


# --- the node ---


def execute(model, **inputs):
    good = dict(regions=REGIONS, strengths="", background=0.0, feather=0.0, latent={"samples": picture("sd15")})
    return guarded(BoxwrightRegionStrength).execute(model=model, **good | inputs).result


def test_the_node_gives_model_latent_map_and_report(models):
    model, latent, shown, report = execute(models["sd15"], strengths="0.4, 1", background=0.1)
    assert shown.shape == (1, 128, 192) and latent["noise_mask"].shape == (1, 1, 16, 24)
    assert [round(float(shown[0, y, x]), 3) for y, x in ((0, 0), (100, 0), (100, 190))] == [0.4, 1.0, 0.1]
    assert report.startswith("sky 0.4, sun 1; elsewhere 0.1.") and "denoise 1 " in report
    assert "denoise_mask_function" not in models["sd15"].model_options
    drawn = draw("sd15", model, latent)
    assert drawn.shape == latent["samples"].shape


def test_strengths_are_read_in_order_or_by_name_or_from_the_regions():
    assert strengths_of("", REGIONS) == [0.7, 1.0]
    assert strengths_of("0.2\n 0.3,", REGIONS) == [0.2, 0.3]
    assert strengths_of("sun: 0.3", REGIONS) == [0.7, 0.3]
    assert strengths_of("sun: 0.3, sky: 0.2", REGIONS) == [0.2, 0.3]
    comma = [REGIONS[0], replace(REGIONS[1], phrase="sun, red")]
    assert strengths_of("sun, red: 0.3\nsky: 0.2", comma) == [0.2, 0.3]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"strengths": "0.5"}, "1 strength for 2 regions"),
        ({"strengths": "0.5, much"}, "'much' is no number"),
        ({"strengths": "0.5, nan"}, "ordinary number"),
        ({"strengths": "moon: 0.5"}, 'names no region; there are "sky", "sun"'),
        ({"strengths": "0.5, 7"}, '"sun" is 7'),
        ({"regions": ()}, "There are no regions"),
        ({"strengths": "0, 0"}, "every strength is 0, that of the background too"),
        (
            {"latent": {"samples": picture("sd15"), "noise_mask": torch.zeros(1, 128, 192)}},
            "noise mask is black wherever",
        ),
        ({"latent": None}, "from nowhere"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "latent is empty"),
    ],
)
def test_bad_input_is_named(models, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        execute(models["sd15"], **inputs)


def test_another_meaning_of_grey_masks_is_refused(models):
    other = DifferentialDiffusion.execute(models["sd15"]).result[0]
    with pytest.raises(BoxwrightError, match="Differential Diffusion"):
        execute(other)
