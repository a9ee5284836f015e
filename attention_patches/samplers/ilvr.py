"""ILVR (Choi et al., arXiv 2108.02938): a picture whose coarse content is that of a reference.

After each ancestral step the low frequencies of the sample are replaced by those of the reference, noised to the same
level (their equation 9): x <- x + low(y) - low(x). The smaller the factor, the closer the result. Departures: on
latents instead of pixels, so factors are smaller (8 latent cells are 64 pixels); an optional mask says where it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..core.types import StepWindow, check_range
from .noise import Callback, Denoiser, ddpm_step, falling, noised, report
from .scene import Scene

MAX_FACTOR = 64


@dataclass(frozen=True)
class ILVR:
    """Settings."""

    factor: int = 4  # latent cells that are averaged into one; 1 = the reference itself
    window: StepWindow = StepWindow(0.0, 0.8)

    def __post_init__(self) -> None:
        check_range("The factor", self.factor, 1, MAX_FACTOR)

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
        levels = [scene.levels(sigma) for sigma in values]
        for i, sigma in enumerate(values[:-1]):
            clean = model(x, sigma)
            x = ddpm_step(x, clean, levels[i], levels[i + 1], scene.draw)
            if self.window.contains(scene.progress(sigma)):
                reference = noised(scene.source, levels[i + 1], scene.draw)
                x = x + scene.mask * (low_pass(reference, self.factor) - low_pass(x, self.factor))
            report(callback, i, x, sigma, clean)
        return x


def low_pass(x: Tensor, factor: int) -> Tensor:
    """[B, C, ..., h, w] without what is smaller than `factor` cells: bicubic down and up again. 1 = unchanged."""
    if factor == 1:
        return x
    height, width = x.shape[-2:]
    planes = x.reshape(x.shape[0], -1, height, width)
    small = (-(-height // factor), -(-width // factor))
    down = F.interpolate(planes, size=small, mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(down, size=(height, width), mode="bicubic", align_corners=False).reshape(x.shape)
