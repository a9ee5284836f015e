"""Deterministic inversion: the noise from which a model, stepping without randomness, draws a given picture.

DDIM inversion (arXiv 2010.02502, section 4.3) for models of noise or v, Euler for flow models: the same formula in the
host's scaling (`noise.py`). A sampling step from sigma' down to sigma uses the prediction at the noisy end; inverting
it exactly would need the prediction at the result. The first guess takes it at the clean end, rescaled to the noise
level it is read at (as DDIM inversion does); each refinement takes it at the last result (fixed-point iteration, as in
arXiv 2309.04907 and 2403.14602).
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.types import BoxwrightError, counted
from .noise import Callback, Denoiser, Levels, euler_step, falling, report

MAX_MEMORY, MAX_DISK = 8 * 2**30, 64 * 2**30  # bytes of a trajectory
MAX_REFINEMENTS = 20
FLAT = 1e-3  # standard deviation of a latent below which a share of it says nothing
Storage = Literal["memory", "disk"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A picture at every noise level of one inversion, in the model's own latent space."""

    sigmas: tuple[float, ...]  # rising, sigmas[0] = 0
    states: Tensor  # float32 [S, B, C, ..., h, w] on the CPU; states[0] is the picture
    space: str  # which models share this latent space and noise; compared before use

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one state: [B, C, ..., h, w]."""
        return tuple(self.states.shape[1:])

    def at(self, sigma: float) -> Tensor:
        """The picture at a noise level, float32 [B, C, ..., h, w] on the CPU.

        Between two levels of the inversion it lies on the straight line that Euler steps go along. Raises
        BoxwrightError above the last level.
        """
        top = self.sigmas[-1]
        if sigma > top * (1 + 1e-4):
            raise BoxwrightError(
                f"The schedule starts at sigma {sigma:.4g}, the picture was inverted up to {top:.4g} only. Wire the "
                "same sigmas to Invert and to the sampler, or start the sampler lower."
            )
        above = next((i for i, level in enumerate(self.sigmas) if level >= sigma), len(self.sigmas) - 1)
        if above == 0 or abs(self.sigmas[above] - sigma) <= 1e-6 * top or self.sigmas[above] < sigma:
            return self.states[above].clone()
        low, high = self.sigmas[above - 1], self.sigmas[above]
        return torch.lerp(self.states[above - 1], self.states[above], (sigma - low) / (high - low))


def empty_states(levels: int, shape: Sequence[int], storage: Storage) -> Tensor:
    """Room for `levels` latents of `shape`, float32 on the CPU: in memory, or in a temporary file that goes with it.

    Raises BoxwrightError above MAX_MEMORY or MAX_DISK bytes.
    """
    count = levels * math.prod(shape)
    limit = MAX_MEMORY if storage == "memory" else MAX_DISK
    if count * 4 > limit:
        other = '; choose "disk"' if storage == "memory" and count * 4 <= MAX_DISK else ""
        raise BoxwrightError(
            f"{levels} noise levels of {counted(shape[0], 'latent')} need {count * 4 / 2**30:.1f} GiB, more than "
            f"{limit / 2**30:.0f} GiB{other}. Use fewer steps or a smaller batch."
        )
    if storage == "memory":
        return torch.empty(levels, *shape)
    handle, name = tempfile.mkstemp(prefix="boxwright-")
    os.close(handle)
    os.truncate(name, count * 4)
    states = torch.from_file(name, shared=True, size=count, dtype=torch.float32).view(levels, *shape)
    try:
        os.unlink(name)  # the mapping lives on
    except OSError:  # Windows keeps mapped files
        weakref.finalize(states, _remove, name)
    return states


def _remove(name: str) -> None:
    try:
        os.unlink(name)
    except OSError:
        pass  # still mapped by a view of it; the temporary folder is the system's to clear


def invert(
    model: Denoiser,
    picture: Tensor,
    sigmas: Tensor | Sequence[float],
    levels: Levels,
    refinements: int = 0,
    states: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Clean latents [B, C, ..., h, w] -> their noise at the first of `sigmas` (falling to 0), same shape.

    `states`, if given, is filled: states[i] belongs to the i-th sigma from the end. Takes (1 + refinements) evaluations
    for each step.
    """
    rising = falling(sigmas)[::-1]
    x = picture
    if states is not None:
        states[0].copy_(x)
    for i, (sigma, target) in enumerate(zip(rising, rising[1:])):
        guess = x * _spread(levels, target) / _spread(levels, sigma)
        for _ in range(1 + refinements):
            clean = model(guess, target)
            # The sampler's step goes down along (guess - clean) / target; here it is walked upwards from x.
            guess = x + (target - sigma) / target * (guess - clean)
            report(callback, i, guess, target, clean)
        x = guess
        if states is not None:
            states[i + 1].copy_(x)
    return x


