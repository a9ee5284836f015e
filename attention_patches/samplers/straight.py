"""Straight paths from a picture to noise: how edits made for flow models read every other model.

A flow model's noisy latent is q = (1 - t) clean + t noise, with the time t from 0 to 1, and its velocity is dq/dt. The
host's latents `signal * clean + noise * normal` (`noise.py`) are the same ones times `scale` = signal + noise, at
t = noise / scale. So a model of noise or v is a flow model whose latents were multiplied: its velocity on the straight
path follows from the clean latent that it predicts, and a method for flow models runs on it without a change. Euler
steps of one path are Euler steps of the other; what differs between the scalings is only where a method puts a latent
that lies beside the path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Denoiser, Level, Levels


@dataclass(frozen=True)
class Prompts:
    """What two prompts make of a noisy latent, as the host's samplers ask a model: (latent, sigma) -> clean latent."""

    source: Denoiser  # of what the picture shows
    target: Denoiser  # of what it shall show, with the guidance that the method asks for


@dataclass(frozen=True)
class PathTime:
    """One noise level as a time on the straight path."""

    sigma: float  # of the host
    time: float  # 0 = the picture, 1 = noise
    scale: float  # the host's latent is that of the path times this

    @classmethod
    def of(cls, sigma: float, levels: Levels) -> PathTime:
        """The time of a noise level of the host."""
        level: Level = levels(sigma)
        scale = level.signal + level.noise
        return cls(sigma, level.noise / scale, scale)

    def on_path(self, picture: Tensor, noise: Tensor) -> Tensor:
        """The point of the path between both."""
        return torch.lerp(picture, noise, self.time)

    def clean(self, model: Denoiser, point: Tensor) -> Tensor:
        """The clean latent that a prompt sees in a point of the path."""
        return model(point * self.scale, self.sigma)

    def velocity(self, point: Tensor, clean: Tensor) -> Tensor:
        """dq/dt at a point, from the clean latent that was seen in it. Not at time 0."""
        return (point - clean) / self.time


@dataclass(frozen=True)
class Calls:
    """How often a run asks each of two prompts."""

    source: int
    target: int


def mean_of(draws: int, one: Callable[[], Tensor]) -> Tensor:
    """The mean of what `one` returns in `draws` calls, which differ by the noise that it draws."""
    total = one()
    for _ in range(draws - 1):
        total = total + one()
    return total / draws if draws > 1 else total
