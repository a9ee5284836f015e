"""Uni-Edit and Uni-Inv (Jiao et al., arXiv 2504.13109): an edit from the inverted picture, where both prompts speak.

The picture is inverted with its own prompt up to a noise level (Uni-Inv: the next level is guessed with the last
velocity, and walked to with the velocity found there). On the way back both prompts look at the same latent. g is the
difference of their velocities, m its size from 0 to 1 over the picture; a step is that of the mixed velocity
m v_target + (1 - m) v_source and omega (1 + m) times that of g. Published: 15 steps, the last 60 % of the levels,
omega 5.

m is made of the absolute difference; one public implementation leaves that out. Departures: a mask, outside which the
latent follows the inverted path. Models of noise and v need no conversion here: both scalings make the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.masks import stretched
from ..core.types import check_range
from .inversion import Trajectory, empty_states
from .noise import Callback, Denoiser, falling, report
from .scene import Scene
from .straight import Calls, Prompts

MAX_OMEGA = 100.0


@dataclass(frozen=True)
class UniEdit:
    """Settings."""

    omega: float = 5.0  # how much further than the mixed velocity; 0 = that alone

    def __post_init__(self) -> None:
        check_range("The guidance of Uni-Edit", self.omega, 0.0, MAX_OMEGA)

    def calls(self, steps: int) -> Calls:
        """How often a run of so many steps asks each prompt."""
        return Calls(2 * steps + 1, steps)

    def sample(
        self,
        prompts: Prompts,
        sigmas: Tensor | Sequence[float],
        scene: Scene,
        callback: Callback | None = None,
    ) -> Tensor:
        """The edited latents [B, C, ..., h, w]. `sigmas` fall to 0; the first says how far the picture is inverted."""
        values = falling(sigmas)
        x, path = uni_inverted(prompts.source, scene.source, values)
        for i, (sigma, target) in enumerate(zip(values, values[1:])):
            clean = prompts.source(x, sigma), prompts.target(x, sigma)
            shown, wanted = ((x - seen) / sigma for seen in clean)
            g = wanted - shown
            m = stretched(g.abs().mean(dim=1, keepdim=True))
            x = x + (target - sigma) * (self.omega * (1.0 + m) * g + m * wanted + (1.0 - m) * shown)
            x = scene.mask * x + (1.0 - scene.mask) * path.at(target).to(x)
            report(callback, i, x, sigma, clean[1])
        return x


def uni_inverted(model: Denoiser, picture: Tensor, values: Sequence[float]) -> tuple[Tensor, Trajectory]:
    """Clean latents [B, C, ..., h, w] -> their noise at the first of `values` (falling to 0), and the way there.

    One evaluation a step, and one more for the first guess.
    """
    rising = values[::-1]
    states = empty_states(len(rising), picture.shape, "memory")
    states[0].copy_(picture)
    x, velocity = picture, None
    for i, (sigma, target) in enumerate(zip(rising, rising[1:]), 1):
        # At the picture itself there is no velocity to be had; it is that of the picture read at the first level.
        guess = x if velocity is None else x + (target - sigma) * velocity
        for _ in range(2 if velocity is None else 1):
            velocity = (guess - model(guess, target)) / target
            guess = x + (target - sigma) * velocity
        x = guess
        states[i].copy_(x)
    return x, Trajectory(tuple(rising), states, "")
