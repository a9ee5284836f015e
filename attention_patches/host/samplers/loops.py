"""Our sampling loops inside the host's samplers: what they need of the model, and how they are run.

The host hands a sampler a model that returns clean latents, so that guidance, patches, previews and interruption are
its own business. Latents are in the model's own space (`process_latent_in`), sigmas in the host's scaling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.masks import check_white, on_latent
from ...core.types import BoxwrightError, StepWindow
from ...samplers.noise import Callback, Denoiser, Level, Levels, falling, seeded
from ...samplers.scene import Scene
from ..run.schedule import no_step_line, progress_of

SCHEDULERS: list[str] = comfy.samplers.SCHEDULER_NAMES  # the host's own list: packs add to it
LAST = 1.0 - 1e-6  # progress of the last step
SLACK = 1e-4  # by which rounding may take a schedule above a flow model's highest level
OTHER_NOISE = 0x9E3779B9  # added to seeds: the host has drawn the start from the seed itself
COUNT = "boxwright_count"  # start of the key of a wrapper that counts evaluations
Loop = Callable[[Denoiser, Tensor, Tensor, Scene, Callback], Tensor]  # (model, x, sigmas, scene, callback) -> latents


@dataclass
class Tally:
    """Rows the network has worked through: its evaluations, where each picture and each prompt counts as one."""

    rows: int = 0

    def watch(self, model_options: dict[str, Any]) -> None:
        """Count from now on. `model_options` must belong to one run."""
        options = model_options.setdefault("transformer_options", {})
        wrappers = options.setdefault("wrappers", {}).setdefault(WrappersMP.APPLY_MODEL, {})
        wrappers[f"{COUNT}_{id(self)}"] = [self._count]  # several may count

    def _count(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows += x.shape[0]
        return executor(x, *args, **kwargs)


def check_model(model: Any) -> None:
    """Raises BoxwrightError for a MODEL that reads more than the noisy picture (inpainting, instruction editing...)."""
    base = model.model
    config = base.model_config.unet_config
    channels, own = config.get("in_channels"), base.latent_format.latent_channels
    plain = (own, 4 * own)  # some count the 2 x 2 cells of a token as channels
    if getattr(base, "concat_keys", ()) or (isinstance(channels, int) and channels not in plain):
        raise BoxwrightError(
            f"This model ({type(base).__name__}) reads a mask or a second picture beside the noisy one, which these "
            "edits cannot provide. Use a plain text-to-image model, or inpaint with the nodes made for it."
        )


def picture_latent(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The samples [B, C, ..., h, w] of a LATENT that holds one picture for each row, shaped as the model wants them.

    Raises BoxwrightError for an empty latent, a video, several latents in one, or values that are no numbers.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BoxwrightError("This LATENT holds several in one (picture and sound). Use the latent of a picture.")
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    _check_picture(samples)
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted:
        raise BoxwrightError(
            f"The latent has {samples.shape[1]} channels, this model's have {wanted}. "
            "Encode the picture with the VAE of this model."
        )
    return samples


def _check_picture(samples: Tensor) -> None:
    if samples.ndim not in (4, 5) or (samples.ndim == 5 and samples.shape[2] != 1) or 0 in samples.shape:
        raise BoxwrightError(
            f"The latent has the shape {tuple(samples.shape)}, not that of pictures. Use those, of at least one "
            "latent cell (8 x 8 pixels for most models)."
        )
    if not bool(samples.isfinite().all()):
        raise BoxwrightError("The latent holds NaN or infinite values. Look at the node that made it.")
    if not bool(samples.any()):
        raise BoxwrightError("The latent is empty. Encode the picture to edit with VAE Encode, and wire that.")


def levels_of(model_sampling: Any) -> Levels:
    """The signal and noise of each sigma, asked of the host's own scaling. Raises BoxwrightError for none."""
    level = partial(start_level, model_sampling, most=False)
    if level(float(model_sampling.sigma_max)).noise == 0.0:
        raise BoxwrightError(
            f"This model ({type(model_sampling).__name__}) starts from a picture instead of noise. "
            "Use a text-to-image model."
        )
    return level


def start_level(model_sampling: Any, sigma: float, most: bool) -> Level:
    """What the host makes of noise and picture at the start of a run; `most` = the run starts at full noise."""
    pair = torch.eye(2, dtype=torch.float64)  # columns: picture alone, noise alone
    made = model_sampling.noise_scaling(torch.tensor(sigma, dtype=torch.float64), pair[1], pair[0], most)
    return Level(float(made[0]), float(made[1]))


def space_of(base_model: Any) -> str:
    """Models with the same answer can read each other's noisy latents."""
    flow = levels_of(base_model.model_sampling)(0.5).signal < 1.0
    return f"{type(base_model.latent_format).__name__} latents, {'flow' if flow else 'noise'} prediction"


