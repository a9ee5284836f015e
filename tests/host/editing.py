"""What the tests of masks, inversions and samplers of edits share: tiny latents and runs of the host's own sampling."""

import comfy.sample
import pytest
import tiny_models
import torch
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.inversion import invert_latent
from pack.attention_patches.samplers.diff_mask import DiffMask

FAMILIES = ["sd15", "sd2", "flux"]  # eps, v and flow
every_family = pytest.mark.parametrize("family", FAMILIES)
every_size = pytest.mark.parametrize("family, size", [("sd15", (8, 12)), ("sd2", (12, 8)), ("flux", (7, 11))])


def prompt(family, seed):
    return tiny_models.conditioning(family, tiny_models.text(seed=seed), seed=seed)


def pictures(family, batch=1, size=(8, 12)):
    """Latents as a VAE gives them."""
    return tiny_models.latent(family, size, batch, seed=11)


def sample(model, family, sampler, sigmas, latent, noise=None, cfg=3.0, seed=5, positive=1, **kw):
    noise = torch.zeros_like(latent) if noise is None else noise
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        prompt(family, positive),
        prompt(family, 2),
        latent,
        disable_pbar=True,
        seed=seed,
        **kw,
    )


def left_mask(size=(8, 12)):
    """1 in the left half of the picture, in pixels."""
    mask = torch.zeros(size[0] * 8, size[1] * 8)
    mask[:, : size[1] * 4] = 1.0
    return mask


def close(a, b, share=1e-3):
    torch.testing.assert_close(a, b, rtol=0, atol=share * float(b.abs().max()))


def mask_of(models, family, latent, seed=3, source=1, target=4, settings=None, **kw):
    settings = settings or DiffMask(draws=3)
    return measure(models[family], latent, prompt(family, source), prompt(family, target), settings, seed, **kw)


NAN, INF = float("nan"), float("inf")


def inverted(model, family, latent, sigmas):
    return invert_latent(model, latent, prompt(family, 1), sigmas, refinements=1).trajectory
