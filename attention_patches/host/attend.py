"""Attention with edits: the fused kernel of the host with an additive mask, or explicit float32 in query chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import NEVER, AttentionEdit, AttentionSite
from .family import Chunk, Installed, ModelCall, Place, view_of

WORK_BYTES = 64 * 2**20  # what one chunk of queries may take for its masks or probabilities

Attention = Callable[..., Tensor]


class BiasCache:
    """Additive masks of the current step: the same for all layers of a grid, so made once for each."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self.memo: dict[Any, Tensor] = {}  # AttentionSite.memo of every site of the run

    def get(self, call: ModelCall, chunk: Chunk, place: Place, like: Tensor) -> Tensor:
        """The sum of the chunk's bias edits, [1, 1, h * w, keys of the text], in the dtype and device of `like`."""
        if call.progress != self._progress:
            self._progress, self._masks = call.progress, {}
        edits = tuple(id(item.edit) for item in chunk.edits)
        columns = (place.keys.start, place.keys.stop, chunk.text_length)
        key = (edits, place.grid, place.extent, columns, chunk.offset, like.dtype, like.device)
        if key not in self._masks:
            self._masks[key] = _bias(call, chunk, place, self).to(device=like.device, dtype=like.dtype)
        return self._masks[key]


@dataclass(frozen=True)
class _Call:
    """The arguments of one attention call, for any rows and queries of it."""

    host: Attention
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    rest: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def token_axis(self) -> int:
        return 2 if self.options.get("skip_reshape", False) else 1

    @property
    def out_axis(self) -> int:
        return 2 if self.options.get("skip_output_reshape", False) else 1

    def rows(self, rows: slice) -> _Call:
        mask = self.mask
        if mask is not None and mask.ndim > 2 and mask.shape[0] == self.q.shape[0]:
            mask = mask[rows]
        return _Call(
            self.host, self.q[rows], self.k[rows], self.v[rows], self.heads, mask, self.rest, self.options
        )

    def queries(self, part: slice) -> _Call:
        axis, count = self.token_axis, self.q.shape[self.token_axis]
        if part == slice(0, count):
            return self
        mask = self.mask
        if mask is not None and mask.shape[-2] == count:
            mask = mask[..., part, :]
        q = self.q.narrow(axis, part.start, part.stop - part.start)
        return _Call(self.host, q, self.k, self.v, self.heads, mask, self.rest, self.options)

    def fused(self, bias: Tensor | None = None) -> Tensor:
        mask = self.mask
        if bias is not None:
            mask = bias if mask is None else _additive(mask, bias.dtype) + bias
        if mask is None and not self.rest:
            return self.host(self.q, self.k, self.v, self.heads, **self.options)
        return self.host(self.q, self.k, self.v, self.heads, mask, *self.rest, **self.options)

    def by_head(self, t: Tensor) -> Tensor:
        """[B, heads, tokens, channels] of q, k or v; grouped keys and values repeated for every query head."""
        if not self.options.get("skip_reshape", False):
            t = t.unflatten(-1, (-1, self.q.shape[-1] // self.heads)).transpose(1, 2)
        return t if t.shape[1] == self.heads else t.repeat_interleave(self.heads // t.shape[1], dim=1)


def edited_attention(
    host: Attention,
    call: ModelCall,
    place: Place,
    cache: BiasCache,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    in_one_piece: bool,
) -> Tensor:
    """The attention call with every chunk's edits.

    Rows without edits go through `host` exactly as they came. With `in_one_piece` the host is called once with all rows
    and queries and one mask (zero where nothing is edited): another pack's override may count on their number.
    """
    options = dict(kwargs)
    q, k, v, heads = args[:4]
    mask = args[4] if len(args) > 4 else options.pop("mask", None)
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)  # [rows, queries, keys]: the same for all heads
    whole = _Call(host, q, k, v, heads, mask, args[5:], options)
    if in_one_piece:
        return _attend_in_one_piece(whole, call, place, cache)
    parts = _merge_untouched(call.chunks)
    if len(parts) == 1:
        return _attend(whole, call, parts[0], place, cache)
    return torch.cat([_attend(whole.rows(chunk.rows), call, chunk, place, cache) for chunk in parts])


def _merge_untouched(chunks: tuple[Chunk, ...]) -> list[Chunk]:
    merged: list[Chunk] = []
    for chunk in chunks:
        if merged and not chunk.edits and not merged[-1].edits:
            last = merged.pop()
            chunk = Chunk(slice(last.rows.start, chunk.rows.stop), (), last.text_length, last.offset)
        merged.append(chunk)
    return merged


def _at_stage(chunk: Chunk, *stages: str) -> list[Installed]:
    return [item for item in chunk.edits if isinstance(item.edit, AttentionEdit) and item.edit.stage in stages]


def _attend(rows: _Call, call: ModelCall, chunk: Chunk, place: Place, cache: BiasCache) -> Tensor:
    """The rows of one chunk, in as few pieces of the query axis as memory allows."""
    explicit = bool(_at_stage(chunk, "scores", "probs"))
    bias = cache.get(call, chunk, place, like=rows.q) if _at_stage(chunk, "bias") else None
    if bias is None and not explicit:
        return rows.fused()
    outputs = []
    for part, is_image in _query_parts(rows, place, explicit):
        queries = rows.queries(part)
        if not is_image:
            outputs.append(queries.fused())
        elif explicit:
            outputs.append(_explicit(queries, call, chunk, place, part, bias, cache))
        else:
            outputs.append(queries.fused(_bias_of(bias, place, part, rows)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=rows.out_axis)


def _attend_in_one_piece(whole: _Call, call: ModelCall, place: Place, cache: BiasCache) -> Tensor:
    queries, keys = whole.q.shape[whole.token_axis], whole.k.shape[whole.token_axis]
    biased = [chunk for chunk in call.chunks if _at_stage(chunk, "bias")]
    mask = whole.q.new_zeros(whole.q.shape[0], 1, queries, keys) if biased else None
    for chunk in biased:
        mask[chunk.rows, :, place.queries, place.keys] = cache.get(call, chunk, place, like=whole.q)
    out = whole.fused(mask)
    for chunk in call.chunks:
        if not _at_stage(chunk, "scores", "probs"):
            continue
        rows = whole.rows(chunk.rows)
        bias = cache.get(call, chunk, place, like=rows.q) if chunk in biased else None
        out = out.clone()
        for part, is_image in _query_parts(rows, place, True):
            if is_image:
                target = out[chunk.rows].narrow(whole.out_axis, part.start, part.stop - part.start)
                target.copy_(_explicit(rows.queries(part), call, chunk, place, part, bias, cache))
    return out


def _query_parts(rows: _Call, place: Place, explicit: bool) -> list[tuple[slice, bool]]:
    """The query axis cut into (slice, holds image tokens); image tokens in pieces that bound the memory they take."""
    count, keys = rows.q.shape[rows.token_axis], rows.k.shape[rows.token_axis]
    if explicit:
        per_query = rows.q.shape[0] * rows.heads * keys * 4
    elif place.keys.stop - place.keys.start == keys:
        per_query = 0  # the mask is the cached bias itself
    else:
        per_query = keys * rows.q.element_size()
    start, stop = place.queries.start, place.queries.stop
    step = max(1, WORK_BYTES // per_query) if per_query else stop - start
    parts = [(slice(i, min(i + step, stop)), True) for i in range(start, stop, step)]
    before = [(slice(0, start), False)] if start else []
    after = [(slice(stop, count), False)] if stop < count else []
    return [*before, *parts, *after]


def _bias_of(bias: Tensor, place: Place, part: slice, rows: _Call) -> Tensor:
    """The rows of a chunk's bias [1, 1, h * w, T] for some queries, over all keys of the call."""
    bias = bias[:, :, part.start - place.queries.start : part.stop - place.queries.start]
    keys = rows.k.shape[rows.token_axis]
    if place.keys == slice(0, keys):
        return bias
    full = bias.new_zeros(*bias.shape[:-1], keys)
    full[..., place.keys] = bias
    return full


def _explicit(
    queries: _Call, call: ModelCall, chunk: Chunk, place: Place, part: slice, bias: Tensor | None, cache: BiasCache
) -> Tensor:
    """Attention of some image queries of one chunk with its bias, score and probability edits, softmax in float32."""
    tokens = slice(part.start - place.queries.start, part.stop - place.queries.start)
    q, k, v = (queries.by_head(t) for t in (queries.q, queries.k, queries.v))
    scores = (q.float() @ k.float().transpose(-1, -2)) * queries.options.get("scale", q.shape[-1] ** -0.5)
    if queries.mask is not None:
        scores = scores + _additive(queries.mask, torch.float32)
    if bias is not None:
        scores[..., place.keys] += bias[:, :, tokens].float()
    scores = _edit_text(scores, "scores", call, chunk, place, tokens, cache)
    probs = _edit_text(scores.softmax(dim=-1), "probs", call, chunk, place, tokens, cache)
    out = probs.to(v.dtype) @ v
    return out if queries.options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)


def _edit_text(
    values: Tensor, stage: str, call: ModelCall, chunk: Chunk, place: Place, tokens: slice, cache: BiasCache
) -> Tensor:
    """Run the edits of one stage over the text columns of `values` [B, H, n, keys], in place."""
    for item in _at_stage(chunk, stage):
        site = _site(call, chunk, place, tokens, item, cache)
        for columns in _columns(chunk, place, item):
            values[..., columns] = item.edit.fn(values[..., columns], site)
    return values


def _bias(call: ModelCall, chunk: Chunk, place: Place, cache: BiasCache) -> Tensor:
    count = place.grid[0] * place.grid[1]
    total = torch.zeros(1, 1, count, place.keys.stop - place.keys.start)
    for item in _at_stage(chunk, "bias"):
        site = _site(call, chunk, place, slice(0, count), item, cache)
        block = item.edit.fn(torch.zeros(1, 1, count, len(item.layout.prompt.tokens)), site)
        for columns in _columns(chunk, place, item):
            total[..., columns.start - place.keys.start : columns.stop - place.keys.start] += block
    return total.clamp_min(NEVER)


def _columns(chunk: Chunk, place: Place, item: Installed) -> list[slice]:
    """Where the layout's columns lie on the key axis; the host repeats a short prompt beside a longer one."""
    count = len(item.layout.prompt.tokens)
    return [slice(i, i + count) for i in range(place.keys.start, place.keys.stop, chunk.text_length)]


def _site(
    call: ModelCall, chunk: Chunk, place: Place, tokens: slice, item: Installed, cache: BiasCache
) -> AttentionSite:
    return AttentionSite(
        layer=place.layer,
        grid=place.grid,
        view=view_of(call, chunk, place),
        level=place.level,
        levels=len(call.factors),
        queries=tokens,
        progress=call.progress,
        layout=item.layout,
        memo=cache.memo,
    )


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, NEVER)
