"""Losses on the features of pictures: near to a text or a picture, or moved in a direction. And where CLIP looks.

Semantic Diffusion Guidance (arXiv 2112.05744) has the first two, Blended Diffusion (2111.14818) the augmented crops,
StyleGAN-NADA (2108.00946) and DiffusionCLIP (2110.02711) the direction. Departures: features are of the predicted clean
picture, so that no encoder has to learn noise; crops are turned and moved squares without perspective, and the same in
every step, so that a loss is a function of the picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, normalize

MAX_CROPS = 64
SMALLEST = 0.6  # side of a crop, as a share of the shorter side
TURN = math.radians(12)
Encoder = Callable[[Tensor], Tensor]  # pictures [n, 3, S, S], RGB in 0..1 -> features [n, D]


@dataclass(frozen=True)
class Crops:
    """What an encoder looks at: the picture as a whole, and `count` - 1 squares of it."""

    count: int = 8
    seed: int = 0

    def of(self, pictures: Tensor, side: int) -> Tensor:
        """[B, 3, h, w] -> [count * B, 3, side, side], crop by crop; differentiable."""
        height, width = pictures.shape[-2:]
        shrink = min(1.0, 2 * side / min(height, width))  # what is sampled below must not skip pixels
        if shrink < 1.0:
            size = (round(height * shrink), round(width * shrink))
            pictures = interpolate(pictures, size=size, mode="bilinear", antialias=True)
        found = [interpolate(pictures, size=(side, side), mode="bicubic", antialias=True)]
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for _ in range(self.count - 1):
            theta = _square(generator, height, width).to(pictures)[None].expand(pictures.shape[0], -1, -1)
            grid = affine_grid(theta, [pictures.shape[0], 3, side, side], align_corners=False)
            found.append(grid_sample(pictures, grid, padding_mode="border", align_corners=False))
        return torch.cat(found)


def _square(generator: torch.Generator, height: int, width: int) -> Tensor:
    """[2, 3]: from the corners of a crop, -1..1, to places in the picture, -1..1."""
    share, angle, right, down = torch.rand(4, generator=generator).tolist()
    side = (SMALLEST + (1.0 - SMALLEST) * share) * min(height, width)
    angle = (2 * angle - 1) * TURN
    sine, cosine = math.sin(angle) * side, math.cos(angle) * side
    x, y = (2 * right - 1) * (1 - side / width), (2 * down - 1) * (1 - side / height)
    return torch.tensor([[cosine / width, -sine / width, x], [sine / height, cosine / height, y]])


@dataclass(frozen=True, eq=False)
class FeatureLoss:
    """1 - the cosine between the features of a picture's crops and those of a text or picture: mean over the crops."""

    encode: Encoder
    side: int  # pixels of the encoder's pictures
    target: Tensor  # [1, D]
    crops: Crops = Crops()
    models: tuple = ()

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B]."""
        return 1.0 - self._along(self._features(pictures), self.target)

    def _features(self, pictures: Tensor) -> Tensor:
        """[crops, B, D] of length 1."""
        features = self.encode(self.crops.of(pictures, self.side)).float().to(pictures.device)
        return normalize(features, dim=-1).unflatten(0, (self.crops.count, -1))

    def _along(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean cosine of [crops, B, D] with [1, D] over the crops, [B]."""
        wanted = normalize(target.float(), dim=-1).to(features)
        return (normalize(features, dim=-1) * wanted).sum(dim=-1).mean(dim=0)


@dataclass(frozen=True, eq=False)
class DirectionLoss(FeatureLoss):
    """1 - the cosine between how the features have moved away from a source picture's, and `target`, a direction."""

    source: Tensor = field(kw_only=True)  # [1, 3, H, W], the picture to move away from

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B]."""
        with torch.no_grad():
            source = interpolate(self.source.to(pictures), size=pictures.shape[-2:], mode="bilinear", antialias=True)
            origin = self._features(source)
        return 1.0 - self._along(self._features(pictures) - origin, self.target)
