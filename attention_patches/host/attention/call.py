"""One call of the host's attention, and parts of it: some rows, some queries, some keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.modules import attention
from torch import Tensor

from ...core.seam import NEVER

Attention = Callable[..., Tensor]
_NAMES = ("q", "k", "v", "heads", "mask")  # of an attention's first arguments, in their order

TAKES_MASKS = "takes_masks"  # attribute of an attention of ours that adds a mask to the scores
# The host's kernels that add a mask to the scores. Not SageAttention, which may swallow it, nor Flash Attention, which
# fails and falls back with a warning each time; what other packs put in their place is not known.
_TAKE_MASKS = tuple(
    inspect.unwrap(getattr(attention, f"attention_{name}"))
    for name in ("basic", "sub_quad", "split", "xformers", "pytorch")
)


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, for any rows and queries of it."""

    host: Attention
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    rest: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, host: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionCall:
        """The arguments by position or by name, as the host's models pass them."""
        options = dict(kwargs)
        q, k, v, heads, mask = (*args[:5], *(options.pop(name, None) for name in _NAMES[len(args) :]))
        if mask is not None and mask.ndim == 3:
            mask = mask.unsqueeze(1)  # [rows, queries, keys]: the same for all heads
        return cls(host, q, k, v, heads, mask, args[5:], options)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, queries, keys."""
        return self.q.shape[0], self.q.shape[self.token_axis], self.k.shape[self.token_axis]

    @property
    def token_axis(self) -> int:
        """The axis of q, k and v on which tokens are: [B, heads, tokens, channels] or [B, tokens, ...]."""
        return 2 if self.options.get("skip_reshape", False) else 1

    @property
    def out_axis(self) -> int:
        """The same of what the attention returns."""
        return 2 if self.options.get("skip_output_reshape", False) else 1

    def rows(self, rows: slice) -> AttentionCall:
        """The call for some rows of the batch."""
        mask = self.mask
        if mask is not None and mask.ndim > 2 and mask.shape[0] == self.q.shape[0]:
            mask = mask[rows]
        return replace(self, q=self.q[rows], k=self.k[rows], v=self.v[rows], mask=mask)

    def queries(self, part: slice) -> AttentionCall:
        """The call for a run of queries; itself for all of them."""
        axis, count = self.token_axis, self.q.shape[self.token_axis]
        if part == slice(0, count):
            return self
        mask = self.mask
        if mask is not None and mask.shape[-2] == count:
            mask = mask[..., part, :]
        q = self.q.narrow(axis, part.start, part.stop - part.start)
        return replace(self, q=q, mask=mask)

    def chosen(self, index: Tensor) -> AttentionCall:
        """The queries at these places of the query axis."""
        axis, mask = self.token_axis, self.mask
        if mask is not None and mask.shape[-2] == self.q.shape[axis]:
            mask = mask.index_select(-2, index)
        q = self.q.index_select(axis, index)
        return replace(self, q=q, mask=mask)

    def keys(self, part: slice) -> AttentionCall:
        """The call with a run of keys alone."""
        axis, mask = self.token_axis, self.mask
        count, width = self.k.shape[axis], part.stop - part.start
        if mask is not None and mask.shape[-1] == count:
            mask = mask[..., part]
        k, v = (t.narrow(axis, part.start, width) for t in (self.k, self.v))
        return replace(self, k=k, v=v, mask=mask)

    def keys_in(self, runs: Sequence[slice]) -> AttentionCall:
        """The keys of these runs."""
        first, *others = (self.keys(run) for run in runs)
        if not others:
            return first
        k, v = (torch.cat([getattr(part, name) for part in (first, *others)], self.token_axis) for name in "kv")
        mask = first.mask
        if mask is not None and mask.shape[-1] == first.k.shape[self.token_axis]:
            mask = torch.cat([mask, *(part.mask for part in others)], dim=-1)
        return replace(self, k=k, v=v, mask=mask)

    def fused(self, bias: Tensor | None = None) -> Tensor:
        """The host's attention; `bias`, broadcast to [B, heads, queries, keys], is added to the scores."""
        mask = self.mask
        if bias is not None:
            mask = bias if mask is None else additive(mask, bias.dtype) + bias
        if mask is None and not self.rest:
            return self.host(self.q, self.k, self.v, self.heads, **self.options)
        return self.host(self.q, self.k, self.v, self.heads, mask, *self.rest, **self.options)

    def exact(self, bias: Tensor | None = None) -> Tensor:
        """`fused`, by an attention that is known to take masks."""
        known = inspect.unwrap(self.host) in _TAKE_MASKS or getattr(self.host, TAKES_MASKS, False)
        return (self if known else replace(self, host=attention.attention_pytorch)).fused(bias)

    def by_head(self, t: Tensor) -> Tensor:
        """[B, heads, tokens, channels] of q, k or v; grouped keys and values repeated for every query head.

        Where the host is to part the heads, each of the three may come as [B, tokens, heads * channels] or have them
        parted already, [B, tokens, heads, channels].
        """
        if not self.options.get("skip_reshape", False):
            channels = self.q.shape[-1] if self.q.ndim == 4 else self.q.shape[-1] // self.heads
            t = (t if t.ndim == 4 else t.unflatten(-1, (-1, channels))).transpose(1, 2)
        return t if t.shape[1] == self.heads else t.repeat_interleave(self.heads // t.shape[1], dim=1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of either kind as something to add to scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, NEVER)
