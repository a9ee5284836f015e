"""A NOISE arranged at once, by a run that ends before its first step; see methods/arranged_noise.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..core.types import BoxwrightError, Layout
from ..methods.arranged_noise import ArrangedNoise, Plan
from ..methods.box_constraint import constrained_phrases
from .install import install


@dataclass(frozen=True)
class FixedNoise:
    """A NOISE of the host that is there already, for one latent."""

    seed: int
    values: Tensor

    def generate_noise(self, latent: Mapping[str, Any]) -> Tensor:
        """Those values, for a LATENT of the shape they were made for. Raises BoxwrightError for any other."""
        shape = tuple(latent["samples"].shape)
        if shape != tuple(self.values.shape):
            raise BoxwrightError(
                f"This noise was arranged for a latent of shape {tuple(self.values.shape)}, and the sampler has "
                f"{shape}. Wire the same latent to both."
            )
        return self.values.clone()  # the host keeps this object for the next run


class _Start(comfy.samplers.Sampler):
    """Keeps the noise it is to start from, and takes no step."""

    noise: Tensor

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        self.noise = noise
        return torch.zeros_like(noise)


def _fitted(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a latent as the host's sampler gives them to this model: an empty one is made to fit."""
    fit = comfy.sample.fix_empty_latent_channels
    known = list(signature(fit).parameters)[2:]  # older hosts take less account of what an empty latent was made for
    return fit(model, latent["samples"], **{name: latent[name] for name in known if name in latent})


def arrange(
    model: Any,
    positive: list,
    layout: Layout,
    settings: ArrangedNoise,
    noise: Any,
    latent: Mapping[str, Any],
    sigmas: Tensor | None = None,
) -> tuple[FixedNoise, Plan]:
    """The NOISE that `noise` makes for a LATENT, arranged for a run on these sigmas (None = from full noise).

    Raises BoxwrightError where there is nothing to arrange; UnsupportedModelError.
    """
    phrases = constrained_phrases(layout)
    if not phrases:
        raise BoxwrightError("No region of the layout has a strength above 0. Give one a box to arrange the noise for.")
    if sigmas is None:
        sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    if len(sigmas) < 2:
        raise BoxwrightError("There is nothing to arrange: the sigmas have no step. Raise denoise or steps.")
    samples = _fitted(model, latent)
    drawn = noise.generate_noise({**latent, "samples": samples})
    plans: list[Plan] = []
    told: list[str] = []
    edit = settings.edit(phrases, plans.append)
    patched, sampler = install(model, layout, [edit], told.append), _Start()
    comfy.sample.sample_custom(
        patched,
        drawn,
        1.0,
        sampler,
        sigmas,
        positive,
        positive,
        samples,
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=noise.seed,
    )
    if not plans:
        raise BoxwrightError(f"There is nothing to arrange: {told[0]}.")
    return FixedNoise(noise.seed, sampler.noise.to(drawn)), plans[0]
