"""h-space edits inside the host's sampling, on tiny UNets."""

import logging

import pytest
import tiny_models
import torch
from pack.attention_patches.h_space import HSpace
from pack.attention_patches.host.h_space import edit_h_space
from pack.attention_patches.types import BoxwrightError, StepWindow, UnsupportedModelError

FAMILIES = ["sd15", "sd2", "sdxl"]
WHOLE = StepWindow()
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def models():
    return {family: tiny_models.build(family) for family in FAMILIES}


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
    expected, _ = once(1, 0.7 * (second - first))
    found = draw(models, family, HSpace(0.7, WHOLE), noise=noise, cfg=1.0, sigmas=sigmas)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_window_and_sign_count(models):
    plain = draw(models, "sd15")
    runs = [draw(models, "sd15", settings) for settings in (
        HSpace(1.0, WHOLE), HSpace(-1.0, WHOLE), HSpace(1.0, StepWindow(0.0, 0.3)), HSpace(1.0, StepWindow(0.3, 1.0))
    )]  # fmt: skip
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
