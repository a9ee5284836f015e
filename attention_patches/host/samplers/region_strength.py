"""Strengths by regions in the host's samplers: the latent's noise mask holds them, the MODEL says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.types import BoxwrightError
from ...samplers.region_strength import ROUNDING, open_cells
from ..run.schedule import progress_of
from .loops import LAST, check_model, picture_latent

SLOT = "denoise_mask_function"


def redrawn_by_strength(model: Any, latent: Mapping[str, Any], strengths: Tensor) -> tuple[Any, dict[str, Any]]:
    """A clone of the MODEL and the LATENT of a picture, to be wired to any sampler node together.

    strengths: [h, w] of 0..1, of any size. A noise mask that the latent has already weakens them. Raises BoxwrightError
    for latents of no picture, where another patch gives grey masks a meaning of its own, and where nothing is redrawn.
    """
    check_model(model)
    samples = picture_latent(model, latent)
    if SLOT in model.model_options:
        raise BoxwrightError(
            "Another node on this model says what grey masks mean (Differential Diffusion, or Region Strength once "
            "more). This node does the same: remove the other."
        )
    mask = strengths[None, None].float()
    if float(mask.max()) <= ROUNDING:
        raise BoxwrightError(
            "Nothing would be redrawn: every strength is 0, that of the background too. Raise that of a region."
        )
    if (given := latent.get("noise_mask")) is not None:
        given = given.reshape(-1, 1, *given.shape[-2:]).float().cpu()
        mask = torch.nn.functional.interpolate(mask, size=given.shape[-2:], mode="bilinear") * given
        if float(mask.max()) <= ROUNDING:
            raise BoxwrightError(
                "Nothing would be redrawn: the latent's noise mask is black wherever a strength is above 0. Paint it "
                "white there, or remove it from the latent."
            )
    patched = model.clone()
    patched.set_model_denoise_mask_function(_open_now)
    return patched, {**latent, "samples": samples, "noise_mask": mask}


def _open_now(sigma: Tensor, denoise_mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """The host's denoise_mask_function: what of the strengths in its mask is redrawn at a sigma."""
    progress = progress_of(extra_options["model"].inner_model.model_sampling)
    return open_cells(denoise_mask, min(progress(float(sigma.flatten()[0])), LAST))
