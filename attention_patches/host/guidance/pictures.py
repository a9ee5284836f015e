"""Guides that move a run's predicted clean latent along the gradient of a loss on its picture.

They see what the guider has made of all predictions, so that CFG, other packs' patches and every family of models are
its own business. Only the mode "through model" asks the network for a gradient, in a pass of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...core.pictures import Part, PictureGuide, move_limit, part_share, rectangle_of, schedule_weight, window_of_part
from ...core.types import BoxwrightError
from ..attention.saveable import saveable
from ..run.schedule import progress_of
from .aside import entry_aside
from .decoders import Decoder
from .differentiable import differentiable
from .foreign import explained
from .gradient import entry_of_rows, finite_gradient, prediction_gradient_options, within_memory
from .guides import is_flow
from .steps import step_at

GUIDES = "boxwright_pictures"  # key of a tuple of Guided in transformer_options
STATE = "boxwright_pictures_run"  # key of a RunState in the transformer_options of one run
LAST = 1.0 - 1e-6  # progress of the last step
INSTEAD = '"direct", which takes no gradient through the model'


@dataclass(frozen=True)
class Guided:
    """A guide, and what it sees its pictures by."""

    guide: PictureGuide
    decode: Decoder


@dataclass
class RunState:
    """What one run has worked out."""

    progress: Any
    shares: dict[Any, Tensor] = field(default_factory=dict)
    rectangles: dict[Any, tuple[slice, slice]] = field(default_factory=dict)
    sizes: dict[Any, float] = field(default_factory=dict)
    acted: dict[int, list[float]] = field(default_factory=dict)  # id of a guide -> the progress where it was asked

    def share(self, part: Part, grid: tuple[int, int], like: Tensor) -> Tensor:
        """`part_share` on the device of `like`."""
        key = (id(part.area), grid, like.device)
        if key not in self.shares:
            self.shares[key] = part_share(part, grid).to(like.device)
        return self.shares[key]

    # Found on the CPU and once: what is asked of a device waits for it.

    def rectangle(self, part: Part, grid: tuple[int, int]) -> tuple[slice, slice]:
        """`rectangle_of` the part."""
        key = (id(part.area), grid)
        if key not in self.rectangles:
            self.rectangles[key] = rectangle_of(part_share(part, grid).cpu())
        return self.rectangles[key]

    def cells(self, part: Part, grid: tuple[int, int]) -> float:
        """How many cells of the grid the part covers, at least 1."""
        key = (id(part.area), grid)
        if key not in self.sizes:
            self.sizes[key] = max(1.0, float(part_share(part, grid).sum()))
        return self.sizes[key]


def predict_by_pictures(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kw: Any
) -> Tensor:
    """PREDICT_NOISE wrapper: every guide's move is added to what the guider predicts."""
    clean = executor(x, timestep, model_options, *args, **kw)
    guider, sigma, kept = executor.class_obj, float(timestep.flatten()[0]), model_options["transformer_options"]
    sampling = guider.inner_model.model_sampling
    if sigma <= 0:
        return clean
    state = kept[STATE] = kept.get(STATE) or RunState(progress_of(sampling, kept["sample_sigmas"].tolist()))
    progress, flow = min(state.progress(sigma), LAST), is_flow(guider.inner_model)
    moves = torch.zeros_like(clean, dtype=torch.float32)
    for item in kept[GUIDES]:
        parts = item.guide.at(progress)
        if not parts:
            continue
        state.acted.setdefault(id(item.guide), []).append(progress)
        gradient, losses = _by_picture(guider.inner_model, item, parts, state, clean)
        line = ""
        if item.guide.through == "through model":
            found = _by_latent(guider, x, timestep, model_options, gradient)
            gradient = torch.zeros_like(gradient) if found is None else found
            line = "; not moved, since the prompt takes no part in this step" if found is None else ""
        weight = item.guide.strength * schedule_weight(sigma, flow, item.guide.through)
        limit = move_limit(item.guide.max_change, sigma, flow)
        reach = torch.stack([state.share(part, tuple(clean.shape[-2:]), clean) for part in parts]).amax(dim=0)
        moves -= (weight * gradient).clamp(-limit, limit) * reach
        if item.guide.report is not None:
            sigmas = kept["sample_sigmas"].tolist()
            step = step_at(sigmas, sigma) + 1
            item.guide.report(f"step {step} of {len(sigmas) - 1}, loss {_numbers(losses)}{line}")
    return clean + moves.to(clean)


