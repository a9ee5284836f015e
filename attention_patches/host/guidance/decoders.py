"""Clean latents of a run as pictures, with a graph: by the colours of a latent cell, or through the VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.types import BoxwrightError, UnsupportedModelError
from ..attention.saveable import saveable
from .differentiable import differentiable

Decoder = Callable[[Any, Tensor], Tensor]  # (base model, clean latents [B, C, (1,) h, w]) -> pictures [B, 3, H, W]


def decoder_for(model: Any, vae: Any = None) -> Decoder:
    """For the latents of a MODEL, through a VAE if there is one.

    Raises BoxwrightError for a VAE of other latents or that makes no pictures, and for a model without a VAE whose
    latents' colours the host does not know.
    """
    latent_format = model.model.latent_format
    if vae is not None:
        if getattr(vae, "latent_channels", None) != latent_format.latent_channels:
            raise BoxwrightError(
                f"The VAE reads latents of {getattr(vae, 'latent_channels', 'no')} channels, this model makes "
                f"{latent_format.latent_channels}. Wire the VAE of this model."
            )
        return VaeDecoder(vae)
    if latent_format.latent_rgb_factors is None:
        raise UnsupportedModelError(
            f"ComfyUI does not know the colours of this model's latents ({type(latent_format).__name__}). Wire its VAE."
        )
    return latent_colors


def latent_colors(base_model: Any, clean: Tensor) -> Tensor:
    """One pixel for each latent cell, by the factors that the host makes its previews with."""
    form = base_model.latent_format
    reshape = getattr(form, "latent_rgb_factors_reshape", None)
    clean = clean if reshape is None else reshape(clean)
    clean = clean[:, :, 0] if clean.ndim == 5 else clean
    factors = clean.new_tensor(form.latent_rgb_factors)
    colors = torch.einsum("bchw,cr->brhw", clean, factors)
    bias = getattr(form, "latent_rgb_factors_bias", None)
    colors = colors if bias is None else colors + clean.new_tensor(bias)[:, None, None]
    return _bounded((colors + 1.0) / 2.0)


class VaeDecoder:
    """The VAE itself. Its weights lie where the run has put them."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @property
    def models(self) -> tuple:
        """The host's patchers that must be in memory."""
        return (self.vae.patcher,)

    def __call__(self, base_model: Any, clean: Tensor) -> Tensor:
        vae = self.vae
        latent = saveable(base_model.process_latent_out, clean).to(vae.device, vae.vae_dtype)
        if vae.latent_dim == 2 and latent.ndim == 5:
            latent = latent[:, :, 0]
        elif vae.latent_dim == 3 and latent.ndim == 4:
            latent = latent[:, :, None]
        with differentiable(vae.first_stage_model):
            raw = vae.first_stage_model.decode(latent).float()
        raw = raw[:, :, 0] if raw.ndim == 5 else raw
        if raw.shape[1] != 3:
            raise BoxwrightError(f"The VAE makes pictures of {raw.shape[1]} channels. Wire one that makes RGB.")
        return _bounded(_in_unit_range(vae, raw)).to(clean.device)


def _in_unit_range(vae: Any, raw: Tensor) -> Tensor:
    """Most VAEs return -1..1; the host's own function knows, and works in place."""
    plain = (raw + 1.0) / 2.0
    with torch.no_grad():
        wanted = vae.process_output(raw.detach().clone())
    if torch.allclose(wanted, plain.detach().clamp(0.0, 1.0), atol=1e-3):
        return plain
    return saveable(vae.process_output, raw.clone())


def _bounded(pictures: Tensor) -> Tensor:
    """Values in 0..1, with the gradient they would have without that: a white pixel can still turn red."""
    return pictures + (pictures.detach().clamp(0.0, 1.0) - pictures.detach())
