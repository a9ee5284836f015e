"""h-space edits inside the host's sampling, on tiny UNets."""

import logging
from inspect import signature

import pytest
import tiny_models
import torch
from comfy.context_windows import (
    ContextFuseMethods,
    ContextSchedules,
    IndexListContextHandler,
    get_matching_context_schedule,
    get_matching_fuse_method,
)
from pack.attention_patches.core.types import BoxwrightError, StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.run.schedule import progress_of
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.samplers.h_space import REFERENCE_STEPS, HSpace

FAMILIES = ["sd15", "sd2", "sdxl"]
WHOLE = StepWindow()
every_family = pytest.mark.parametrize("family", FAMILIES)


def prompt(family, seed, **values):
    return tiny_models.conditioning(family, tiny_models.text(seed=seed), seed=seed, **values)


def draw(models, family, settings=None, source=3, target=4, noise=None, **kw):
    model = models[family]
    if settings is not None:
        model = edit_h_space(model, prompt(family, source), prompt(family, target), settings)
    noise = tiny_models.latent(family, (8, 12), 2) if noise is None else noise
    return tiny_models.run(family, model, kw.pop("positive", None) or prompt(family, 1), noise=noise, steps=3, **kw)


@every_family
def test_zero_difference_and_zero_strength_are_the_identity(models, family):
    plain = draw(models, family)
    same = draw(models, family, HSpace(1.0, WHOLE), source=3, target=3)
    torch.testing.assert_close(same, plain, atol=1e-4 * float(plain.abs().max()), rtol=0)  # rounding of two equal rows
    assert torch.equal(draw(models, family, HSpace(0.0, WHOLE)), plain)
    assert not torch.allclose(draw(models, family, HSpace(1.0, WHOLE)), plain, atol=1e-3)


@every_family
def test_the_shift_is_that_of_the_two_prompts(models, family):
    """Redone by hand for one step, where the step ends in the shifted prediction itself."""
    sigmas = torch.tensor([1.5, 0.0])
    seen = {}

    def hook(h, skip, options):
        if options["block"] == ("output", 0):
            seen["h"] = h.clone()
            h = h + seen.get("add", 0.0)
        return h, skip

    def once(positive, add=None):
        seen.clear()
        if add is not None:
            seen["add"] = add
        model = models[family].clone()
        model.set_model_output_block_patch(hook)
        out = tiny_models.run(family, model, prompt(family, positive), noise=noise, steps=1, cfg=1.0, sigmas=sigmas)
        return out, seen["h"]

    noise = tiny_models.latent(family, (8, 12), 1)
    (_, first), (_, second) = once(3), once(4)
    share = 1.0 - progress_of(models[family].get_model_object("model_sampling"))(1.5)
    expected, _ = once(1, 0.7 * REFERENCE_STEPS * share * (second - first))
    found = draw(models, family, HSpace(0.7, WHOLE), noise=noise, cfg=1.0, sigmas=sigmas)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_window_and_sign_count(models):
    plain = draw(models, "sd15")
    runs = [
        draw(models, "sd15", settings)
        for settings in (
            HSpace(1.0, WHOLE),
            HSpace(-1.0, WHOLE),
            HSpace(1.0, StepWindow(0.0, 0.3)),
            HSpace(1.0, StepWindow(0.3, 1.0)),
        )
    ]
    for i, one in enumerate(runs):
        assert not torch.allclose(one, plain, atol=1e-3)
        assert not any(torch.allclose(one, other, atol=1e-3) for other in runs[:i])


def test_a_batch_is_single_runs_on_odd_sizes(models):
    noise = tiny_models.latent("sd15", (7, 11), 3)
    together = draw(models, "sd15", HSpace(1.0, WHOLE), noise=noise)
    for row in range(3):
        alone = draw(models, "sd15", HSpace(1.0, WHOLE), noise=noise[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], atol=2e-2, rtol=1e-2)


