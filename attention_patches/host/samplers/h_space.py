"""h-space edits on a MODEL with a UNet: two more prompts in each step, and one more prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from torch import Tensor
from torch.nn.functional import interpolate

from ...core.types import BoxwrightError, UnsupportedModelError
from ...samplers.h_space import HSpace, clean_term_only
from ..attention.calls import IncompatiblePatchError
from ..attention.outside_blocks import outside_blocks
from ..run.run import Run
from ..run.schedule import progress_of, told_if_idle
from .loops import LAST, Tally, levels_of

WRAPPER = "boxwright_h_space"
PROGRESS = "boxwright_h_space_progress"  # key of the run's progress_of in transformer_options
PATCH = "output_block_patch"  # the first one sees the bottleneck
Window = tuple[int, ...] | None  # the rows of one of the host's context windows; None = there are none


def edit_h_space(
    model: Any, source: list, target: list, settings: HSpace, report: Callable[[str], None] | None = None
) -> Any:
    """A clone of the MODEL whose pictures move from the CONDITIONING `source` towards `target`.

    `report` is told if no step of a run lies in the settings' window. Strength 0 is the model.
    Raises UnsupportedModelError for a model without a UNet.
    """
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise UnsupportedModelError(
            f"This model ({type(network).__name__}) has no bottleneck: h-space edits are for UNets "
            "(SD1.x, SD2.x, SDXL and relatives)."
        )
    patched = model.clone()
    if settings.strength == 0.0:
        return patched
    edit = _Edit(source, target, settings, report)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, edit.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER, edit.sampler_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, WRAPPER, edit.predict_noise)
    return patched


class _Edit:
    """Data only; what a run needs is in the run's own guider and options."""

    def __init__(self, source: list, target: list, settings: HSpace, report: Callable[[str], None] | None) -> None:
        self.source, self.target, self.settings, self.report = source, target, settings, report

    @property
    def names(self) -> tuple[str, str]:
        """Of the two prompts among the run's conditionings, so that the host prepares them with the others."""
        return f"{WRAPPER}_source_{id(self)}", f"{WRAPPER}_target_{id(self)}"

    @property
    def acted(self) -> str:
        """Key in a run's transformer_options of the sigmas at which it was evaluated inside the window."""
        return f"{WRAPPER}_acted_{id(self)}"

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper."""
        guider, tally = executor.class_obj, Tally()
        for name, prompt in zip(self.names, (self.source, self.target)):
            guider.conds[name] = convert_cond(prompt)
        tally.watch(guider.model_options)
        result = executor(*args, **kwargs)
        logging.info("Boxwright h-space: %d model evaluations", tally.rows)
        return result

    def sampler_sample(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """SAMPLER_SAMPLE wrapper: what cannot be edited is refused before the first step, an idle run is told."""
        points = [*map(progress_of(guider.inner_model.model_sampling), sigmas.tolist())]
        acts = [self.settings.window.contains(min(point, LAST)) for point in points[:-1]]
        with_area = [e for name in self.names for e in guider.conds[name] if e.get("area") is not None]
        for number in (number for number, act in enumerate(acts) if act):
            _refuse_areas(comfy.samplers.get_area_and_mult(e, noise, sigmas[number : number + 1]) for e in with_area)
        kept = extra_args["model_options"]["transformer_options"]  # of this run
        if self.acted in kept:  # a part of a run that tells
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
        with told_if_idle(self.report, [self.settings.window], points) as kept[self.acted]:
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)

    def predict_noise(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kw: Any
    ) -> Tensor:
        """PREDICT_NOISE wrapper."""
        plain = executor(x, timestep, model_options, *args, **kw)
        guider, sigma = executor.class_obj, float(timestep.flatten()[0])
        model_sampling = guider.inner_model.model_sampling
        kept = model_options["transformer_options"]  # of this run
        progress = kept[PROGRESS] = kept.get(PROGRESS) or progress_of(model_sampling)
        if not self.settings.window.contains(min(progress(sigma), LAST)):
            return plain
        kept.setdefault(self.acted, []).append(sigma)
        steps = kept["sample_sigmas"].tolist()
        start = min((step for step in steps if step >= sigma * (1 - 1e-6)), default=sigma)
        end = max((step for step in steps if step < sigma * (1 - 1e-6)), default=0.0)
        window = self.settings.window
        share = min(progress(end), window.end) - max(progress(start), window.start)
        aside = comfy.model_patcher.create_model_options_clone(model_options)
        aside["transformer_options"][Run.ASIDE] = True
        shifts = {
            window: self.settings.shift(source, target, share)
            for window, (source, target) in self._bottlenecks(guider, x, timestep, aside).items()
        }
        if not shifts:  # another node skipped the network in this step
            return plain
        shifted = executor(x, timestep, _with_patch(aside, _add(shifts)), *args, **kw)
        # Not from `sigma`, which may lie anywhere in the step: close before its end the term has no bound.
        return clean_term_only(plain, shifted, max(sigma, start), end, levels_of(model_sampling))

    def _bottlenecks(
        self, guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> dict[Window, tuple[Tensor, Tensor]]:
        """What the two prompts make of x in the bottleneck: [B, C, h, w] each, equal where one of them says nothing."""
        found: dict[Window, tuple[Tensor, Tensor]] = {}
        options = comfy.model_patcher.create_model_options_clone(options)
        wrappers = options["transformer_options"].setdefault("wrappers", {})
        others = wrappers.get(WrappersMP.CALC_COND_BATCH, {})
        wrappers[WrappersMP.CALC_COND_BATCH] = {f"{WRAPPER}_{id(found)}": [partial(_measure, found)], **others}
        conds = [guider.conds[name] for name in self.names]
        comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, options)
        return found


def _measure(
    found: dict[Window, tuple[Tensor, Tensor]],
    executor: Any,
    model: Any,
    conds: list[list[dict]],
    x: Tensor,
    timestep: Tensor,
    options: dict[str, Any],
    *args: Any,
    **kw: Any,
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper, called for each of the host's context windows."""
    seen: dict[Any, Tensor] = {}
    result = executor(model, conds, x, timestep, _with_patch(options, _keep(seen)), *args, **kw)
    sides = [_combined(index, entries, seen, x, timestep) for index, entries in enumerate(conds)]
    known_sides = [side for side in sides if side is not None]
    if len(known_sides) == len(sides):
        (source, known), (target, known_too) = known_sides
        found[_window(options["transformer_options"])] = source, torch.where(known & known_too, target, source)
    return result


