"""The gradient of a loss on attention maps by the latent.

Twice as costly as it must be is what one gets by differentiating a whole model call: here only the layout's own rows
are run, without ControlNets and other packs' wrappers, and the run stops after the last attention layer that the loss
reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ...core.seam import AttentionEdit, AttentionLoss, AttentionSite, LatentGuide
from ...core.types import BoxwrightError, UnsupportedModelError
from ..attention.call import AttentionCall
from ..attention.calls import Extra, IncompatiblePatchError, Installed
from ..families.base import Adapter
from ..run.run import Run
from .differentiable import differentiable

Loss = Callable[[Tensor, AttentionSite], AttentionLoss]

COARSEST = 4  # latent cells under a token: 32 pixels, the grid that the papers read at 512 and 1024 pixels
# Gradients in 16 bits are small: the loss is scaled up, and the gradient down again. Tried in turn until it is finite.
HALF_SCALES = (1024.0, 64.0, 4.0, 0.25)
REMEDIES = {  # what else can be done about an overflow, by the model's type
    torch.float16: "Run the model in bfloat16 or float32, or c",
    torch.bfloat16: "Run the model in float32, or c",
}
LITTLE = 1e-3  # a loss that may well have no gradient: the goal is reached
TILE = 128  # queries or keys that attention kernels take at a time, or a multiple of what they take


class _Enough(Exception):
    """The last layer that is needed has been read."""


# --- attention maps ---------------------------------------------------------------------------------------------------


class MapReader:
    """The attention maps of one conditioning entry on one grid.

    `finished(reader)` is called when the last layer of that grid has been read.
    """

    def __init__(self, level: int, last: str | None, finished: Callable[[MapReader], None]) -> None:
        self.level, self.last, self.finished = level, last, finished
        self.parts: dict[str, list[Tensor]] = {}
        self.sites: dict[str, AttentionSite] = {}

    def edit(self) -> AttentionEdit:
        return AttentionEdit("maps", "read", self._read, where=lambda site: site.level == self.level)

    def _read(self, probs: Tensor, site: AttentionSite) -> None:
        self.sites[site.layer] = site
        self.parts.setdefault(site.layer, []).append(probs.mean(dim=1))
        if site.layer == self.last and site.queries.stop == site.grid[0] * site.grid[1]:
            self.finished(self)

    def maps(self) -> tuple[Tensor, AttentionSite]:
        """[B, T, h, w], the mean over heads and layers, and where they are from.

        A patch may shrink the features of some layers (Deep Shrink): then those of the finest grid count.
        """
        finest = max(self.sites.values(), key=lambda site: site.grid[0] * site.grid[1])
        layers = [torch.cat(self.parts[name], dim=1) for name, s in self.sites.items() if s.grid == finest.grid]
        return torch.stack(layers).mean(dim=0).transpose(1, 2).unflatten(2, finest.grid), finest


def map_level(factors: tuple[int, ...], latent: tuple[int, int], smallest_side: int) -> int:
    """Which attention grid a loss reads: the coarsest with cells enough that shows no more than 32 pixels per cell.

    `factors` are latent cells per token, finest first. 16 x 16 for SD 1.5 at 512 and 32 x 32 for SDXL at 1024 pixels.
    What the layers of a grid look at was learnt with the model, at whatever size: in smaller pictures the same layers
    serve down to half of `smallest_side`, but for the coarsest grid, which sees the picture as a whole. The finest grid
    where none has cells enough.
    """
    coarsest = len(factors) - 1
    needed = [smallest_side if level == coarsest else smallest_side // 2 for level in range(len(factors))]
    fine = [i for i, f in enumerate(factors) if f <= COARSEST and min(latent) // f >= needed[i]]
    return max(fine, default=0)


# --- the gradient -----------------------------------------------------------------------------------------------------


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

    After running out of memory once, the rows are taken one at a time.
    """
    parts = []
    for entry in _originals(run.conditioning(item.layout)):
        try:
            parts.append(_entry_gradient(run, item, loss, entry, x, sigma, options))
        except Exception as error:
            if x.shape[0] == 1 or not _is_out_of_memory(error):
                raise
            comfy.model_management.soft_empty_cache()
        else:
            continue
        rows = [
            _entry_gradient(run, item, loss, _row(entry, i, x.shape[0]), x[i : i + 1], sigma[i : i + 1], options)
            for i in range(x.shape[0])
        ]
        parts.append(None if rows[0] is None else _joined(rows))
    found = [part for part in parts if part is not None]
    return mean_gradient(found) if found else None


