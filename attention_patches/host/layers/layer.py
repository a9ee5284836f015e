"""One layer of the model with the changes of several LoRAs, each times its weight of every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.outside_blocks import outside_blocks
from .change import LayerChange, LayerShape


class ChangedLayer:
    """For one run: the matrices of all LoRAs side by side, so that two products serve them all.

    `weights` are float [..., LoRAs], and their leading axes go with those of the output without its channels: tokens
    [rows, n], pixels [rows, h, w], or [rows] for what has no place; 1 stands for all.
    """

    def __init__(self, shape: LayerShape, changes: Sequence[tuple[int, LayerChange]]) -> None:
        self.shape = shape
        self.changes = changes  # (number of the LoRA, what it does here)
        self.numbers = [number for number, _ in changes]
        self._ready: dict[Any, tuple[Any, ...]] = {}

    def changed(self, x: Tensor, out: Tensor, weights: Tensor) -> Tensor:
        """`out`, which the layer made of x, with the changes; in place where no autograd graph is."""
        down, up, columns, biases = self._on(x)
        if down is not None:
            out = self._thin(x, out, weights.index_select(-1, columns), down, up)
        for number, change in self.changes:
            if change.whole:
                out = out + self._plain(x, change.weight(self.shape.weight, x)) * self._placed(weights, [number])
        for number, bias in biases:
            own = bias.view(-1, 1, 1) if self.shape.is_convolution else bias
            out = out + own * self._placed(weights, [number])
        return out

    def _thin(self, x: Tensor, out: Tensor, weights: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """out + up (weights * down x): the weight of a place counts where the fewest channels are."""
        graph = torch.is_grad_enabled() and (x.requires_grad or out.requires_grad)
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

    def _placed(self, weights: Tensor, numbers: list[int]) -> Tensor:
        """The weights of one LoRA beside the channels of the output."""
        return weights[..., numbers].movedim(-1, -3) if self.shape.is_convolution else weights[..., numbers]

    def _on(self, x: Tensor) -> tuple[Any, ...]:
        """(down, up, which LoRA each of their inner channels is of, biases) where x is; made once in a run."""
        key = (x.device, x.dtype)
        if key not in self._ready:
            # Autograd may not save what was made in inference mode.
            with outside_blocks(), torch.inference_mode(False), torch.no_grad():
                self._ready[key] = self._made(x.device, x.dtype)
        return self._ready[key]

    def _made(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        def here(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype, copy=True)

        biases = [(number, here(change.bias)) for number, change in self.changes if change.bias is not None]
        thin = [(n, up, down) for n, change in self.changes for up, down in zip(change.up, change.down, strict=True)]
        if not thin:
            return None, None, None, biases
        down = torch.cat([here(down) for _, _, down in thin])
        up = torch.cat([here(up) for _, up, _ in thin], dim=1)
        columns = [number for number, _, down in thin for _ in range(down.shape[0])]
        return down, up, torch.tensor(columns, device=device), biases