def sampler(
    name: str,
    loop: Loop,
    mask: Tensor | None = None,
    whole: bool = False,
    window: StepWindow | None = None,
    tell: Callable[[str], None] | None = None,
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that runs `loop` over the picture in the sampler node's latent, and logs what it cost under `name`.

    mask: MASK [H, W] or [M, H, W]; without one, the latent's own noise mask counts; without either `whole` decides:
    the whole picture, or BoxwrightError. So do masks without anything white. window: where in the schedule the loop
    does what it is for; `tell` is told before the first step if none of the run lies there.
    """
    if mask is not None:
        check_white(mask)  # refused now, not when sampling starts

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        scene = scene_of(model, x, extra_args, mask, whole)
        if tell and window:
            points = [*map(scene.progress, sigmas.tolist())]
            if not any(map(window.contains, points[:-1])):
                tell(no_step_line([window], points))
        # Without the mask: the host would blend the picture in once more, at the wrong place in the loop.
        return loop(denoiser(model, x, {**extra_args, "denoise_mask": None}), x, sigmas, scene, callback)

    return logged(name, sample)


def scene_of(model: Any, x: Tensor, extra_args: dict, mask: Tensor | None, whole: bool = False) -> Scene:
    """What a run of the host's sampler edits: the sampler node's picture, under `mask` as `sampler` says."""
    given = extra_args.get("denoise_mask")
    _check_picture(model.latent_image)
    if mask is not None:
        area = on_latent(mask, tuple(x.shape)).to(x)
    elif given is not None:
        check_white(given, "latent's noise mask")
        area = given
    elif whole:
        area = torch.ones_like(x[:, :1])
    else:
        raise BoxwrightError("There is no mask. Wire one to this sampler's node, or use Set Latent Noise Mask.")
    model_sampling = model.inner_model.inner_model.model_sampling
    now = progress_of(model_sampling)
    return Scene(
        model.latent_image,
        area,
        levels_of(model_sampling),
        seeded((extra_args.get("seed") or 0) + OTHER_NOISE),
        # A step that is being taken is not after the last, even at the model's lowest sigma.
        lambda sigma: min(now(sigma), LAST),
    )


def logged(name: str, sample: Callable[..., Tensor]) -> comfy.samplers.KSAMPLER:
    """A SAMPLER of the host's signature (model, x, sigmas, extra_args=...) that logs what a run cost under `name`.

    Model and schedule are checked before it runs. Raises BoxwrightError.
    """

    def counted(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **rest: Any) -> Tensor:
        guider, tally = model.inner_model, Tally()
        check_model(guider.model_patcher)
        sigmas = checked_sigmas(guider.inner_model.model_sampling, sigmas)
        tally.watch(extra_args["model_options"])
        result = sample(model, x, sigmas, extra_args=extra_args, **rest)
        logging.info("Boxwright %s: %d steps, %d model evaluations", name, len(sigmas) - 1, tally.rows)
        return result

    return comfy.samplers.KSAMPLER(counted)


def denoiser(model: Any, x: Tensor, extra_args: dict[str, Any]) -> Denoiser:
    """The host's model as our loops call it."""
    ones = x.new_ones(x.shape[0])

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        return model(noisy, ones * sigma, **extra_args)

    return denoise


def run(
    model: Any,
    conds: dict[str, list],
    cfg: float,
    samples: Tensor,
    sampler_function: Callable[..., Tensor],
    sigmas: Tensor,
    seed: int = 0,
    callback: Any = None,
) -> tuple[Tensor, int]:
    """One run of the host's CFGGuider over clean latents [B, C, ..., h, w], without added noise.

    conds: CONDITIONING by name; "positive" and "negative" are what guidance of strength `cfg` uses. Returns latents and
    the evaluations of the network (rows of its batches, so that each picture and each prompt counts).
    """
    tally = Tally()
    if "negative" not in conds and model.model_options.get("disable_cfg1_optimization"):
        # A patch on this model (Self-Attention Guidance) reads what a negative prompt predicts, at any guidance.
        conds = {**conds, "negative": conds["positive"]}

    def counted(model_k: Any, x: Tensor, steps: Tensor, extra_args: dict, **rest: Any) -> Tensor:
        tally.watch(extra_args["model_options"])
        return sampler_function(model_k, x, steps, extra_args=extra_args, **rest)

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    found = guider.sample(
        torch.zeros_like(samples),
        samples,
        comfy.samplers.KSAMPLER(counted),
        sigmas,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return found.to(comfy.model_management.intermediate_device()), tally.rows


def progress_bar(model: Any, steps: int) -> Any:
    """The callback that moves the node's progress bar and shows previews, as in the host's samplers."""
    return latent_preview.prepare_callback(model, steps)


def schedule(model: Any, scheduler: str, steps: int, strength: float) -> Tensor:
    """`steps` steps of a schedule's last part, from `strength` (share of the schedule, above 0 to 1) to clean.

    Fewer where the model has fewer noise levels there. Raises BoxwrightError if the scheduler makes no schedule of it.
    """
    total = steps if strength >= 1.0 else max(steps, int(steps / strength))
    model_sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, total)[-(steps + 1) :].cpu()
    try:
        return checked_sigmas(model_sampling, sigmas, whole=True)
    except BoxwrightError as error:
        raise BoxwrightError(
            f"{scheduler} makes no schedule of {steps} steps at strength {strength:g} ({error}) Choose another "
            "scheduler, or other steps."
        ) from error


def checked_sigmas(model_sampling: Any, sigmas: Tensor, whole: bool = False) -> Tensor:
    """SIGMAS as the strictly falling noise levels of this model, float32 [L]; `whole` = down to the picture.

    Raises BoxwrightError for others (see `falling`).
    """
    values = falling(sigmas)
    if whole and values[-1] != 0.0:
        raise BoxwrightError(
            f"The schedule ends at sigma {values[-1]:g}, not at 0, so that the picture itself is not on it. Wire the "
            "sigmas of a scheduler node, whole or split at the noisy end."
        )
    if levels_of(model_sampling)(values[0]).signal < -SLACK:
        raise BoxwrightError(
            f"The schedule starts at sigma {values[0]:g}; this model ({type(model_sampling).__name__}) has noise "
            "levels from 0 to 1 only. Wire the sigmas of a scheduler node with this model."
        )
    return torch.tensor(values, device=sigmas.device)
