"""Noise levels: what every sampling loop here needs to know of a model family.

A noisy latent is `signal * clean + noise * normal`. In the host's samplers noise-predicting models (eps and v) have
signal 1 and noise sigma, flow models signal 1 - sigma and noise sigma. Both share the ODE dx/dsigma = (x - clean) /
sigma, so an Euler step is the same for both; for eps and v it is DDIM (arXiv 2010.02502) in the host's scaling.
Everything that adds noise needs the two numbers apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.types import BoxwrightError

Denoiser = Callable[[Tensor, float], Tensor]  # (noisy latent [B, C, ...], sigma) -> predicted clean latent
Draw = Callable[[Tensor], Tensor]  # latent -> standard normal noise of its shape, device and dtype
Callback = Callable[[dict[str, Any]], None]  # what the host's samplers report after each evaluation


@dataclass(frozen=True)
class Level:
    """One noise level."""

    signal: float
    noise: float


Levels = Callable[[float], Level]  # sigma -> Level


def noised(clean: Tensor, level: Level, draw: Draw) -> Tensor:
    """A clean latent [B, C, ...] with the noise of a level, drawn anew; same shape, device and dtype."""
    return clean * level.signal + draw(clean) * level.noise if level.noise else clean * level.signal


def renoised(x: Tensor, low: Level, high: Level, draw: Draw) -> Tensor:
    """x at level `low` -> the same picture at the noisier level `high`: one forward step of the diffusion."""
    keep = high.signal / low.signal
    return x * keep + draw(x) * max(high.noise**2 - (keep * low.noise) ** 2, 0.0) ** 0.5


def ddpm_step(x: Tensor, clean: Tensor, high: Level, low: Level, draw: Draw) -> Tensor:
    """One ancestral step from level `high` to `low`, given the predicted clean latent.

    The posterior of DDPM (arXiv 2006.11239, eq. 6 and 7) written for any signal and noise: of the noise of x the share
    `kept` stays, the rest is drawn anew.
    """
    kept = high.signal / low.signal * low.noise**2 / high.noise
    fresh = max(low.noise**2 - kept**2, 0.0) ** 0.5
    stepped = clean * low.signal + (x - clean * high.signal) * (kept / high.noise)
    return stepped + draw(x) * fresh if fresh else stepped


def euler_step(x: Tensor, clean: Tensor, sigma: float, target: float) -> Tensor:
    """One step of the ODE from `sigma` (above 0) to `target`, up or down, given the predicted clean latent at x."""
    return x + (target - sigma) / sigma * (x - clean)


def seeded(seed: int) -> Draw:
    """Noise drawn on the CPU; row i of a batch from its own generator, `seed + i`.

    So a batch equals single runs with the seeds that follow each other, on every device.
    """
    generators: list[torch.Generator] = []

    def draw(like: Tensor) -> Tensor:
        while len(generators) < like.shape[0]:
            generators.append(torch.Generator("cpu").manual_seed((seed + len(generators)) % 2**64))
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators[: like.shape[0]]]
        return torch.stack(rows).to(like)

    return draw


def report(callback: Callback | None, i: int, x: Tensor, sigma: float, clean: Tensor) -> None:
    """Tell the host that evaluation i is done."""
    if callback is not None:
        callback({"i": i, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})


def falling(sigmas: Tensor | Sequence[float]) -> list[float]:
    """A schedule as floats, noisiest first, each level once: a step from a level to itself changes nothing.

    Schedulers repeat levels where they are asked for more steps than the model has. Raises BoxwrightError, naming the
    sigma, where one is no finite number, lies below 0 or above the one before; and where no step is left.
    """
    values = sigmas.flatten().tolist() if isinstance(sigmas, Tensor) else [float(sigma) for sigma in sigmas]
    for number, value in enumerate(values, 1):
        where = f"Sigma {number} of {len(values)} is {value:g}"
        if not math.isfinite(value):
            raise BoxwrightError(
                f"{where}; sigmas are ordinary numbers. Use another scheduler, or look at the node that made them."
            )
        if value < 0.0:
            raise BoxwrightError(f"{where}; no noise level lies below 0. Wire the sigmas of a scheduler node.")
        if number > 1 and value > values[number - 2]:
            raise BoxwrightError(
                f"{where}, after {values[number - 2]:g}: sigmas must fall, from noise to the picture. Wire those of a "
                "scheduler node as they are, without Flip Sigmas."
            )
    levels = list(dict.fromkeys(values))
    if len(levels) < 2:
        has = f"1 noise level ({levels[0]:g})" if levels else "no noise level"
        raise BoxwrightError(
            f"The schedule has {has}, and a step needs two, from one to the next. Give the scheduler more steps, or "
            "split its sigmas at another step."
        )
    return levels
