"""h-space edits on a MODEL with a UNet: two more prompts in each step, and one more prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ..h_space import HSpace, clean_term_only
from ..types import BoxwrightError, UnsupportedModelError
from .loops import LAST, Tally, levels_of
from .run import schedule_progress

WRAPPER = "boxwright_h_space"
PATCH = "output_block_patch"  # the first one sees the bottleneck


def edit_h_space(model: Any, source: list, target: list, settings: HSpace) -> Any:
    """A clone of the MODEL whose pictures move from the CONDITIONING `source` towards `target`.

    Raises UnsupportedModelError for a model without a UNet. Strength 0 is the model.
    """
    network = model.model.diffusion_model
    if not (hasattr(network, "middle_block") and hasattr(network, "output_blocks")):
        raise UnsupportedModelError(
            f"This model ({type(network).__name__}) has no bottleneck: h-space edits are for UNets "
            "(SD1.x, SD2.x, SDXL and relatives)."
        )
    patched = model.clone()
    if settings.strength == 0.0:
        return patched
    edit = _Edit(source, target, settings)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, edit.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, WRAPPER, edit.predict_noise)
    return patched


class _Edit:
    """Data only; what a run needs is in the run's own guider and options."""

    def __init__(self, source: list, target: list, settings: HSpace) -> None:
        self.source, self.target, self.settings = source, target, settings

    @property
    def names(self) -> tuple[str, str]:
        """Of the two prompts among the run's conditionings, so that the host prepares them with the others."""
        return f"{WRAPPER}_source_{id(self)}", f"{WRAPPER}_target_{id(self)}"

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper."""
        guider, tally = executor.class_obj, Tally()
        for name, prompt in zip(self.names, (self.source, self.target)):
            guider.conds[name] = convert_cond(prompt)
        tally.watch(guider.model_options)
        result = executor(*args, **kwargs)
        logging.info("Boxwright h-space: %d model evaluations", tally.rows)
        return result

    def predict_noise(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kw: Any
    ) -> Tensor:
        """PREDICT_NOISE wrapper."""
        plain = executor(x, timestep, model_options, *args, **kw)
        guider, sigma = executor.class_obj, float(timestep.flatten()[0])
        model_sampling = guider.inner_model.model_sampling
        if not self.settings.window.contains(min(schedule_progress(model_sampling, sigma), LAST)):
            return plain
        found: dict[int, Tensor] = {}
        comfy.samplers.calc_cond_batch(
            guider.inner_model,
            [guider.conds[name] for name in self.names],
            x,
            timestep,
            _with_patch(model_options, _keep(found)),
        )
        if len(found) < 2:  # another node skipped the network in this step
            return plain
        shift = self.settings.shift(found[0], found[1])
        shifted = executor(x, timestep, _with_patch(model_options, _add(shift)), *args, **kw)
        steps = model_options["transformer_options"]["sample_sigmas"]
        below = [float(step) for step in steps if float(step) < sigma * (1 - 1e-6)]
        return clean_term_only(plain, shifted, sigma, max(below, default=0.0), levels_of(model_sampling))


def _with_patch(model_options: dict[str, Any], patch: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """A copy of one run's options in which `patch` is the first to see the bottleneck."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    patches = options["transformer_options"].setdefault("patches", {})
    patches[PATCH] = [patch, *patches.get(PATCH, [])]
    return options


def _keep(found: dict[int, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def keep(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if options["block"] == ("output", 0):
            for index, rows in zip(options["cond_or_uncond"], h.chunk(len(options["cond_or_uncond"]))):
                found[index] = rows.clone()
        return h, skip

    return keep


def _add(shift: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    def add(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if options["block"] != ("output", 0):
            return h, skip
        if h.shape[1:] != shift.shape[1:]:
            raise BoxwrightError(
                f"A conditioning with an area of its own has a bottleneck of {tuple(h.shape[-2:])} cells, the whole "
                f"picture one of {tuple(shift.shape[-2:])}. Remove the area from the conditioning."
            )
        return h + shift.repeat(h.shape[0] // shift.shape[0], 1, 1, 1), skip

    return add
