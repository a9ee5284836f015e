"""DiffEdit's decoding as a SAMPLER of the host."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from ...core.masks import on_latent
from ...samplers.diff_edit import sample_diff_edit
from ...samplers.inversion import Trajectory
from .inversion import check_trajectory
from .loops import denoiser, logged, progress_bar, run


def diff_edit_sampler(trajectory: Trajectory, mask: Tensor) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that starts from the inverted picture, whatever noise it is given. mask: MASK [H, W] or [M, H, W].

    Raises BoxwrightError when it runs on another model, size or schedule than the trajectory's, or for a bad mask.
    """
    on_latent(mask, trajectory.shape)  # refused now, not when sampling starts

    def redraw(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        check_trajectory(trajectory, model.inner_model.inner_model, tuple(x.shape))
        area = on_latent(mask, trajectory.shape).to(x)
        denoise = denoiser(model, x, {**extra_args, "denoise_mask": None})
        return sample_diff_edit(denoise, trajectory, area, sigmas, callback)

    return logged("DiffEdit", redraw)


def edit(
    model: Any,
    samples: Tensor,
    trajectory: Trajectory,
    mask: Tensor,
    target: list,
    negative: list,
    cfg: float,
    sigmas: Tensor,
) -> tuple[Tensor, int]:
    """The sampler above in one run: latents [B, C, ..., h, w], and the evaluations of the network for all pictures."""
    sampler = diff_edit_sampler(trajectory, mask)
    conds = {"positive": target, "negative": negative}
    steps = progress_bar(model, len(sigmas) - 1)
    return run(model, conds, cfg, samples, sampler.sampler_function, sigmas, callback=steps)
