"""Latent guides: where a sampler lets its latent, or the model's prediction, be moved along a gradient.

Samplers keep their latent to themselves, so the one that they hand to the model is changed in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.seam import LatentGuide
from ...core.types import BoxwrightError
from ..attention.calls import Extra, IncompatiblePatchError, Installed
from ..run.run import RUN, WRAPPER, Run
from .differentiable import differentiable
from .gradient import (
    Gradient,
    Loss,
    MapReader,
    PartialGraph,
    attention_with_gradient,
    differentiate,
    explained,
    loss_gradient,
    mean_gradient,
    reader_of,
    without_foreign_gradients,
)

# Evaluations inside a step, after the one at its start, unless the step ends at 0. Their sigma may be that of the next
# step, and what they move would be thrown away.
STAGES = {
    "sample_heun": 1,
    "sample_dpm_2": 1,
    "sample_dpm_2_ancestral": 1,
    "sample_dpmpp_2s_ancestral": 1,
    "sample_dpmpp_2s_ancestral_cfg_pp": 1,
    "sample_dpmpp_sde": 1,
    "sample_dpmpp_sde_gpu": 1,
    "sample_exp_heun_2_x0": 1,
    "sample_exp_heun_2_x0_sde": 1,
    "sample_seeds_2": 1,
    "sample_seeds_3": 2,
}
# As many as it likes, the first of them at the next sigma.
TRIES_THE_NEXT = {"sample_heunpp2"}
# Follows sigmas of its own.
FREE_STEPS = {"dpm_fast_function"}
# These go on from a latent other than the one that the model is given.
KEEPS_ITS_LATENT = {
    "sample_unipc", "sample_unipc_bh2", "sample_sa_solver", "sample_sa_solver_pece", "dpm_adaptive_function",
}  # fmt: skip


# --- moving the latent ------------------------------------------------------------------------------------------------


def sample_with_guided_latents(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, *args: Any, **kwargs: Any
) -> Any:
    """OUTER_SAMPLE wrapper: a copy of the sampler (the host keeps the original between runs) that moves its latent."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    if function is None or name in KEEPS_ITS_LATENT:
        raise BoxwrightError(
            f'The sampler "{name}" keeps its latent where a guide cannot move it. Choose another sampler (dpmpp_2m is '
            'near to most), or the mode "fast".'
        )
    guided = copy.copy(sampler)
    guided.sampler_function = partial(_sample, function, name)
    return executor(noise, latent_image, guided, *args, **kwargs)


