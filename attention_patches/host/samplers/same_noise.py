"""The same noise in every row of a group, whatever the sampler.

Ancestral and SDE samplers draw noise for the whole batch at once, most of them through a function of their own, some
with torch directly, so there is no one place where it could be exchanged. What all have in common is torch's normal
generator, called for a tensor of the latent's shape (of another height and width where a sampler enlarges it). While a
run lasts, this mode copies each group's first row over the others in what that returns; the first row, and so the
source's picture, stays what it is without the mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM = (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_)


class SameNoise(TorchFunctionMode):
    """Context manager: normal draws of `shape` [B, C, ...], of any size, have equal rows in groups of `count`."""

    def __init__(self, shape: Sequence[int], count: int) -> None:
        super().__init__()
        self.shape, self.count = tuple(shape), count

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _RANDOM and isinstance(out, Tensor) and self._is_latent(out):
            same = same_rows(out, self.count)
            return out.copy_(same) if func is torch.Tensor.normal_ else same
        return out

    def _is_latent(self, drawn: Tensor) -> bool:
        return drawn.ndim == len(self.shape) and tuple(drawn.shape[:2]) == self.shape[:2]


def same_rows(noise: Tensor, count: int) -> Tensor:
    """[B, ...] with each group of `count` rows equal to its first."""
    return noise[::count].repeat_interleave(count, dim=0)