def mean_gradient(found: list[Gradient]) -> Gradient:
    """Of several entries of one layout: however many there are, they move as much as one."""
    worst = torch.stack([part.per_phrase for part in found]).amax(dim=0)
    values, total = (sum(getattr(part, name) for part in found) / len(found) for name in ("values", "total"))
    return Gradient(values, total, worst, found[0].phrases, found[0].notes)


def _is_out_of_memory(error: Exception) -> bool:
    known = getattr(comfy.model_management, "is_oom", None)  # of hosts from 0.18 on
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def _originals(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the copies that the host makes of an entry for the areas of the other side: those share its text."""
    return list({id(entry["model_conds"].get("c_crossattn", entry)): entry for entry in reversed(entries)}.values())


def _joined(rows: list[Gradient]) -> Gradient:
    fields = [torch.cat([getattr(row, name) for row in rows]) for name in ("values", "total", "per_phrase")]
    return Gradient(*fields, rows[0].phrases, rows[0].notes)


def _row(entry: dict[str, Any], row: int, batch: int) -> dict[str, Any]:
    """The conditioning of one row of the batch."""
    inputs = {}
    for name, cond in entry["model_conds"].items():
        value = getattr(cond, "cond", None)
        per_row = torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == batch
        inputs[name] = cond._copy_with(value[row : row + 1]) if per_row else cond
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
    entry = {name: value for name, value in entry.items() if name not in ("control", "gligen")}
    with differentiable(model.diffusion_model):
        latent = x.detach().clone().requires_grad_(True)
        read = Installed(item.layout, reader.edit(), graph=True)
        local = _options_for_gradient(run, options, {entry["uuid"]: (read,)})
        try:
            with explained():
                comfy.samplers.calc_cond_batch(model, [[entry]], latent, sigma.detach().clone(), local)
        except _Enough:
            pass
        if not reader.parts:
            return None
        return differentiate(model, loss(*reader.maps()), latent)


@contextmanager
def explained() -> Iterator[None]:
    """Autograd's word for weights that only inference may touch, in words for a user."""
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved" not in str(error):
            raise
        raise IncompatiblePatchError(
            "Another patch adds weights of its own to this model (an adapter that bypasses a layer), which gradients "
            "do not pass. Load it as an ordinary LoRA, remove it, or use a method without gradients (Rectified "
            "Attention)."
        ) from error


def reader_of(run: Run, guide: LatentGuide, finished: Callable[[MapReader], None]) -> MapReader:
    level = map_level(run.adapter.factors, run.image, guide.smallest_side)
    last = run.adapter.last_layer(level) if guide.early_exit else None
    return MapReader(level, last, finished)


def _stop(reader: MapReader) -> None:
    raise _Enough


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


def _options_for_gradient(run: Run, options: dict[str, Any], extra: dict[Any, tuple[Installed, ...]]) -> dict[str, Any]:
    """Model options without anybody's caches, wrappers and further devices, and with attention that has a gradient."""
    local = comfy.model_patcher.create_model_options_clone(options)
    for name in ("multigpu_clones", "model_function_wrapper", "context_handler"):
        local.pop(name, None)
    inner = local["transformer_options"]
    inner["wrappers"] = {WrappersMP.APPLY_MODEL: {"boxwright": [run.apply_model]}}
    inner["optimized_attention_override"] = partial(attention_with_gradient, run)
    inner[run.EXTRA] = Extra(extra, aside=True)
    return local


def attention_with_gradient(run: Run, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """optimized_attention_override: some of the host's kernels, and other packs' overrides, have no backward."""
    return run.attention(None, _attention_with_backward, *args, **kwargs)


def _attention_with_backward(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    """The host's PyTorch attention; with a mask the plain kernel, unless every tile of the fused ones is full.

    On new cards the fused kernels' backward with a mask may be wrong where the last tile is not: half full, above all.
    """
    call = AttentionCall(attention_pytorch, q, k, v, heads, mask, rest, options)
    counts = (q.shape[call.token_axis], k.shape[call.token_axis])
    if mask is None or all(count % TILE == 0 for count in counts):
        return call.fused()
    q, k, v = (call.by_head(t) for t in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.get("scale"))
    return out if options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)


def differentiate(model: Any, loss: AttentionLoss, latent: Tensor, last: bool = True) -> Gradient:
    """d loss / d latent. In 16 bits the loss is scaled up, by less and less where the gradient overflows.

    All but the `last` of several losses keep the graph that they share.
    """
    dtype = model.manual_cast_dtype or model.get_dtype()
    scales = HALF_SCALES if dtype in REMEDIES else (1.0,)
    for scale in scales:
        values = _backward(loss.total.sum() * scale, latent, keep=not last or scale != scales[-1]).float() / scale
        peaks = torch.stack([values.flatten(1).abs().amax(dim=1), loss.total.detach().float()]).tolist()
        if all(map(math.isfinite, peaks[0])):
            break
    else:
        raise BoxwrightError(
            f"The gradient of the guidance is not finite in {dtype}: the model's attention overflows. "
            f"{REMEDIES.get(dtype, 'C')}hoose a method without gradients (Rectified Attention)."
        )
    notes = loss.notes
    if any(peak == 0.0 and total > LITTLE for peak, total in zip(*peaks, strict=True)):
        notes = (*notes, "the attention gives no direction here, so that nothing is moved")
    return Gradient(values.detach(), loss.total.detach(), loss.per_phrase, loss.phrases, notes)


def _backward(loss: Tensor, latent: Tensor, keep: bool) -> Tensor:
    try:
        return torch.autograd.grad(loss, latent, retain_graph=keep)[0]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise IncompatiblePatchError(
            "Another patch on this model writes into tensors that the gradient still needs. Remove that patch, or use "
            "a method without gradients (Rectified Attention)."
        ) from error


# --- what has no gradient ---------------------------------------------------------------------------------------------


def without_foreign_gradients(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with a ControlNet that autograd does not follow: its weights are the host's inference tensors."""
    if entry.get("gligen") is not None:
        raise IncompatiblePatchError(
            'GLIGEN puts layers without a gradient into the model. Use the mode "boxdiff", whose gradient pass leaves '
            "them out, or remove GLIGEN."
        )
    control = entry.get("control")
    return entry if control is None else {**entry, "control": _ControlOutsideGraph(control)}


class _ControlOutsideGraph:
    """A ControlNet as the model meets it in a pass with gradients: a constant."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            out = self._control.get_control(x.detach(), *args, **kwargs)
        if out is None:
            return None
        return {name: [None if t is None else _added(t) for t in tensors] for name, tensors in out.items()}


def _added(tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(_Addend)


class _Addend(torch.Tensor):
    """The host adds it in place to features that the gradient still needs; this makes `h += addend` a new tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
        if func is Tensor.add_:
            func = torch.add
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def refuse_without_gradient(adapter: Adapter) -> None:
    """Raises UnsupportedModelError for a family whose layers have no gradient here."""
    if not adapter.gradients:
        raise UnsupportedModelError(
            f"Guides need gradients, which Boxwright does not take through {adapter.name} yet. Use a Stable Diffusion "
            "UNet (SD 1.x, SD 2.x, SDXL), or a method without gradients (Rectified Attention)."
        )
