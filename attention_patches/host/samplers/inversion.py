"""Inversion of a picture through the host's samplers, and inverted noise as a NOISE for any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...core.types import BoxwrightError, check_range
from ...samplers.inversion import (
    MAX_REFINEMENTS,
    Deviation,
    Storage,
    Trajectory,
    decode,
    deviations,
    empty_states,
    invert,
    sample_beside,
)
from ...samplers.noise import Level
from .loops import check_model, checked_sigmas, denoiser, levels_of, logged, progress_bar, run, space_of, start_level


@dataclass(frozen=True)
class Inverted:
    """A trajectory and what it cost."""

    trajectory: Trajectory
    errors: list[Deviation] | None  # of each picture when decoded again; None = not measured
    evaluations: int  # of the network, for all pictures, without the check
    check_evaluations: int


def invert_latent(
    model: Any,
    samples: Tensor,
    positive: list,
    sigmas: Tensor,
    *,
    negative: list | None = None,
    cfg: float = 1.0,
    refinements: int = 0,
    storage: Storage = "memory",
    check: bool = False,
) -> Inverted:
    """Clean latents [B, C, ..., h, w] along SIGMAS (falling to 0), upwards. Raises BoxwrightError before it starts.

    check: decode again with the same settings and report the error, for as many evaluations as inverting without
    refinements takes.
    """
    check_model(model)
    sigmas = checked_sigmas(model.get_model_object("model_sampling"), sigmas, whole=True).cpu()
    check_range("refinements", refinements, 0, MAX_REFINEMENTS)
    if cfg != 1.0 and negative is None:
        raise BoxwrightError(f"Guidance {cfg:g} needs a negative prompt. Wire negative, or set cfg to 1.")
    levels = levels_of(model.get_model_object("model_sampling"))
    states = empty_states(len(sigmas), samples.shape, storage)
    conds = {"positive": positive, **({"negative": negative} if negative is not None else {})}

    def up(model_k: Any, x: Tensor, steps: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        picture = model_k.latent_image
        invert(denoiser(model_k, x, extra_args), picture, steps, levels, refinements, states, callback)
        return picture

    def down(model_k: Any, x: Tensor, steps: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        found = decode(denoiser(model_k, x, extra_args), states[-1].to(x), steps, callback)
        errors.extend(deviations(found, model_k.latent_image))
        return found

    def go(loop: Callable[..., Tensor]) -> int:
        return run(model, conds, cfg, samples, loop, sigmas, callback=progress_bar(model, len(sigmas) - 1))[1]

    errors: list[Deviation] = []
    rows = go(up)
    if not bool(torch.isfinite(states[-1]).all()):
        raise BoxwrightError(
            f"The inversion ran out of numbers with {refinements} refinements. Use fewer of them, or more steps."
        )
    extra = go(down) if check else 0
    trajectory = Trajectory(tuple(sigmas.flip(0).tolist()), states, space_of(model.model))
    return Inverted(trajectory, errors if check else None, rows, extra)


class InvertedNoise:
    """A NOISE of the host: what its samplers must add to a LATENT in order to start from an inverted picture.

    Fits any latent of the same size, as its content is taken off again, and the schedule that was inverted.
    """

    seed = 0

    def __init__(self, model: Any, trajectory: Trajectory) -> None:
        model_sampling, top = model.get_model_object("model_sampling"), trajectory.sigmas[-1]
        self._trajectory = trajectory
        self._process_in: Callable[[Tensor], Tensor] = model.get_model_object("latent_format").process_in
        self._start: Level = start_level(model_sampling, top, top >= float(model_sampling.sigma_max) * (1 - 1e-5))

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Float32 on the CPU, in the shape of the LATENT's samples. Raises BoxwrightError for another size."""
        samples = latent["samples"].float().cpu()
        start = self._trajectory.states[-1]
        if samples.shape[1:] != start.shape[1:] or (start.shape[0] not in (1, samples.shape[0])):
            raise BoxwrightError(
                f"The inverted noise belongs to latents of shape {tuple(start.shape)}, the sampler has "
                f"{tuple(samples.shape)}. Wire the latent that was inverted."
            )
        picture = self._process_in(samples) if bool(samples.any()) else samples
        return (start - picture * self._start.signal) / self._start.noise


def direct_inversion_sampler(trajectory: Trajectory) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that redraws inverted pictures exactly, each with its edits beside it (Prompt to Prompt's batches).

    It starts from the inverted noise, whatever noise it is given. Raises BoxwrightError when it runs on another model,
    size or schedule than the trajectory's.
    """

    def redraw(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        check_trajectory(trajectory, model.inner_model.inner_model)
        denoise = denoiser(model, x, {**extra_args, "denoise_mask": None})
        return sample_beside(denoise, x, trajectory, sigmas, callback)

    return logged("Direct Inversion", redraw)


def check_trajectory(trajectory: Trajectory, base_model: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raises BoxwrightError unless the trajectory belongs to this kind of model and, if given, to this shape."""
    if trajectory.space != space_of(base_model):
        raise BoxwrightError(
            f"The picture was inverted with another kind of model ({trajectory.space}; this one has "
            f"{space_of(base_model)}). Invert it with the model that edits it."
        )
    if shape is not None and trajectory.shape != shape:
        raise BoxwrightError(
            f"The inverted latents have the shape {trajectory.shape}, the sampler's {shape}. "
            "Wire the latent that was inverted to the sampler."
        )
