"""Attention with edits: the fused kernel of the host with an additive mask, or explicit float32 in query chunks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ...core.seam import NEVER
from .block import Block
from .call import AttentionCall, additive
from .calls import Installed
from .joint_texts import QueryGroup
from .outside_blocks import outside_blocks
from .saveable import saveable

WORK_BYTES = 64 * 2**20  # what one chunk of queries may take for its masks or probabilities
GROUPED_FROM = 16 * 2**20  # bytes of a mask of tokens by tokens; smaller ones cost less than queries in groups


def attend(rows: AttentionCall, block: Block) -> Tensor:
    """The rows of one chunk, in as few pieces of the query axis as memory allows."""
    if block.coupled or (block.differs_in_text_bias and _mask_bytes(rows) >= GROUPED_FROM):
        return _attend_in_groups(rows, block)
    if not block.edited:
        return rows.fused()
    outputs = []
    for part, is_image in query_parts(rows, block, block.explicit):
        queries = rows.queries(part)
        if not is_image:
            outputs.append(queries.fused())
        elif block.explicit:
            outputs.append(explicit_attention(queries, block, part))
        else:
            outputs.append(queries.exact(block.bias(queries, part)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=rows.out_axis)


def _mask_bytes(rows: AttentionCall) -> int:
    return rows.shape[1] * rows.shape[2] * rows.q.element_size()


def _attend_in_groups(rows: AttentionCall, block: Block) -> Tensor:
    """A joint attention in groups of queries that read alike."""
    grouped = block.query_groups(rows) if block.coupled else block.query_groups_by_bias(rows)
    outputs = [piece for group in grouped.groups for piece in _attend_group(rows, group)]
    if not grouped.image_apart:
        for part, is_image in query_parts(rows, block, block.explicit):
            if is_image:
                queries = rows.queries(part)
                explicit = explicit_attention(queries, block, part) if block.explicit else None
                outputs.append(queries.exact(block.bias(queries, part)) if explicit is None else explicit)
    return torch.cat(outputs, dim=rows.out_axis).index_select(rows.out_axis, grouped.order)


def _attend_group(rows: AttentionCall, group: QueryGroup) -> Iterator[Tensor]:
    count, keys = len(group.queries), rows.k.shape[rows.token_axis]
    chosen = rows if group.keys is None else rows.keys_in(group.keys)
    step = count if group.bias is None or len(group.bias) == 1 else max(1, WORK_BYTES // (keys * 4))
    for first in range(0, count, step):
        some = slice(first, min(first + step, count))
        queries = chosen.queries(group.run) if group.run and step == count else chosen.chosen(group.queries[some])
        if group.bias is None:
            yield queries.fused()
            continue
        if len(group.bias) == 1:
            bias = group.bias.expand(some.stop - some.start, -1)
        else:  # of the texts' columns
            bias = pad(group.bias[some], (group.start, keys - group.start - group.bias.shape[1]))
        yield queries.exact(bias[None, None])


def mixed(out: Tensor, rows: AttentionCall, block: Block) -> Tensor:
    """The attention of some rows to their own text, with what they read in the further texts of the block's mixes.

    Queries that read nothing of a text are left out there, so that the cost goes with the area of the regions.
    """
    if block.coupled:  # in that attention already
        return out
    axis, start = rows.out_axis, block.place.text.stop if block.mixes else 0
    for item in block.mixes:
        shares = block.shares(item, rows)
        out = out * shares.own.to(out.dtype)
        for text, (where, weight) in zip(item.edit.texts, shares.readers, strict=True):
            keys, start = slice(start, start + text.shape[1]), start + text.shape[1]
            if len(weight) == 0:
                continue
            part = (rows if where is None else rows.chosen(where)).keys(keys).fused() * weight.to(out.dtype)
            out = out.add_(part) if where is None else out.index_add_(axis, where, part)
    return out


def read(rows: AttentionCall, block: Block) -> None:
    """Show readers what the attention is going to be, and guides what it would be without edits."""
    shown = [(block.guides, False)]
    if not block.explicit:  # else on the way, from the same probabilities
        shown.append((block.read, True))
    for readers, edited in shown:
        parts = [part for part, is_image in query_parts(rows, block, True) if is_image] if readers else []
        for part in parts:
            if not edited and len(parts) > 1:
                _show_means(rows.queries(part), block, part)
            else:
                _show(readers, _probabilities(rows.queries(part), block, part, edited), block, part)


def query_parts(rows: AttentionCall, block: Block, explicit: bool) -> list[tuple[slice, bool]]:
    """The query axis cut into (slice, holds image tokens); pieces of one frame, that bound the memory they take."""
    count, keys = rows.q.shape[rows.token_axis], rows.k.shape[rows.token_axis]
    if explicit:
        per_query = rows.q.shape[0] * rows.heads * keys * 4
    elif not block.image_bias and block.place.text == slice(0, keys):
        per_query = 0  # the mask is the cached bias itself
    else:
        per_query = keys * 4
    start, stop = block.place.queries.start, block.place.queries.stop
    step = max(1, WORK_BYTES // per_query) if per_query else block.place.tokens
    parts = [
        (slice(i, min(i + step, frame.stop)), True)
        for frame in block.frames()
        for i in range(frame.start, frame.stop, step)
    ]
    before = [(slice(0, start), False)] if start else []
    after = [(slice(stop, count), False)] if stop < count else []
    return [*before, *parts, *after]


def explicit_attention(queries: AttentionCall, block: Block, part: slice) -> Tensor:
    """Attention of some image queries of one chunk with its bias, score and probability edits, softmax in float32."""
    probs = _probabilities(queries, block, part)
    _show(block.read, probs, block, part)
    probs = _edit(probs, block.probs, block, part)
    v = queries.by_head(queries.v)
    out = probs.to(v.dtype) @ v
    return out if queries.options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)


def _probabilities(queries: AttentionCall, block: Block, part: slice, edited: bool = True) -> Tensor:
    """What some image queries attend to, `edited` by biases and scores or not: float32 [B, H, n, keys of the call]."""
    q, k = queries.by_head(queries.q), queries.by_head(queries.k)
    scores = (q.float() @ k.float().transpose(-1, -2)) * queries.options.get("scale", q.shape[-1] ** -0.5)
    if edited:  # before any mask: what is hidden has no score of its own
        scores = _edit(scores, block.scores, block, part)
    if queries.mask is not None:
        scores = scores + additive(queries.mask, torch.float32)
    if edited and block.biased:
        scores = scores + block.bias(queries, part).float()
    elif block.coupled:  # as if the further texts were not there
        hidden = scores.new_zeros(scores.shape[-1])
        hidden[block.place.further] = NEVER
        scores = scores + hidden
    return scores.softmax(dim=-1)


def _edit(values: Tensor, items: list[Installed], block: Block, part: slice) -> Tensor:
    """Run the edits of one stage over their columns of `values` [B, H, n, keys]; in place but for autograd."""
    for item in items:
        site = block.site(item, block.tokens(part), block.frame(part))
        for columns in block.columns(item):
            edited = saveable(item.edit.fn, values[..., columns], site)
            if values.requires_grad:  # the edit's own backward needs what it was given
                values = torch.cat([values[..., : columns.start], edited, values[..., columns.stop :]], dim=-1)
            else:
                values[..., columns] = edited
    return values


def _show(readers: list[Installed], probs: Tensor, block: Block, part: slice) -> None:
    for item in readers:
        seen = _seen(item, probs, block)
        with outside_blocks():  # readers keep what they read
            item.edit.fn(seen if item.graph else seen.detach(), block.site(item, block.tokens(part), block.frame(part)))


def _show_means(queries: AttentionCall, block: Block, part: slice) -> None:
    """Give guides the mean over the heads, [B, 1, n, T].

    The probabilities are forgotten, and worked out once more in the backward pass: in a joint attention over a whole
    picture those of one layer take gigabytes.
    """

    def means() -> tuple[Tensor, ...]:
        probs = _probabilities(queries, block, part, edited=False)
        return tuple(_seen(item, probs, block).mean(dim=1, keepdim=True) for item in block.guides)

    with outside_blocks():  # guides keep them
        shown = checkpoint(means, use_reentrant=False, preserve_rng_state=False)
        for item, mean in zip(block.guides, shown, strict=True):
            item.edit.fn(mean, block.site(item, block.tokens(part), block.frame(part)))


def _seen(item: Installed, probs: Tensor, block: Block) -> Tensor:
    """A reader's columns; copies of a short prompt are summed."""
    first, *repeats = block.columns(item)
    seen = probs[..., first]
    for columns in repeats:
        seen = seen + probs[..., columns]
    return seen