def _combined(
    index: int, entries: list[dict], seen: dict[Any, Tensor], x: Tensor, timestep: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The mean of the entries' bottlenecks [B, C, h, w], weighted as the host weights their predictions, and where
    there is one, bool [B, 1, h, w]; None if the network has seen none of the entries in this step.
    """
    heard = [entry for entry in entries if (index, entry["uuid"]) in seen]
    parts = [(entry, comfy.samplers.get_area_and_mult(entry, x, timestep)) for entry in heard]
    if not parts:
        return None
    _refuse_areas(part for _, part in parts)
    for entry, _ in parts:
        rows = seen[index, entry["uuid"]].shape[0]
        if rows != x.shape[0]:
            raise IncompatiblePatchError(_PARTS.format(f"{x.shape[0]} pictures", rows))
    plain = [part.mult[:, :1] for entry, part in parts if "default" not in entry]
    rest = (1.0 - sum(plain)).clamp_min(0.0) if plain else torch.ones_like(x[:, :1])  # what is left to a default
    total: Any = 0.0  # tensors from the first part on
    weights: Any = 0.0
    for entry, part in parts:
        h = seen[index, entry["uuid"]]
        weight = interpolate(rest if "default" in entry else part.mult[:, :1], size=h.shape[-2:], mode="area").to(h)
        total, weights = total + h * weight, weights + weight
    return total / weights.clamp_min(1e-6), weights > 1e-6


def _refuse_areas(parts: Iterable[Any]) -> None:
    """Raises BoxwrightError where one of the host's parts of a model call, None for no part, is not the whole picture.

    The host adds copies for the area of any conditioning to those of all others, so that the sampler's own count too.
    """
    if any(part is not None and part.area is not None for part in parts):
        raise BoxwrightError(
            "source or target of H-Space Edit, or the sampler's own conditioning, has an area of its own, and the "
            "difference of two prompts needs the whole picture for each. Remove the area from the conditioning; a "
            "mask may stay."
        )


_PARTS = (
    "H-Space Edit needs the two prompts' bottlenecks for {}, and another patch runs the model on {} at a time without "
    "saying which. Remove that patch, or H-Space Edit."
)


def _window(options: dict[str, Any]) -> Window:
    window = options.get("context_window")
    return None if window is None else tuple(window.index_list)


def _with_patch(model_options: dict[str, Any], patch: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """A copy of one run's options in which `patch` is the first to see the bottleneck."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    patches = options["transformer_options"].setdefault("patches", {})
    patches[PATCH] = [patch, *patches.get(PATCH, [])]
    return options


def _keep(seen: dict[Any, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Notes the bottleneck [B, C, h, w] of every conditioning entry, by its list and uuid."""

    def keep(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if options["block"] == ("output", 0):
            keys = list(zip(options["cond_or_uncond"], options["uuids"], strict=True))
            for key, rows in zip(keys, h.chunk(len(keys)), strict=True):
                if key in seen:
                    raise IncompatiblePatchError(_PARTS.format("the whole batch", rows.shape[0]))
                with outside_blocks():
                    seen[key] = rows.detach().clone()
        return h, skip

    return keep


def _add(shifts: dict[Window, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def add(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        shift = shifts.get(_window(options))
        if options["block"] != ("output", 0) or shift is None:
            return h, skip
        if h.shape[1:] != shift.shape[1:]:
            raise BoxwrightError(
                f"A conditioning with an area of its own has a bottleneck of {tuple(h.shape[-2:])} cells, the whole "
                f"picture one of {tuple(shift.shape[-2:])}. Remove the area from the conditioning."
            )
        entries = len(options["uuids"])
        if h.shape[0] != entries * shift.shape[0]:
            raise IncompatiblePatchError(_PARTS.format(f"{shift.shape[0]} pictures", h.shape[0] // entries))
        return h + shift.repeat(entries, 1, 1, 1), skip

    return add
