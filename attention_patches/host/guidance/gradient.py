"""The gradient of a loss on attention maps by the latent.

Twice as costly as it must be is what one gets by differentiating a whole model call: here only the layout's own rows
are run, without ControlNets and other packs' wrappers, and the run stops after the last attention layer that the loss
reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...core.seam import AttentionLoss, AttentionSite
from ...core.types import BoxwrightError
from ..attention.calls import Extra, Installed
from ..run.run import OVERRIDE, RUN, Run
from .aside import Enough, entry_aside, options_aside
from .differentiable import differentiable
from .foreign import attention_with_gradient, explained, plain_attention_with_gradient
from .maps import MapReader, reader_of

Loss = Callable[[Tensor, AttentionSite], AttentionLoss]
Found = TypeVar("Found")

# Gradients in 16 bits are small: the loss is scaled up, and the gradient down again. Tried in turn until it is finite.
HALF_SCALES = (1024.0, 64.0, 4.0, 0.25)
REMEDIES = {  # what else can be done about an overflow, by the model's type
    torch.float16: "Run the model in bfloat16 or float32, or c",
    torch.bfloat16: "Run the model in float32, or c",
}
WITHOUT_GRADIENTS = "a method without gradients (Rectified Attention)"
LITTLE = 1e-3  # a loss that may well have no gradient: the goal is reached


@dataclass
class Gradient:
    """By the latent, float32 in its shape, and the loss it belongs to."""

    values: Tensor
    total: Tensor  # [B]
    per_phrase: Tensor  # [B, phrases]
    phrases: tuple[str, ...]
    notes: tuple[str, ...]


def loss_gradient(
    run: Run, item: Installed, loss: Loss, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> Gradient | None:
    """d loss / d x for the guide's conditioning, row by row; None where that takes no part at this sigma.

    After running out of memory, the rows are taken one at a time; where one is too much, the pass is made once more
    with what it keeps for its way back in main memory.
    """
    batch, found = x.shape[0], []
    for entry in originals(run.conditioning(item)):

        def attempt(rows: slice, entry: dict[str, Any] = entry) -> Gradient | None:
            own = entry_of_rows(entry, rows, batch)
            return _entry_gradient(run, item, loss, own, x[rows], sigma[rows], options)

        parts = [part for part in within_memory(attempt, slice(0, batch)) if part is not None]
        if parts:
            found.append(parts[0] if len(parts) == 1 else _joined(parts))
    return mean_gradient(found) if found else None


def within_memory(attempt: Callable[[slice], Found], rows: slice) -> list[Found]:
    """What `attempt` returns for some rows of a batch, or for each of them alone where memory does not do for all.

    Where it does not do for one either, what a pass keeps for its way back is kept in main memory.
    """
    try:
        return [attempt(rows)]
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    # Not before the error is gone: its traceback holds the tensors of the pass.
    comfy.model_management.soft_empty_cache()
    if rows.stop - rows.start == 1:
        with torch.autograd.graph.save_on_cpu():
            return [attempt(rows)]
    return [part for i in range(rows.start, rows.stop) for part in within_memory(attempt, slice(i, i + 1))]


def mean_gradient(found: list[Gradient]) -> Gradient:
    """Of several entries of one layout: however many there are, they move as much as one."""
    worst = torch.stack([part.per_phrase for part in found]).amax(dim=0)
    values, total = (sum(getattr(part, name) for part in found) / len(found) for name in ("values", "total"))
    return Gradient(values, total, worst, found[0].phrases, _notes(found))


def _is_out_of_memory(error: Exception) -> bool:
    known = getattr(comfy.model_management, "is_oom", None)  # of hosts from 0.18 on
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def originals(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the copies that the host makes of an entry for the areas of the other side: those share its text."""
    return list({id(entry["model_conds"].get("c_crossattn", entry)): entry for entry in reversed(entries)}.values())


def _joined(rows: list[Gradient]) -> Gradient:
    names = ("values", "total", "per_phrase")
    values, total, per_phrase = (torch.cat([getattr(row, name) for row in rows]) for name in names)
    return Gradient(values, total, per_phrase, rows[0].phrases, _notes(rows))