def test_two_edits_add_up_and_the_model_stays_as_it_was(models):
    plain = draw(models, "sd15")
    once = edit_h_space(models["sd15"], prompt("sd15", 3), prompt("sd15", 4), HSpace(1.0, WHOLE))
    twice = edit_h_space(once, prompt("sd15", 5), prompt("sd15", 6), HSpace(1.0, WHOLE))
    both, one = (draw({"sd15": model}, "sd15") for model in (twice, once))
    assert not torch.allclose(both, one, atol=1e-3)
    assert torch.equal(draw({"sd15": once}, "sd15"), one)
    assert torch.equal(draw(models, "sd15"), plain)


def test_evaluations_are_counted(models, caplog):
    with caplog.at_level(logging.INFO):
        draw(models, "sd15", HSpace(1.0, WHOLE), noise=tiny_models.latent("sd15", (8, 12), 1))
    assert f"h-space: {3 * (2 + 2 + 2)} model evaluations" in caplog.text


def test_what_has_no_single_bottleneck_is_refused(models):
    with pytest.raises(UnsupportedModelError, match="has no bottleneck"):
        edit_h_space(tiny_models.build("flux"), prompt("flux", 3), prompt("flux", 4), HSpace())
    with pytest.raises(BoxwrightError, match="Remove the area"):
        draw(models, "sd15", HSpace(1.0, WHOLE), positive=prompt("sd15", 1, area=(8, 6, 0, 0), strength=1.0))


# --- several conditionings, context windows, schedules ---


def part(family, side):
    """A mask of the left two thirds of the latent, two of three cells of the bottleneck, or of the rest."""
    mask = torch.zeros(1, 8, 12)
    mask[..., :8] = side == "left"
    mask[..., 8:] = side == "right"
    return {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}


def drawn(models, source, target, positive=None, **kw):
    model = edit_h_space(models["sd15"], source, target, HSpace(1.0, WHOLE))
    noise = tiny_models.latent("sd15", (8, 12), 2)
    return tiny_models.run("sd15", model, positive or prompt("sd15", 1), noise=noise, **{"steps": 3, "cfg": 1.0, **kw})


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_a_prompt_of_two_conditionings_is_their_mean(models):
    a, b, source = prompt("sd15", 4), prompt("sd15", 5), prompt("sd15", 3)
    both = drawn(models, source, [*a, *b])
    assert not torch.allclose(both, drawn(models, source, a), atol=1e-3)
    assert not torch.allclose(both, drawn(models, source, b), atol=1e-3)
    close(drawn(models, source, [*b, *a]), both)
    close(drawn(models, source, [*a, *a]), drawn(models, source, a))
    close(drawn(models, [*source, *a], [*a, *source]), drawn(models, source, source))
    # by hand: half the shift to A and half the shift to B, in one step that ends in the shifted prediction
    one = {"steps": 1, "sigmas": torch.tensor([1.5, 0.0])}
    mean = edit_h_space(models["sd15"], source, a, HSpace(0.5, WHOLE))
    mean = edit_h_space(mean, source, b, HSpace(0.5, WHOLE))
    noise = tiny_models.latent("sd15", (8, 12), 2)
    nested = tiny_models.run("sd15", mean, prompt("sd15", 1), noise=noise, cfg=1.0, **one)
    found = drawn(models, source, [*a, *b], **one)
    assert (found - nested).abs().mean() < 0.05 * (found - drawn(models, source, source, **one)).abs().mean()


def test_the_hosts_weights_of_conditionings_count(models):
    a, b, source = prompt("sd15", 4), prompt("sd15", 5), prompt("sd15", 3)
    light, heavy = prompt("sd15", 5, strength=1e-4), prompt("sd15", 5, strength=1e4)
    close(drawn(models, source, [*a, *light]), drawn(models, source, a))
    close(drawn(models, source, [*a, *heavy]), drawn(models, source, b))
    close(drawn(models, source, prompt("sd15", 4, strength=0.3)), drawn(models, source, a))
    late = prompt("sd15", 5, start_percent=0.99, end_percent=1.0)
    close(drawn(models, source, [*a, *late]), drawn(models, source, a))
    never = drawn(models, source, late)
    close(never, drawn(models, source, source))


