"""DiffEdit's mask from a MODEL: noise draws through the network, for both prompts in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...core.seam import LatentGuide
from ...core.types import BoxwrightError
from ...samplers.diff_mask import DiffMask
from ...samplers.noise import noised
from ..run.run import RUN, Run
from .loops import check_model, levels_of, run

PREVIEW = 256  # pixels of the longer side of a preview
SAME = 1e-6  # a difference below this share of the prediction is rounding


@dataclass(frozen=True)
class Found:
    """What the mask was made of."""

    heat: Tensor  # float32 [B, h, w] in [0, 1], CPU
    mask: Tensor  # float32 [B, h, w], zeros and ones, CPU
    evaluations: int  # of the network, for all pictures
    batches: int  # how many draws were taken together, at most


def measure(
    model: Any,
    samples: Tensor,
    source: list,
    target: list,
    settings: DiffMask,
    seed: int,
    mode: Literal["paper", "cfg"] = "paper",
    negative: list | None = None,
    cfg: float = 1.0,
    bar: Any = None,
) -> Found:
    """Where the CONDITIONINGs `source` and `target` disagree about the clean latents [B, C, ..., h, w].

    mode "paper": the difference of the conditional predictions; "cfg": of those the sampler would use, each combined
    with `negative` at strength `cfg` by the host, patches included. Every picture of a batch gets the same noise, so
    that a batch equals single runs. Raises BoxwrightError if the prompts do not differ, or for models it cannot run.
    """
    check_model(model)
    if mode == "cfg" and negative is None:
        raise BoxwrightError('Mode "cfg" combines each prompt with a negative one. Wire negative, or choose "paper".')
    model_sampling = model.get_model_object("model_sampling")
    sigma = float(model_sampling.percent_to_sigma(1.0 - settings.noise_level))
    level = levels_of(model_sampling)(sigma)
    bar = bar or comfy.utils.ProgressBar(settings.draws)
    result: list[Tensor] = []
    together = 1

    def loop(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **unused: Any) -> Tensor:
        nonlocal together
        guider, picture, options = model_k.inner_model, model_k.latent_image, extra_args["model_options"]
        running: Run | None = options["transformer_options"].get(RUN)
        if running is not None:
            _tell_guides(running)
            options["transformer_options"][Run.ASIDE] = True  # recorders hear of pictures that are drawn
        predict = _predictor(guider, options, mode, cfg, seed)
        generator = torch.Generator("cpu").manual_seed(seed)
        total, done = torch.zeros(()), 0
        while done < settings.draws:
            comfy.model_management.throw_exception_if_processing_interrupted()
            count = _draws_that_fit(guider.inner_model, picture, settings.draws - done)
            noises = [torch.randn(picture.shape[1:], generator=generator)[None].to(picture) for _ in range(count)]
            batch = torch.cat([noised(picture, level, noise.expand_as) for noise in noises])
            if running is not None:
                running.begins(batch)  # draws are rows of their own
            from_source, from_target = predict(batch, batch.new_full((batch.shape[0],), sigma))
            maps = settings.of_draw(from_source, from_target).unflatten(0, (count, -1))
            if bool(maps.amax() <= SAME * from_source.abs().amax()):
                raise BoxwrightError(
                    "Both prompts lead to the same prediction, so there is no difference to make a mask of. "
                    "Wire another target prompt."
                )
            total, done, together = total.to(maps) + maps.sum(0), done + count, max(together, count)
            bar.update_absolute(done, settings.draws, _preview(settings.heat(total / done)))
        result.append((total / settings.draws).float().cpu())
        return picture

    conds = {"positive": target, "source": source, **({"negative": negative} if negative is not None else {})}
    _, rows = run(model, conds, cfg, samples, loop, torch.tensor([sigma, 0.0]), seed)
    if not bool(torch.isfinite(result[0]).all()):
        raise BoxwrightError("The model predicts values that are no numbers. Check the latent, or use more precision.")
    heat = settings.heat(result[0])
    return Found(heat, settings.mask(heat), rows, together)


def _tell_guides(running: Run) -> None:
    """Box Constraint moves a latent on its way; here predictions of one moment are compared."""
    for item in running.installed:
        if isinstance(item.edit, LatentGuide) and item.report is not None:
            item.report("nothing is moved for the mask: it compares predictions and draws no picture")


def _predictor(
    guider: Any, options: dict, mode: str, cfg: float, seed: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function (noisy latents, sigma of each) -> predicted clean latents from the source and from the target."""
    model, conds = guider.inner_model, guider.conds

    def conditional(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        both = comfy.samplers.calc_cond_batch(model, [conds["source"], conds["positive"]], x, sigma, options)
        return both[0], both[1]

    def combined(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (
            comfy.samplers.sampling_function(
                model, x, sigma, conds["negative"], conds[name], cfg, model_options=options, seed=seed
            )
            for name in ("source", "positive")
        )
        return first, second

    return conditional if mode == "paper" else combined


def _draws_that_fit(base_model: Any, picture: Tensor, wanted: int) -> int:
    """How many draws the host's own estimate lets run in one batch with both prompts; at least one."""
    free = comfy.model_management.get_free_memory(picture.device)
    for count in range(wanted, 1, -1):
        shape = [2 * count * picture.shape[0], *picture.shape[1:]]
        if base_model.memory_required(shape) * 1.5 < free:
            return count
    return 1


def _preview(heat: Tensor) -> tuple[str, Image.Image, int]:
    """The first picture's heat so far, as the host sends previews."""
    levels = (heat[0] * 255).round().to("cpu", torch.uint8).numpy()
    scale = PREVIEW / max(levels.shape)
    size = (max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale)))
    return "JPEG", Image.fromarray(levels).convert("RGB").resize(size, Image.Resampling.NEAREST), PREVIEW
