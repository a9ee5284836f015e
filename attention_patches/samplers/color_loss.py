"""A colour as a loss on pictures: of their mean, or of every pixel. And losses added. See core/pictures.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.pictures import PictureLoss
from ..core.types import BoxwrightError, counted

MAX_COLORS = 16
SOFTNESS = 0.02  # squared distance at which a second palette colour stops counting
Color = tuple[float, float, float]  # red, green, blue in 0..1
Of = Literal["mean", "every pixel"]


@dataclass(frozen=True)
class ColorLoss:
    """How far pictures are from colours: squared distances in RGB of 0..1, summed over the three channels.

    "mean": of the mean colour from the nearest of the colours. "every pixel": the mean over the pixels of each one's
    distance from a palette: of the distances to its colours a mean in which the nearest counts, and others as near.
    """

    colors: tuple[Color, ...]
    of: Of = "mean"

    def __post_init__(self) -> None:
        if not 1 <= len(self.colors) <= MAX_COLORS:
            raise BoxwrightError(f"There are {counted(len(self.colors), 'colour')}; write 1 to {MAX_COLORS}.")
        for color in self.colors:
            if not all(0.0 <= value <= 1.0 for value in color):
                raise BoxwrightError(f"The colour {color} has values outside 0 to 1.")

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B]."""
        palette = pictures.new_tensor(self.colors)
        seen = pictures.mean(dim=(2, 3), keepdim=True) if self.of == "mean" else pictures
        away = (seen[:, None] - palette[None, :, :, None, None]).square().sum(dim=2)  # [B, colours, h, w]
        nearest = (away * torch.softmax(-away / SOFTNESS, dim=1)).sum(dim=1)
        return nearest.mean(dim=(1, 2))


@dataclass(frozen=True)
class WeightedSum:
    """Several losses added."""

    parts: tuple[tuple[float, PictureLoss], ...]

    @property
    def models(self) -> tuple:
        """The host's patchers that its parts need in memory."""
        return tuple(model for _, loss in self.parts for model in getattr(loss, "models", ()))

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B]."""
        return sum(weight * loss(pictures) for weight, loss in self.parts)


def added(loss: PictureLoss, weight: float, more: Sequence[PictureLoss] = ()) -> WeightedSum:
    """A loss times `weight`, and others as they are."""
    return WeightedSum(((weight, loss), *((1.0, other) for other in more)))
