"""What a LoRA does to one layer: read with the host's own loaders, kept in the form that costs least.

The host adds the product of a LoRA's matrices to a layer's weight. Here the product is never formed: x passes the two
thin matrices. What has no such form (LoHa, LoKr, a whole difference) is worked out by the host's own function into a
weight of its own, for each call anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.weight_adapter
import torch
from torch import Tensor

from ...core.types import BoxwrightError

Offset = tuple[int, int, int]  # (axis, start, length): the part of a weight that a change is of


@dataclass(frozen=True)
class LayerShape:
    """What a linear or convolution layer is, whatever keeps its weight."""

    weight: tuple[int, ...]  # (out, in) or (out, in, *kernel)
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()

    @property
    def is_convolution(self) -> bool:
        return len(self.weight) > 2

    @classmethod
    def of(cls, module: torch.nn.Module) -> LayerShape | None:
        """None for any other layer, and for convolutions in groups or with anything but zeros around the image.

        The host's layer for weights that it quantises itself derives from no class of torch.
        """
        if isinstance(module, torch.nn.Conv2d):
            if module.groups != 1 or module.padding_mode != "zeros":
                return None
            shape = (module.out_channels, module.in_channels, *module.kernel_size)
            return cls(shape, module.stride, module.padding, module.dilation)
        if isinstance(module, torch.nn.Linear) or hasattr(module, "_full_precision_mm"):
            return cls((module.out_features, module.in_features))
        return None


@dataclass(frozen=True)
class LayerChange:
    """The parts of one LoRA that belong to one layer, as the file has them; the sum of all is the change."""

    up: tuple[Tensor, ...] = ()  # [out, r] each, its scale included
    down: tuple[Tensor, ...] = ()  # [r, in] or [r, in, *kernel] each
    whole: tuple[tuple[Any, ...], ...] = ()  # patches of the weight, as the host's calculate_weight takes them
    bias: Tensor | None = None  # [out]
    # [out]: how long each row of the changed weight is to be; None where the change is the sum alone, and no DoRA
    lengths: Tensor | None = None

    def weight(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The sum of the `whole` patches, in the dtype and on the device of `like`."""
        zeros = torch.zeros(shape, dtype=torch.float32, device=like.device)
        return comfy.lora.calculate_weight([*self.whole], zeros, "a region's LoRA").to(like.dtype)


def change_of(patch: Any, offset: Offset | None, function: Any, shape: LayerShape, where: str) -> LayerChange:
    """A patch of a weight, as the host's load_lora makes it. Raises BoxwrightError where it is no sum or no fit."""
    part = list(shape.weight)
    if offset is not None:
        part[offset[0]] = offset[2]
    kind, dora = type(patch), None
    if isinstance(patch, tuple):
        if patch[0] != "diff" or len(patch[1]) != 1:
            raise _refused(where, f'it sets weights instead of changing them ("{patch[0]}")')
        count = patch[1][0].numel()
    elif kind is comfy.weight_adapter.LoRAAdapter:
        up, down, _, _, dora, reshape = patch.weights
        if reshape is not None:
            raise _refused(where, "it gives the layer another shape")
        if not _belong_together(patch.weights, part[0]):
            raise _of_another_size(where, f"matrices of {[*up.shape]} and {[*down.shape]} for the {part} of the layer")
        count = up.shape[0] * down.shape[1] * _kernel(patch.weights)
    elif kind is comfy.weight_adapter.LoHaAdapter:
        w1_up, w1_down, _, _, _, t1, _, dora = patch.weights
        tucker = t1 is not None
        count = (w1_up.shape[1] if tucker else w1_up.shape[0]) * w1_down[0].numel()
        count *= math.prod(t1.shape[2:]) if tucker else 1
    elif kind is comfy.weight_adapter.LoKrAdapter:
        w1, w2, _, w1_a, w1_b, w2_a, w2_b, t2, dora = patch.weights
        first = w1.numel() if w1 is not None else w1_a.shape[0] * w1_b.shape[1]
        if w2 is not None:
            second = w2.numel()
        elif t2 is None:
            second = w2_a.shape[0] * w2_b.shape[1]
        else:
            second = w2_a.shape[1] * w2_b.shape[1] * math.prod(t2.shape[2:])
        count = first * second
    else:
        name = getattr(patch, "name", kind.__name__).upper()
        raise _refused(where, f"it is of the kind {name}, which is no sum with the layer")
    if count != math.prod(part):
        raise _of_another_size(where, f"{count} values for the {math.prod(part)} of the layer")
    lengths = None if dora is None else _lengths(dora, offset, function, shape, where)
    if kind is comfy.weight_adapter.LoRAAdapter:
        return replace(_low_rank(patch.weights, offset, function, shape), lengths=lengths)
    if dora is not None:
        patch = kind(patch.loaded_keys, tuple(None if part is dora else part for part in patch.weights))
    return LayerChange(whole=((1.0, patch, 1.0, offset, function),), lengths=lengths)


