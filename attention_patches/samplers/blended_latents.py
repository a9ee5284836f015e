"""Blended Latent Diffusion (Avrahami et al., arXiv 2206.02779): after each step the background is the noised original.

Departures from the published code: the background is noised to the level the picture has reached, not to the one
before; a run that starts below full noise starts from the noised original, not from pure noise. The progressive
shrinking of thin masks (their section 4.3) is a dilation that goes to nothing over the first part of the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.masks import MAX_RADIUS, dilated
from ..core.types import BoxwrightError
from .noise import Callback, Denoiser, euler_step, falling, noised, report
from .scene import Scene


@dataclass(frozen=True)
class BlendedLatents:
    """Settings."""

    grow: int = 0  # latent cells by which the mask is larger at first
    grow_until: float = 0.5  # share of the steps after which the mask has its own size

    def __post_init__(self) -> None:
        if not 0 <= self.grow <= MAX_RADIUS:
            raise BoxwrightError(f"The mask is to grow by {self.grow} cells; choose 0 to {MAX_RADIUS}.")
        if not 0.0 < self.grow_until <= 1.0:
            raise BoxwrightError(f"grow_until is {self.grow_until:g}; choose a value above 0, up to 1.")

    def radius(self, done: float) -> int:
        """By how many cells the mask is larger when this share of the steps is done; falls to 0 at `grow_until`."""
        return round(self.grow * max(0.0, 1.0 - done / self.grow_until))

    def sample(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        scene: Scene,
        callback: Callback | None = None,
    ) -> Tensor:
        """x [B, C, ..., h, w] at the first of `sigmas` (falling) -> the picture at the last."""
        values = falling(sigmas)
        steps = len(values) - 1
        masks = {0: scene.mask}
        for i, (sigma, target) in enumerate(zip(values, values[1:])):
            clean = model(x, sigma)
            x = euler_step(x, clean, sigma, target)
            radius = self.radius((i + 1) / steps)
            if radius not in masks:
                masks[radius] = dilated(scene.mask, radius)
            x = masks[radius] * x + (1.0 - masks[radius]) * noised(scene.source, scene.levels(target), scene.draw)
            report(callback, i, x, sigma, clean)
        return x
