"""Latent guides that move the latent before the model predicts.

Samplers keep their latent to themselves, so the one that they hand to the model is changed in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
from torch import Tensor

from ...core.seam import LatentGuide
from ...core.types import BoxwrightError
from ..attention.calls import Installed
from ..run.run import RUN, Run
from .gradient import Gradient, Loss, loss_gradient
from .guides import guides_of, is_flow, report_line
from .steps import KEEPS_ITS_LATENT, Steps


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
    steps = Steps(sigmas, name)
    run = options["transformer_options"][RUN]
    guided = _GuidedModel(model, run, steps)
    callback = kwargs.get("callback")
    kwargs["callback"] = partial(_count, steps, callback)
    return function(guided, x, sigmas, *args, **kwargs)


def _count(steps: Steps, callback: Any, state: dict[str, Any]) -> None:
    steps.evaluated()
    if callback is not None:
        callback(state)


class _GuidedModel:
    """The model as a sampler sees it: moves the latent it is given before it predicts."""

    def __init__(self, model: Any, run: Run, steps: Steps) -> None:
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
        refine_loss = guide.refine_loss
        for number, (start, target) in enumerate(guide.targets):
            if refine_loss is not None and progress >= start and (id(guide), number) not in self._reached:
                self._reached.add((id(guide), number))
                for _ in range(guide.refine_iterations):
                    found = self._step(item, refine_loss, x, sigma, level, kwargs, 1.0 - target)
                    if found is None or bool((found.per_phrase <= 1.0 - target).all()):
                        break
        found = None
        for _ in range(guide.iterations):
            found = self._step(item, guide.loss, x, sigma, level, kwargs, None)
        if found is not None and item.report is not None:
            item.report(report_line(self._steps.started, len(self._steps.sigmas) - 1, found))

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
    factor = guide.step_size(run.progress(level)) * (1.0 if is_flow(run.guider.inner_model) else 1.0 + level**2)
    change = -factor * gradient
    limit = guide.max_change * level
    return change.clamp(-limit, limit) if limit else change