def _spread(levels: Levels, sigma: float) -> float:
    """Standard deviation of a noisy latent whose clean one has 1."""
    level = levels(sigma)
    return math.hypot(level.signal, level.noise)


def decode(
    model: Denoiser, noise: Tensor, sigmas: Tensor | Sequence[float], callback: Callback | None = None
) -> Tensor:
    """Euler (DDIM) sampling from `noise` at the first of `sigmas` to the last: what `invert` inverts."""
    values, x = falling(sigmas), noise
    for i, (sigma, target) in enumerate(zip(values, values[1:])):
        clean = model(x, sigma)
        x = euler_step(x, clean, sigma, target)
        report(callback, i, x, sigma, clean)
    return x


@dataclass(frozen=True)
class Deviation:
    """How far a latent is from what it should be."""

    rms: float  # root mean square difference, in the units of the model's latent space
    spread: float  # standard deviation of the latent it should be, about 1 for ordinary pictures

    def __str__(self) -> str:
        """In words, "2.3 %" of the spread, or "0.012 (flat)" where there is hardly any."""
        return f"{self.rms:.2g} (flat)" if self.flat else f"{100 * self.rms / self.spread:.1f} %"

    @property
    def flat(self) -> bool:
        """Whether the latent has hardly any spread, so that a share of it says nothing."""
        return self.spread < FLAT


def deviations(found: Tensor, truth: Tensor) -> list[Deviation]:
    """Of each row [B, ...] of `found` from that of `truth`."""
    errors = (found - truth).flatten(1).pow(2).mean(1).sqrt()
    return [Deviation(*pair) for pair in zip(errors.tolist(), truth.flatten(1).std(1).tolist(), strict=True)]


def directly_inverted(x: Tensor, trajectory: Trajectory, sigma: float, rows: Sequence[int] | slice) -> Tensor:
    """Direct inversion (Ju et al., arXiv 2310.01506): the source rows of a batch put back on their inverted path.

    Called after each step, with the noise level x has then reached. What inversion loses is given back to the rows that
    redraw the source picture, in full, and the other rows, which are edited beside them, are left alone. Replaces
    null-text optimisation (arXiv 2211.09794) at no cost.

    x: [B, C, ..., h, w]; `rows`: which of them redraw the trajectory's pictures, as many as it has, or any number where
    it has one. Returns a new tensor.
    """
    source = trajectory.at(sigma).to(x)
    fixed = x.clone()
    fixed[rows] = source.expand_as(fixed[rows])
    return fixed


def sample_beside(
    model: Denoiser,
    like: Tensor,
    trajectory: Trajectory,
    sigmas: Tensor | Sequence[float],
    callback: Callback | None = None,
) -> Tensor:
    """Redraw the trajectory's pictures and, beside each, its edits: groups of rows, the picture's own row first.

    `like` [B, C, ..., h, w] gives the number of rows (a multiple of the trajectory's), device and dtype. All rows of a
    group start from the picture's noise; the first is put back on its path after every step. Raises BoxwrightError.
    """
    values, pictures = falling(sigmas), trajectory.shape[0]
    if like.shape[0] % pictures or like.shape[1:] != trajectory.shape[1:]:
        raise BoxwrightError(
            f"The sampler has latents of shape {tuple(like.shape)}, the inverted ones have {trajectory.shape}. Invert "
            "the latent that goes into Prompt to Prompt, and wire the one that comes out of it to the sampler."
        )
    count = like.shape[0] // pictures
    x = trajectory.at(values[0]).to(like).repeat_interleave(count, dim=0)
    for i, (sigma, target) in enumerate(zip(values, values[1:])):
        clean = model(x, sigma)
        x = directly_inverted(euler_step(x, clean, sigma, target), trajectory, target, slice(0, None, count))
        report(callback, i, x, sigma, clean)
    return x
