"""Prompt Fit on a MODEL: gradient steps on a conditioning, through a network whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..core.types import BoxwrightError, UnsupportedModelError
from ..samplers.noise import noised, seeded
from ..samplers.prompt_fit import MEASURED, PromptFit, noise_loss
from .families import adapter_for
from .guidance.aside import entry_aside
from .guidance.differentiable import differentiable
from .guidance.foreign import explained, refuse_without_gradient
from .guidance.gradient import entry_of_rows, finite_gradient, prediction_gradient_options, within_memory
from .samplers.loops import check_model, levels_of, run

ENDS = 1e-3  # of the schedule, where noise has no level or no end
INSTEAD = "another model"


@dataclass(frozen=True)
class Fitted:
    """A fitted prompt."""

    conditioning: list  # CONDITIONING, as the target's but for its text
    blended: list  # the same, moved towards the target
    losses: tuple[float, ...]  # of every step, each with other noise
    before: float  # on noise that is always the same
    after: float


def fit_prompt(
    model: Any,
    samples: Tensor,
    target: list,
    settings: PromptFit,
    seed: int,
    report: Callable[[str], None] | None = None,
) -> Fitted:
    """The CONDITIONING `target`, moved until the model draws clean latents [B, C, ..., h, w] from it.

    One for all pictures of a batch. Raises BoxwrightError for a target of several parts, and UnsupportedModelError for
    models without gradients, without text, or that read another text than the conditioning holds.
    """
    check_model(model)
    refuse_without_gradient(adapter_for(model), model.model.diffusion_model)
    if len(target) != 1:
        raise BoxwrightError(
            f"The target has {len(target)} parts (Conditioning Combine); a prompt can be fitted where there is one. "
            "Wire the output of one text encode node."
        )
    if not isinstance(target[0][0], Tensor):
        raise UnsupportedModelError("The target holds no text. Wire the output of a text encode node of this model.")
    if not bool(torch.isfinite(target[0][0]).all()):
        raise BoxwrightError(
            "The target holds values that are no numbers (NaN or infinite), and there is no way from those to a "
            "prompt. Look at the node that made it, or load the text encoder in more precision."
        )
    _check_time_range(target[0][1])
    found: dict[str, Any] = {}

    def loop(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **unused: Any) -> Tensor:
        fit = _Fit(model_k.inner_model, model_k.latent_image, extra_args["model_options"], settings, seed)
        found.update(fit.result(report))
        return model_k.latent_image

    top = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    run(model, {"positive": target}, 1.0, samples, loop, top, seed)
    text, values = target[0]
    fitted = found.pop("embedding").to(text)
    return Fitted([[fitted, dict(values)]], [[settings.blended(fitted, text), dict(values)]], **found)


def _check_time_range(values: dict[str, Any]) -> None:
    """Where a prompt takes no part, nothing depends on it, and there is no gradient."""
    start, end = values.get("start_percent", 0.0), values.get("end_percent", 1.0)
    if start > 0.0 or end < 1.0:
        raise BoxwrightError(
            f"The target counts from {start:g} to {end:g} of the noise schedule only, and can be fitted only where it "
            "counts always. Put ConditioningSetTimestepRange behind this node, and choose start and end here."
        )


class _Fit:
    """One fit, inside one run of the host's guider."""

    def __init__(self, guider: Any, picture: Tensor, options: dict, settings: PromptFit, seed: int) -> None:
        self.base_model, self.picture, self.settings, self.seed = guider.inner_model, picture, settings, seed
        self.options = options
        (self.entry,) = guider.conds["positive"]
        self.levels = levels_of(self.base_model.model_sampling)
        self.name, text = "c_crossattn", self.entry.get("cross_attn")
        read = getattr(self.entry["model_conds"].get(self.name), "cond", None)
        if not isinstance(read, Tensor) or read.shape != text.shape or not torch.equal(read.to(text), text):
            raise UnsupportedModelError(
                f"{type(self.base_model).__name__} makes something else of a prompt before it reads it, so that what "
                "would be fitted is no conditioning. Use another model."
            )
        self.text = read

    def result(self, report: Callable[[str], None] | None) -> dict[str, Any]:
        settings, losses = self.settings, []
        bar, draw, moments = comfy.utils.ProgressBar(settings.steps), seeded(self.seed), settings.moments(self.seed)
        with torch.inference_mode(False):
            embedding = self.text.detach().clone().float().to(self.picture.device)
            before = self._measured(embedding)
            optimizer = torch.optim.Adam([embedding.requires_grad_(True)], settings.learning_rate)
            for step in range(settings.steps):
                comfy.model_management.throw_exception_if_processing_interrupted()
                loss, embedding.grad = self._step(embedding, next(moments), draw)
                optimizer.step()
                losses.append(loss)
                bar.update(1)
                if report is not None:
                    report(f"step {step + 1} of {settings.steps}, loss {sum(losses[-20:]) / len(losses[-20:]):.4f}")
            embedding = embedding.detach()
            return {
                "embedding": embedding,
                "losses": tuple(losses),
                "before": before,
                "after": self._measured(embedding),
            }

    def _measured(self, embedding: Tensor) -> float:
        """The loss on the same few draws of noise, spread over the schedule."""
        draw, window = seeded(self.seed + 1), self.settings.window
        places = [window.start + (window.end - window.start) * (i + 0.5) / MEASURED for i in range(MEASURED)]
        return sum(self._step(embedding.detach(), place, draw)[0] for place in places) / MEASURED

    def _step(self, embedding: Tensor, place: float, draw: Any) -> tuple[float, Tensor | None]:
        """The loss at a place of the schedule with fresh noise, and its gradient where the embedding wants one."""
        sampling = self.base_model.model_sampling
        sigma = float(sampling.percent_to_sigma(min(max(place, ENDS), 1.0 - ENDS)))
        picture, batch = self.picture.clone(), self.picture.shape[0]
        noisy, at = noised(picture, self.levels(sigma), draw), picture.new_full((batch,), sigma)

        def attempt(rows: slice) -> tuple[float, Tensor | None]:
            share = (rows.stop - rows.start) / batch
            with differentiable(self.base_model.diffusion_model), torch.set_grad_enabled(embedding.requires_grad):
                clean = self._predicted(embedding, noisy[rows], at[rows], rows)
                loss = noise_loss(clean, picture[rows], sigma) * share
                if not embedding.requires_grad:
                    return float(loss), None
                return float(loss.detach()), finite_gradient(self.base_model, loss, embedding, instead=INSTEAD)

        losses, gradients = zip(*within_memory(attempt, slice(0, batch)), strict=True)
        return sum(losses), None if gradients[0] is None else sum(gradients)

    def _predicted(self, embedding: Tensor, noisy: Tensor, at: Tensor, rows: slice) -> Tensor:
        entry = entry_of_rows(self.entry, rows, self.picture.shape[0])
        text = entry["model_conds"][self.name]._copy_with(embedding)
        entry = {**entry, "model_conds": {**entry["model_conds"], self.name: text}}
        entry = entry_aside(entry)
        with explained():
            (clean,) = comfy.samplers.calc_cond_batch(
                self.base_model, [[entry]], noisy, at, prediction_gradient_options(self.options)
            )
        return clean
