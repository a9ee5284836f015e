"""Latent guides that move the model's prediction, with the gradient of the ordinary call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.pictures import MOST
from ...core.seam import LatentGuide
from ..attention.calls import Extra, IncompatiblePatchError, Installed
from ..run.run import OVERRIDE, WRAPPER, Run
from .differentiable import differentiable
from .foreign import attention_with_gradient, explained, without_foreign_gradients
from .gradient import Gradient, differentiate, mean_gradient
from .guides import guides_of, is_flow, report_line
from .maps import MapReader, reader_of
from .steps import step_at

MOVES = "boxwright_moves"  # key of the moves of one evaluation in transformer_options


def attach(run: Run, options: dict[str, Any]) -> None:
    """Add what guides need to the options of a run."""
    if any(item.edit.moves == "prediction" for item in guides_of(run)):
        kinds = options["wrappers"].setdefault(WrappersMP.CALC_COND_BATCH, {})
        kinds[WRAPPER] = [partial(predict_with_guides, run)]


class PartialGraph:
    """For a model call whose output counts too: autograd follows it up to the last layer that its readers want."""

    def __init__(self) -> None:
        self.readers: dict[Any, list[MapReader]] = {}  # uuid of a conditioning entry -> who reads its rows
        self.waiting: list[MapReader] = []  # those of the model call under way that have not seen their last layer

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper."""
        options = args[5] if len(args) > 5 else kwargs["transformer_options"]
        self.waiting = [reader for key in options["uuids"] for reader in self.readers.get(key, ())]
        with torch.enable_grad():
            return executor(*args, **kwargs)

    def drop(self, reader: MapReader) -> None:
        """The reader is content; after the last of them nothing more is kept for the backward pass."""
        self.waiting = [other for other in self.waiting if other is not reader]
        if not self.waiting:
            torch.set_grad_enabled(False)


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
    run: Run,
    executor: Any,
    model: Any,
    conds: list,
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
    *args: Any,
    **kw: Any,
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper: the ordinary evaluation, and where a guide is active its gradient from the same pass.

    The rows with guides run on their own, so that the others need no graph. In one call of the guider only the first
    evaluation of the layout's rows counts: what other packs evaluate after it (PAG, SAG) is the same again or not at x.
    """
    moves = options["transformer_options"].get(MOVES)
    if moves is None or moves.change is not None or run.EXTRA in options["transformer_options"]:
        return executor(model, conds, x, sigma, options, *args, **kw)
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
        return executor(model, conds, x, sigma, options, *args, **kw)
    if "context_window" in options["transformer_options"]:
        raise IncompatiblePatchError(
            'Context windows cut this run into parts, which the mode "fast" does not follow. Use the mode "boxdiff", '
            "or remove the context windows from the model."
        )
    rest = [None if i in guided else entries for i, entries in enumerate(conds)]
    if any(rest):
        outputs = list(executor(model, rest, x, sigma, options, *args, **kw))
    else:
        outputs = [torch.zeros_like(x) for _ in conds]
    found, moves.change = [], torch.zeros_like(x)
    for i in guided:
        outputs[i], gradients = _guided_prediction(
            run, active, executor, model, conds[i], x, sigma, options, *args, **kw
        )
        found += gradients
    for item in active:
        own = [gradient for of, gradient in found if of is item]
        if own:
            gradient = mean_gradient(own)
            change = prediction_change(run, item.edit, gradient.values, level)
            moves.change = moves.change + change.to(x)
            if item.report is not None:
                sigmas = options["transformer_options"]["sample_sigmas"].tolist()
                item.report(report_line(step_at(sigmas, level), len(sigmas) - 1, gradient))
        elif item.report is not None:
            item.report("not moved in this step: the model was not run on the prompt (a cache, or its time range)")
    return outputs


def prediction_change(run: Run, guide: LatentGuide, gradient: Tensor, level: float) -> Tensor:
    """What a guide adds to the denoised latent at a sigma.

    iLGD (arXiv 2405.14101): the predicted noise grows by step * sigma * the gradient by the scaled model input, so that
    the denoised latent falls by sigma times that. It is bounded at every sigma: that product grows with its cube.
    A flow model's velocity grows in the same way, and its input is not scaled.
    """
    scaled = 1.0 if is_flow(run.guider.inner_model) else (1.0 + level**2) ** 0.5
    change = -guide.step_size(run.progress(level)) * level**2 * scaled * gradient
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
    *args: Any,
    **kw: Any,
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
    with differentiable(model.diffusion_model, patcher=run.guider.model_patcher):
        latent = x.detach().clone().requires_grad_(True)
        local = comfy.model_patcher.create_model_options_clone(options)
        local.pop("multigpu_clones", None)  # the host's threads cut the graph
        inner = local["transformer_options"]
        inner[OVERRIDE] = partial(attention_with_gradient, run)
        inner[run.EXTRA] = Extra(extra, aside=False)
        inner["wrappers"].setdefault(WrappersMP.APPLY_MODEL, {})["boxwright_graph"] = [graph.apply_model]
        entries = [without_foreign_gradients(entry) for entry in entries]
        with explained():
            (output,) = executor(model, [entries], latent, sigma.detach().clone(), local, *args, **kw)
        heard = [(item, reader) for item, reader in readers if reader.parts]
        gradients = [
            (item, differentiate(model, item.edit.loss(*reader.maps()), latent, last=reader is heard[-1][1]))
            for item, reader in heard
        ]
    return output.detach(), gradients