def test_masks_of_conditionings_count(models):
    a, source = prompt("sd15", 4), prompt("sd15", 3)
    left, right = (prompt("sd15", 4, **part("sd15", side)) for side in ("left", "right"))
    close(drawn(models, source, [*left, *right]), drawn(models, source, a))
    unmasked = prompt("sd15", 3, **part("sd15", "right"))
    close(drawn(models, source, [*left, *unmasked]), drawn(models, source, left))
    assert not torch.allclose(drawn(models, source, left), drawn(models, source, a), atol=1e-3)


def test_an_area_in_source_or_target_is_refused(models):
    area = prompt("sd15", 4, area=(8, 6, 0, 0), strength=1.0)
    for source, target in ((prompt("sd15", 3), area), (area, prompt("sd15", 3))):
        with pytest.raises(BoxwrightError, match="has an area of its own"):
            drawn(models, source, target)


def windowed(model, length, overlap=0):
    model = model.clone()
    schedule = get_matching_context_schedule(ContextSchedules.STATIC_STANDARD)
    fuse = get_matching_fuse_method(ContextFuseMethods.FLAT)
    known = signature(IndexListContextHandler).parameters
    newer = {"causal_window_fix": False} if "causal_window_fix" in known else {}
    model.model_options["context_handler"] = IndexListContextHandler(
        schedule, fuse, context_length=length, context_overlap=overlap, **newer
    )
    return model


@pytest.mark.parametrize("length", [2, 3])
def test_context_windows_have_their_own_shifts(models, length):
    """Pictures do not see each other in an SD1.5 model, so windows over a batch change nothing."""
    model = edit_h_space(models["sd15"], prompt("sd15", 3), prompt("sd15", 4), HSpace(1.0, WHOLE))
    noise = tiny_models.latent("sd15", (8, 12), 5)
    whole = tiny_models.run("sd15", model, prompt("sd15", 1), noise=noise)
    found = tiny_models.run("sd15", windowed(model, length), prompt("sd15", 1), noise=noise)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
    assert not torch.allclose(found, tiny_models.run("sd15", models["sd15"], prompt("sd15", 1), noise=noise), atol=1e-2)


def test_a_patch_that_cuts_the_batch_is_refused(models):
    def in_halves(apply_model, args):
        options = dict(args["c"])
        parts = [
            apply_model(x, t, **{**options, "c_crossattn": c})
            for x, t, c in zip(*(args[k].chunk(2) for k in ("input", "timestep")), options["c_crossattn"].chunk(2))
        ]
        return torch.cat(parts)

    model = edit_h_space(models["sd15"], prompt("sd15", 3), prompt("sd15", 4), HSpace(1.0, WHOLE))
    model.set_model_unet_function_wrapper(in_halves)
    with pytest.raises(IncompatiblePatchError, match="another patch runs the model on"):
        tiny_models.run("sd15", model, prompt("sd15", 1), noise=tiny_models.latent("sd15", (8, 12), 2))


@pytest.mark.parametrize("window", [(0.0, 0.6), (0.2, 0.7), (0.0, 1.0)])
def test_steps_share_the_window_whatever_their_number_and_schedule(models, window):
    """Else more steps would edit more."""

    class Noted(HSpace):
        def shift(self, from_source, from_target, share):
            shares.append(share)
            return super().shift(from_source, from_target, share)

    for steps, more in ((2, {}), (5, {}), (9, {"scheduler": "karras"}), (4, {"sampler": "dpmpp_2m"})):
        shares, settings = [], Noted(1.0, StepWindow(*window))
        model = edit_h_space(models["sd15"], prompt("sd15", 3), prompt("sd15", 4), settings)
        noise = tiny_models.latent("sd15", (8, 8), 1)
        tiny_models.run("sd15", model, prompt("sd15", 1), noise=noise, steps=steps, cfg=1.0, **more)
        missed = 1.0 / steps if window[0] else 0.0  # a step that began before the window has none
        assert window[1] - window[0] - missed - 1e-3 < sum(shares) < window[1] - window[0] + 1e-3