def _sample(
    function: Callable[..., Tensor], name: str, model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    options = kwargs["extra_args"]["model_options"]
    steps = _Steps(sigmas, name)
    run = options["transformer_options"][RUN]
    guided = _GuidedModel(model, run, steps)
    callback = kwargs.get("callback")
    kwargs["callback"] = partial(_count, steps, callback)
    return function(guided, x, sigmas, *args, **kwargs)


def attach(run: Run, options: dict[str, Any]) -> None:
    """Add what guides need to the options of a run."""
    if any(item.edit.moves == "prediction" for item in guides_of(run)):
        kinds = options["wrappers"].setdefault(WrappersMP.CALC_COND_BATCH, {})
        kinds[WRAPPER] = [partial(predict_with_guides, run)]


def guides_of(run: Run) -> list[Installed]:
    return [item for item in run.installed if isinstance(item.edit, LatentGuide)]


def tell_idle_guides(run: Run, sigmas: Tensor) -> None:
    """A run of less noise (img2img, the later part of a schedule) may lie behind a guide's window as a whole."""
    points = [run.progress(sigma) for sigma in sigmas.tolist()]
    for guide in (item.edit for item in guides_of(run)):
        if guide.report is not None and points and not _acts(guide, points):
            guide.report(
                f"nothing is moved: no step of this run lies between {guide.window.start:g} and {guide.window.end:g} "
                "of the noise schedule; raise denoise, or the end of the window"
            )


def _acts(guide: LatentGuide, points: list[float]) -> bool:
    if guide.moves == "prediction":  # also in evaluations on the way of a step
        return points[0] < guide.window.end and points[-1] > guide.window.start
    return any(map(guide.window.contains, points[:-1]))


def _count(steps: _Steps, callback: Any, state: dict[str, Any]) -> None:
    steps.evaluated()
    if callback is not None:
        callback(state)


class _Steps:
    """Tells which of a sampler's model calls start a step; the others are evaluations on the way."""

    def __init__(self, sigmas: Tensor, name: str) -> None:
        self.sigmas = sigmas.tolist()
        self.stages = STAGES.get(name, 0)
        self.tries = name in TRIES_THE_NEXT
        self.free: bool | None = True if name in FREE_STEPS else None
        self.finished = 0  # callbacks: one for each step, after its first evaluation
        self.started = -1
        self.tried = 0
        self.to_come = 0  # evaluations of the step under way

    def evaluated(self) -> None:
        """The start of a step has been evaluated."""
        self.finished += 1
        ends_at = self.sigmas[self.finished] if self.finished < len(self.sigmas) else 0.0
        self.to_come = self.stages if ends_at > 0 else 0

    def starts(self, sigma: float) -> bool:
        if self.to_come:
            self.to_come -= 1
            return False
        if self.free is None:  # noise added before a step (churn) puts every evaluation beside the schedule
            self.free = not self._is(sigma, 0)
        if self.free:
            step = sum(1 for other in self.sigmas[:-1] if other > sigma * 1.0001)
        elif self.finished < len(self.sigmas) and self._is(sigma, self.finished):
            step = self.finished
        else:
            return False
        if step <= self.started:
            return False
        if self.tries and not self.free and step > self.tried:
            self.tried = step
            return False
        self.started = step
        return True

    def _is(self, sigma: float, step: int) -> bool:
        return abs(sigma - self.sigmas[step]) <= 1e-4 * self.sigmas[step]


class _GuidedModel:
    """The model as a sampler sees it: moves the latent it is given before it predicts."""

    def __init__(self, model: Any, run: Run, steps: _Steps) -> None:
        self.__dict__.update(_model=model, _run=run, _steps=steps, _reached=set())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = float(sigma.flatten()[0])
        self._run.sees(x)
        if level > 0 and self._steps.starts(level):
            progress = self._run.progress(level)
            for item in guides_of(self._run):
                if item.edit.moves == "latent" and item.edit.window.contains(progress):
                    self._guide(item, x, sigma, level, kwargs)
        return self._model(x, sigma, **kwargs)

    def _guide(self, item: Installed, x: Tensor, sigma: Tensor, level: float, kwargs: dict[str, Any]) -> None:
        guide: LatentGuide = item.edit
        progress = self._run.progress(level)
        for number, (start, target) in enumerate(guide.targets):
            if progress >= start and (id(guide), number) not in self._reached:
                self._reached.add((id(guide), number))
                for _ in range(guide.refine_iterations):
                    found = self._step(item, guide.refine_loss, x, sigma, level, kwargs, 1.0 - target)
                    if found is None or bool((found.per_phrase <= 1.0 - target).all()):
                        break
        found = None
        for _ in range(guide.iterations):
            found = self._step(item, guide.loss, x, sigma, level, kwargs, None)
        if found is not None and guide.report is not None:
            guide.report(report_line(self._steps.started, len(self._steps.sigmas) - 1, found))

    def _step(
        self,
        item: Installed,
        loss: Loss,
        x: Tensor,
        sigma: Tensor,
        level: float,
        kwargs: dict[str, Any],
        enough: float | None,
    ) -> Gradient | None:
        """One gradient step on x, in place; rows stay in which no phrase misses more than `enough`."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        mask, seen = self._inpainting(x, sigma, kwargs)
        found = loss_gradient(self._run, item, loss, seen, sigma, kwargs["model_options"])
        if found is None:
            return None
        change = latent_change(self._run, item.edit, found.values, level)
        if mask is not None:
            change = change * mask
        if enough is not None:
            change = change * (found.per_phrase > enough).any(dim=1).view(-1, *[1] * (x.ndim - 1))
        x.add_(change.to(x))
        return found

    def _inpainting(self, x: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        """The mask in force and the latent that the model will see: the host blends just before it predicts."""
        mask = kwargs.get("denoise_mask")
        if mask is None:
            return None, x
        adjust = kwargs["model_options"].get("denoise_mask_function")
        if adjust is not None:
            mask = adjust(sigma, mask, extra_options={"model": self.inner_model, "sigmas": self.sigmas})
        model = self.inner_model.inner_model
        kept = model.scale_latent_inpaint(x=x, sigma=sigma, noise=self.noise, latent_image=self.latent_image)
        return mask, x * mask + kept * (1.0 - mask)


def latent_change(run: Run, guide: LatentGuide, gradient: Tensor, level: float) -> Tensor:
    """What one gradient step adds to the sampler's latent at a sigma.

    Published step sizes belong to z = x / sqrt(1 + sigma^2); the same step on x is (1 + sigma^2) times as long.
    """
    flow = isinstance(run.guider.inner_model.model_sampling, comfy.model_sampling.CONST)
    factor = guide.step_size(run.progress(level)) * (1.0 if flow else 1.0 + level**2)
    change = -factor * gradient
    limit = guide.max_change * level
    return change.clamp(-limit, limit) if limit else change


def report_line(step: int, steps: int, found: Gradient) -> str:
    """How far each phrase is from its place at a step (0 = the first): mean over the batch, the worst one marked."""
    misses = found.per_phrase.mean(dim=0).tolist()
    worst = max(range(len(misses)), key=misses.__getitem__)
    parts = [
        f"{phrase[:40]} {miss:.0%}{' (worst)' if i == worst and len(misses) > 1 else ''}"
        for i, (phrase, miss) in enumerate(zip(found.phrases, misses, strict=True))
    ]
    line = f"step {step + 1} of {steps}, missing: " + ", ".join(parts)
    return "; ".join([line, *found.notes])


# --- moving the prediction --------------------------------------------------------------------------------------------

# A denoised latent has a deviation near 1: a move by as much as this everywhere leaves no picture, whatever the sigma.
MOST = 4.0
MOVES = "boxwright_moves"  # key of the moves of one evaluation in transformer_options


@dataclass
class _Moves:
    """What guides add to one evaluation of the guider."""

    seen: bool = False  # the prompts were evaluated through the host
    change: Tensor | None = None  # of the denoised latent; None until the layout's rows have been run


def predict_with_moves(executor: Any, x: Tensor, sigma: Tensor, options: dict[str, Any], *args: Any, **kw: Any) -> Any:
    """PREDICT_NOISE wrapper: the guides' move is added to what the guider has made of all predictions.

    So its size does not depend on CFG, nor on how a guider combines its prompts.
    """
    moves = _Moves()
    inner = {**options.get("transformer_options", {}), MOVES: moves}
    out = executor(x, sigma, {**options, "transformer_options": inner}, *args, **kw)
    if not moves.seen and "sampler_calc_cond_batch_function" in options:
        raise IncompatiblePatchError(
            "Another patch on this model evaluates the prompts by itself (sampler_calc_cond_batch_function), so that "
            'the mode "fast" has no pass to take its gradient from. Remove that patch, or use the mode "boxdiff".'
        )
    return out if moves.change is None else out + moves.change.to(out)


def predict_with_guides(
    run: Run, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper: the ordinary evaluation, and where a guide is active its gradient from the same pass.

    The rows with guides run on their own, so that the others need no graph. In one call of the guider only the first
    evaluation of the layout's rows counts: what other packs evaluate after it (PAG, SAG) is the same again or not at x.
    """
    moves = options["transformer_options"].get(MOVES)
    if moves is None or moves.change is not None or run.EXTRA in options["transformer_options"]:
        return executor(model, conds, x, sigma, options)
    moves.seen = True
    level = float(sigma.flatten()[0])
    progress = run.progress(level)
    active = [
        item
        for item in guides_of(run)
        if item.edit.moves == "prediction" and level > 0 and item.edit.window.contains(progress)
    ]
    guided = [i for i, entries in enumerate(conds) if entries and any(run.items_of(entries, item) for item in active)]
    if not guided:
        return executor(model, conds, x, sigma, options)
    rest = [None if i in guided else entries for i, entries in enumerate(conds)]
    if any(rest):
        outputs = list(executor(model, rest, x, sigma, options))
    else:
        outputs = [torch.zeros_like(x) for _ in conds]
    found, moves.change = [], torch.zeros_like(x)
    for i in guided:
        outputs[i], gradients = _guided_prediction(run, active, executor, model, conds[i], x, sigma, options)
        found += gradients
    for item in active:
        own = [gradient for of, gradient in found if of is item]
        if own:
            gradient = mean_gradient(own)
            moves.change = moves.change + prediction_change(item.edit, gradient.values, level, progress).to(x)
            if item.edit.report is not None:
                sigmas = options["transformer_options"]["sample_sigmas"].tolist()
                step = sum(other > level * 1.0001 for other in sigmas)
                item.edit.report(report_line(step, len(sigmas) - 1, gradient))
    return outputs


def prediction_change(guide: LatentGuide, gradient: Tensor, level: float, progress: float) -> Tensor:
    """What a guide adds to the denoised latent at a sigma.

    iLGD (arXiv 2405.14101): the predicted noise grows by step * sigma * the gradient by the scaled model input, so that
    the denoised latent falls by sigma times that. It is bounded at every sigma: that product grows with its cube.
    """
    change = -guide.step_size(progress) * level**2 * (1.0 + level**2) ** 0.5 * gradient
    limit = min(guide.max_change or MOST, MOST) * min(level, 1.0)  # a denoised latent has a deviation near 1
    return change.clamp(-limit, limit)


def _guided_prediction(
    run: Run,
    active: list[Installed],
    executor: Any,
    model: Any,
    entries: list,
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, list[tuple[Installed, Gradient]]]:
    """The prediction for some entries, and the gradient of each guide for each entry that took part."""
    readers: list[tuple[Installed, MapReader]] = []
    extra: dict[Any, tuple[Installed, ...]] = {}
    graph = PartialGraph()
    for item in active:
        for entry in run.items_of(entries, item):
            reader = reader_of(run, item.edit, graph.drop)
            readers.append((item, reader))
            graph.readers.setdefault(entry["uuid"], []).append(reader)
            extra[entry["uuid"]] = (*extra.get(entry["uuid"], ()), Installed(item.layout, reader.edit(), graph=True))
    with differentiable(model.diffusion_model):
        latent = x.detach().clone().requires_grad_(True)
        local = comfy.model_patcher.create_model_options_clone(options)
        inner = local["transformer_options"]
        inner["optimized_attention_override"] = partial(attention_with_gradient, run)
        inner[run.EXTRA] = Extra(extra, aside=False)
        inner["wrappers"].setdefault(WrappersMP.APPLY_MODEL, {})["boxwright_graph"] = [graph.apply_model]
        entries = [without_foreign_gradients(entry) for entry in entries]
        with explained():
            (output,) = executor(model, [entries], latent, sigma.detach().clone(), local)
        heard = [(item, reader) for item, reader in readers if reader.parts]
        gradients = [
            (item, differentiate(model, item.edit.loss(*reader.maps()), latent, last=reader is heard[-1][1]))
            for item, reader in heard
        ]
    return output.detach(), gradients
