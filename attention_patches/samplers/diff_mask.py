"""DiffEdit's mask (Couairon et al., arXiv 2210.11427, section 3.2 step 1): where two prompts disagree about a picture.

The picture is noised, the model predicts it from both prompts with the same noise, and the size of the difference,
averaged over channels and noise draws, becomes a heat map and, above a threshold, a mask. At one noise level the
differences of predicted noise, v, velocity and clean latent are the same up to a factor, which normalising removes; so
clean latents stand for all of them.

Departures: extreme values are clipped at a quantile of each draw (the paper does not say how it removes them); all
statistics are those of one picture, never of the batch; blur, Otsu's threshold and the clean-up of the mask are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.masks import MAX_RADIUS, blurred, closed, dilated, largest_patch, otsu_threshold, stretched
from ..core.types import BoxwrightError, check_range

MAX_DRAWS = 64


@dataclass(frozen=True)
class DiffMask:
    """Settings. Lengths in latent cells (8 pixels for most models)."""

    draws: int = 10  # noise draws to average
    noise_level: float = 0.5  # share of the noise schedule: 0 = clean, 1 = pure noise
    clip: float = 0.97  # quantile above which the differences of a draw are cut off; 1 = never
    blur: float = 0.5  # of the heat map, before the threshold
    threshold: float = 0.5  # of the heat from 0 to 1; unused with "otsu"
    method: Literal["fixed", "otsu"] = "fixed"
    close: int = 2
    dilate: int = 0
    keep_largest: bool = False

    def __post_init__(self) -> None:
        check_range("draws", self.draws, 1, MAX_DRAWS)
        check_range("noise_level", self.noise_level, 0.01, 0.99)
        check_range("clip", self.clip, 0.5, 1.0)
        check_range("blur", self.blur, 0.0, MAX_RADIUS / 4)
        check_range("threshold", self.threshold, 0.0, 1.0)
        check_range("close", self.close, 0, MAX_RADIUS)
        check_range("dilate", self.dilate, 0, MAX_RADIUS)
        if self.method not in ("fixed", "otsu"):
            raise BoxwrightError(f'The threshold method "{self.method}" does not exist; choose "fixed" or "otsu".')

    def of_draw(self, source: Tensor, target: Tensor) -> Tensor:
        """Predictions [B, C, ..., h, w] from both prompts for one draw -> difference [B, h, w], extremes cut off."""
        difference = (target.float() - source.float()).abs()
        maps = difference.mean(dim=tuple(range(1, difference.ndim - 2)))
        if self.clip >= 1.0:
            return maps
        highest = maps.flatten(1).quantile(self.clip, dim=1)
        return torch.minimum(maps, highest[:, None, None])

    def heat(self, mean: Tensor) -> Tensor:
        """Mean difference [B, h, w] of the draws -> heat from 0 to 1 in each picture (0 where it is flat)."""
        return stretched(blurred(mean, self.blur))

    def mask(self, heat: Tensor) -> Tensor:
        """Heat [B, h, w] on the CPU -> mask of zeros and ones, same shape."""
        limits = [otsu_threshold(one) if self.method == "otsu" else self.threshold for one in heat]
        masks = closed((heat > heat.new_tensor(limits)[:, None, None]).float(), self.close)
        return dilated(largest_patch(masks) if self.keep_largest else masks, self.dilate)