def _numbers(losses: Tensor) -> str:
    values = [f"{value:.4f}" for value in losses[:4].tolist()]
    return ", ".join(values) + (", ..." if len(losses) > 4 else "")


def _by_picture(
    base_model: Any, item: Guided, parts: tuple[Part, ...], state: RunState, clean: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by the clean latent, float32 in its shape, of each part's loss times its cells; and the losses [B].

    That of a cell then depends neither on how many there are, nor on how small a number 16 bits can hold.
    """

    def attempt(rows: slice) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            latent = clean[rows].detach().clone().float().requires_grad_(True)
            pictures = item.decode(base_model, latent)
            total, losses = pictures.new_zeros(()), []
            for part in parts:
                grid = tuple(pictures.shape[-2:])
                share, rectangle = state.share(part, grid, pictures), state.rectangle(part, grid)
                seen = window_of_part(pictures, share.clone(), rectangle)
                loss = _checked(saveable(item.guide.loss, seen), pictures)
                total = total + part.strength * state.cells(part, tuple(latent.shape[-2:])) * loss.sum()
                losses.append(part.strength * loss.detach())
            return torch.autograd.grad(total, latent)[0], sum(losses)

    comfy.model_management.throw_exception_if_processing_interrupted()
    found = within_memory(attempt, slice(0, clean.shape[0]))
    gradient, losses = (torch.cat(values) for values in zip(*found, strict=True))
    if not bool(gradient.isfinite().all()):
        raise BoxwrightError(
            "The loss of Loss Guidance, or its gradient, is no finite number for the picture of this step. Look at the "
            "node that made the loss, or load the VAE in more precision."
        )
    return gradient, losses


def _checked(loss: Any, pictures: Tensor) -> Tensor:
    shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    if shape != (pictures.shape[0],) or not loss.is_floating_point():
        raise BoxwrightError(
            f"The loss of Loss Guidance returned {shape} for {pictures.shape[0]} pictures; it must return one float "
            "for each of them. Look at the node that made the loss."
        )
    if not loss.requires_grad:
        raise BoxwrightError(
            "The loss of Loss Guidance does not depend on the picture in a way that has a gradient (it detaches it, or "
            "compares and counts). Look at the node that made the loss."
        )
    return loss.float()


def _by_latent(guider: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any], by_clean: Tensor) -> Tensor | None:
    """J^T `by_clean`, float32 [B, C, ...], with J the derivative of the positive prompts' prediction by x.

    None where they take no part at this sigma. At CFG 1 that is the gradient of the loss itself; above it, what the
    prompt would make of the latent stands for what the guider makes of it, at the price of one pass and its way back.
    """
    base_model, batch = guider.inner_model, x.shape[0]
    entries = [*map(entry_aside, _positive(guider.conds))]

    def attempt(rows: slice) -> Tensor | None:
        with differentiable(base_model.diffusion_model, patcher=guider.model_patcher):
            latent = x[rows].detach().clone().requires_grad_(True)
            own = [entry_of_rows(entry, rows, batch) for entry in entries]
            with explained():
                (clean,) = comfy.samplers.calc_cond_batch(
                    base_model, [own], latent, sigma[rows].detach().clone(), prediction_gradient_options(model_options)
                )
            if not clean.requires_grad:
                return None
            total = (clean.float() * by_clean[rows].clone()).sum()
            return finite_gradient(base_model, total, latent, instead=INSTEAD).detach()

    found = within_memory(attempt, slice(0, batch))
    return None if found[0] is None else torch.cat(found)


def _positive(conds: dict[str, list[dict]]) -> list[dict]:
    """The entries of the prompt that is followed."""
    if "positive" in conds:
        return conds["positive"]
    return next((entries for name, entries in conds.items() if "negative" not in name), [])
