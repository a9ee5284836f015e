"""What a sampling loop that edits a picture knows beside the latent it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .noise import Draw, Levels


@dataclass(frozen=True)
class Scene:
    """One run of a sampler over a picture."""

    source: Tensor  # clean latents [B, C, ..., h, w] of the picture, in the model's latent space
    mask: Tensor  # broadcasts to it: 1 = change, 0 = keep
    levels: Levels
    draw: Draw
    progress: Callable[[float], float]  # sigma -> share of the schedule, as a StepWindow counts it