def _lengths(dora: Tensor, offset: Offset | None, function: Any, shape: LayerShape, where: str) -> Tensor:
    """A DoRA's lengths of the rows, which scale what comes out of a layer; those of columns would scale its input."""
    if dora.shape[0] != shape.weight[0] or dora.numel() != shape.weight[0]:
        raise _refused(where, "it is a DoRA that scales the layer's own weights along its input")
    if offset is not None or function is not None:
        raise _refused(where, "it is a DoRA of a part of a layer")
    return dora.float().flatten()


def _refused(where: str, why: str) -> BoxwrightError:
    return BoxwrightError(
        f"{where}: {why}, so that it cannot count for a region alone. Load it for the whole picture (LoraLoader), or "
        "choose a LoRA, LoCon, LoHa, LoKr or DoRA."
    )


def _of_another_size(where: str, sizes: str) -> BoxwrightError:
    return BoxwrightError(
        f"{where}: the LoRA is of another size ({sizes}). It was made for another model; choose one that was made for "
        "this one."
    )


def _belong_together(weights: Sequence[Any], rows: int) -> bool:
    """Whether a LoRA's matrices have one rank, and as many rows as the part of the layer that they are for."""
    up, down, _, mid, *_ = weights
    if min(up.ndim, down.ndim) < 2 or up.shape[0] != rows or up[0].numel() != down.shape[0]:
        return False
    return mid is None or (mid.ndim > 2 and mid.shape[0] == mid.shape[1] == down.shape[0])


def _kernel(weights: Sequence[Any]) -> int:
    """Kernel cells of a LoRA's matrices."""
    down, mid = weights[1], weights[3]
    return math.prod(mid.shape[2:]) if mid is not None else math.prod(down.shape[2:])


def _low_rank(weights: Sequence[Any], offset: Offset | None, function: Any, shape: LayerShape) -> LayerChange:
    """A LoRA's two matrices in the size of the whole layer, zeros where it is of a part of it."""
    up, down, alpha, mid, *_ = weights
    up, down = up.float().flatten(1), down.float()
    up = up * (1.0 if alpha is None else alpha / down.shape[0])
    if mid is not None:  # as the host multiplies them: the second matrix has the kernel then
        inner = torch.mm(down.transpose(0, 1).flatten(1), mid.float().transpose(0, 1).flatten(1))
        down = inner.view(down.shape[1], down.shape[0], *mid.shape[2:]).transpose(0, 1)
    down = down.reshape(down.shape[0], -1, *shape.weight[2:])
    if function is not None:  # moves the rows of a weight
        up = function(up)
    if offset is not None:
        axis, start, length = offset
        whole = (
            up.new_zeros(shape.weight[0], up.shape[1])
            if axis == 0
            else down.new_zeros(down.shape[0], *shape.weight[1:])
        )
        if axis == 0:
            whole[start : start + length] = up
            up = whole
        else:
            whole[:, start : start + length] = down
            down = whole
    return LayerChange(up=(up.contiguous(),), down=(down.contiguous(),))
