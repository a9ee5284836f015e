"""One layer of the model with the changes of several LoRAs, each times its weight of every place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.outside_blocks import outside_blocks
from .change import LayerChange, LayerShape

# On a CPU, a LoRA's tokens are taken out where that leaves less than this share of the work. Elsewhere the many small
# calls would cost more than the work they save (no card has been measured).
SPARSE = 0.4


@dataclass(frozen=True)
class PlaceWeights:
    """What every LoRA weighs at every place of a layer's output.

    `all`: float [..., LoRAs], whose leading axes go with those of the output without its channels: tokens [rows, n],
    pixels [rows, h, w], or [rows] for what has no place; 1 stands for all.
    """

    all: Tensor
    # Of every LoRA: the tokens at which it counts, and its weights there, [n] and [n, 1]; None where that is not known.
    sparse: tuple[tuple[Tensor, Tensor], ...] | None = None

    @classmethod
    def of(cls, weights: Tensor) -> PlaceWeights:
        """Of weights on their device; with the sparse form where it may pay: on a CPU, where all rows are alike."""
        if weights.ndim != 3 or weights.shape[0] != 1 or weights.device.type != "cpu":
            return cls(weights)
        places = [one.nonzero()[:, 0] for one in weights[0].unbind(-1)]
        return cls(weights, tuple((own, weights[0, own, n, None]) for n, own in enumerate(places)))


@dataclass(frozen=True)
class Ready:
    """The tensors of all LoRAs of a layer on one device, in one type; in the order of their inner channels."""

    down: Tensor | None
    up: Tensor | None
    columns: Tensor  # which LoRA each inner channel is of
    parts: list[tuple[int, slice]]  # the same by LoRA
    biases: list[tuple[int, Tensor]]
    factors: dict[int, Tensor]  # of DoRAs: [out], by how much the length of a row grows
    own_bias: Tensor  # of the layer; read with factors alone


class ChangedLayer:
    """For one run: the matrices of all LoRAs side by side, so that two products serve them all."""

    def __init__(self, module: torch.nn.Module, changes: Sequence[tuple[int, LayerChange]]) -> None:
        self.module, self.shape = module, LayerShape.of(module)
        self.changes = changes  # (number of the LoRA, what it does here)
        self._ready: dict[Any, Ready] = {}

    def changed(self, x: Tensor, out: Tensor, placed: PlaceWeights) -> Tensor:
        """`out`, which the layer made of x, with the changes; in place where no autograd graph is."""
        ready, weights = self._on(x), placed.all
        base = out - self._channels(ready.own_bias) if ready.factors else out  # before anything is added in place
        if ready.down is not None:
            out = self._thin(x, out, placed, ready)
        for number, change in self.changes:
            if change.whole:
                added = self._plain(x, change.weight(self.shape.weight, x))
                if number in ready.factors:
                    added = added * self._channels(ready.factors[number])
                out = out + added * self._placed(weights, number)
        for number, factor in ready.factors.items():
            out = out + base * self._channels(factor - 1.0) * self._placed(weights, number)
        for number, bias in ready.biases:
            out = out + self._channels(bias) * self._placed(weights, number)
        return out

    def _thin(self, x: Tensor, out: Tensor, placed: PlaceWeights, ready: Ready) -> Tensor:
        """out + up (weights * down x): the weight of a place counts where the fewest channels are."""
        down, up = ready.down, ready.up
        graph = torch.is_grad_enabled() and (x.requires_grad or out.requires_grad)
        if placed.sparse is not None and x.ndim == 3 and not graph:
            work = sum(len(placed.sparse[n][0]) * (own.stop - own.start) for n, own in ready.parts)
            if work < SPARSE * x.shape[1] * down.shape[0]:
                for n, own in ready.parts:
                    where, weight = placed.sparse[n]
                    inner = F.linear(x.index_select(1, where), down[own]) * weight
                    out.index_add_(1, where, F.linear(inner, up[:, own]))
                return out
        weights = placed.all.index_select(-1, ready.columns)
        if self.shape.is_convolution:
            inner = self._plain(x, down) * weights.movedim(-1, -3)
            if graph or not out.is_contiguous():
                return out + F.conv2d(inner, up[..., None, None])
            rows = up.expand(out.shape[0], -1, -1)
            out.flatten(2).baddbmm_(rows, inner.flatten(2))
            return out
        inner = F.linear(x, down) * weights
        if graph or not out.is_contiguous():
            return out + F.linear(inner, up)
        out.view(-1, out.shape[-1]).addmm_(inner.flatten(0, -2), up.t())
        return out

    def _plain(self, x: Tensor, weight: Tensor) -> Tensor:
        """What a layer of this kind makes of x with another weight, without a bias."""
        if not self.shape.is_convolution:
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, self.shape.stride, self.shape.padding, self.shape.dilation)

    def _placed(self, weights: Tensor, number: int) -> Tensor:
        """The weights of one LoRA beside the channels of the output."""
        one = weights[..., number : number + 1]
        return one.movedim(-1, -3) if self.shape.is_convolution else one

    def _channels(self, values: Tensor) -> Tensor:
        """A value for each channel of the output, beside its places."""
        return values.view(-1, 1, 1) if self.shape.is_convolution else values

    def _on(self, x: Tensor) -> Ready:
        """The tensors where x is; made once in a run."""
        key = (x.device, x.dtype)
        if key not in self._ready:
            # Autograd may not save what was made in inference mode.
            with outside_blocks(), torch.inference_mode(False), torch.no_grad():
                self._ready[key] = self._made(x)
        return self._ready[key]

    def _made(self, x: Tensor) -> Ready:
        def here(tensor: Tensor) -> Tensor:
            return tensor.to(device=x.device, dtype=x.dtype, copy=True)

        norms, own_bias = None, x.new_zeros(self.shape.weight[0])
        if any(change.lengths is not None for _, change in self.changes):
            norms, own_bias = self._fetched(x)
        factors = {n: change.lengths.to(norms) / norms for n, change in self.changes if change.lengths is not None}
        thin = [
            (n, up * factors[n].to(up)[:, None] if n in factors else up, down)
            for n, change in self.changes
            for up, down in zip(change.up, change.down, strict=True)
        ]
        columns = [n for n, _, down in thin for _ in range(down.shape[0])]
        ends = [*accumulate(down.shape[0] for _, _, down in thin)]
        return Ready(
            down=torch.cat([here(down) for _, _, down in thin]) if thin else None,
            up=torch.cat([here(up) for _, up, _ in thin], dim=1) if thin else None,
            columns=torch.tensor(columns, device=x.device),
            parts=[(n, slice(end - down.shape[0], end)) for (n, _, down), end in zip(thin, ends, strict=True)],
            biases=[(n, here(change.bias)) for n, change in self.changes if change.bias is not None],
            factors={n: here(factor) for n, factor in factors.items()},
            own_bias=own_bias,
        )

    def _fetched(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How long the rows of the layer's own weight are, float32 [out], and its bias; with what the host patches."""
        weight, bias, offloaded = comfy.ops.cast_bias_weight(self.module, x, offloadable=True)
        try:
            plain = weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight
            plain = plain.float().flatten(1)
            norms = plain.norm(dim=1) + torch.finfo(plain.dtype).eps
            return norms, norms.new_zeros(norms.shape).to(x) if bias is None else bias.clone()
        finally:
            comfy.ops.uncast_bias_weight(self.module, weight, bias, offloaded)