def _notes(parts: list[Gradient]) -> tuple[str, ...]:
    """Those of all parts, each once."""
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def entry_of_rows(entry: dict[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    """The conditioning of some rows of the batch; itself for all."""
    if rows == slice(0, batch):
        return entry
    inputs = {}
    for name, cond in entry["model_conds"].items():
        value = getattr(cond, "cond", None)
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch:
            cond = cond._copy_with(value[rows])
        inputs[name] = cond
    return {**entry, "model_conds": inputs}


def _entry_gradient(
    run: Run,
    item: Installed,
    loss: Loss,
    entry: dict[str, Any],
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
) -> Gradient | None:
    reader = reader_of(run, item.edit, _stop)
    model = run.guider.inner_model
    entry = entry_aside(entry)
    with differentiable(model.diffusion_model, patcher=run.guider.model_patcher):
        latent = x.detach().clone().requires_grad_(True)
        read = Installed(item.layout, reader.edit(), graph=True)
        local = _gradient_options(options, run, Extra({entry["uuid"]: (read,)}, aside=True))
        try:
            with explained():
                comfy.samplers.calc_cond_batch(model, [[entry]], latent, sigma.detach().clone(), local)
        except Enough:
            pass
        if not reader.parts:
            return None
        return differentiate(model, loss(*reader.maps()), latent)


def _stop(reader: MapReader) -> None:
    raise Enough


def _gradient_options(options: dict[str, Any], run: Run | None, extra: Extra) -> dict[str, Any]:
    """`options_aside`, with an attention that has a gradient."""
    local = options_aside(options, run, extra)
    attention = plain_attention_with_gradient if run is None else partial(attention_with_gradient, run)
    local["transformer_options"][OVERRIDE] = attention
    return local


def prediction_gradient_options(options: dict[str, Any]) -> dict[str, Any]:
    """Model options for the gradient of what the model predicts with the edits of its run, if there are any of ours."""
    local = _gradient_options(options, options["transformer_options"].get(RUN), Extra({}, aside=False))
    local["transformer_options"][Run.ASIDE] = True  # recorders do not hear this pass; regions read their own texts
    return local


def differentiate(model: Any, loss: AttentionLoss, latent: Tensor, last: bool = True) -> Gradient:
    """d loss / d latent. In 16 bits the loss is scaled up, by less and less where the gradient overflows.

    All but the `last` of several losses keep the graph that they share.
    """
    values = finite_gradient(model, loss.total.sum(), latent, last)
    parts = [values.flatten(1).abs().amax(dim=1), loss.total.detach().float()]
    if loss.blind is not None:
        parts += loss.blind.float().unbind(dim=1)
    peaks, totals, *blind = torch.stack(parts).tolist()  # of each, row by row; one wait for the device
    notes = loss.notes
    if any(peak == 0.0 and total > LITTLE for peak, total in zip(peaks, totals, strict=True)):
        notes = (*notes, "the attention gives no direction here, so that nothing is moved")
    for phrase, rows in zip(loss.phrases, blind):
        if any(at and peak > 0.0 for at, peak in zip(rows, peaks, strict=True)):
            notes = (*notes, f'the attention gives no direction to "{phrase[:40]}" here')
    return Gradient(values.detach(), loss.total.detach(), loss.per_phrase, loss.phrases, notes)


def finite_gradient(
    model: Any, loss: Tensor, latent: Tensor, last: bool = True, instead: str = WITHOUT_GRADIENTS
) -> Tensor:
    """d loss / d latent, float32, of a loss [] with a graph through the model. Raises BoxwrightError if it overflows.

    `instead` is the rest of the sentence "Choose ..." for a user. See `differentiate` for the rest.
    """
    dtype = model.manual_cast_dtype or model.get_dtype()
    scales = HALF_SCALES if dtype in REMEDIES else (1.0,)
    for scale in scales:
        keep = not last or scale != scales[-1]
        with explained():
            (values,) = torch.autograd.grad(loss * scale, latent, retain_graph=keep)
        values = values.float() / scale
        if bool(values.isfinite().all()):
            return values
    raise BoxwrightError(
        f"The gradient of the guidance is not finite in {dtype}: the model's attention overflows. "
        f"{REMEDIES.get(dtype, 'C')}hoose {instead}."
    )
