"""Attention with edits: the fused kernel of the host with an additive mask, or explicit float32 in query chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..types import NEVER, AttentionEdit, AttentionSite, TextMix, everywhere
from .attention_call import Attention, AttentionCall, additive
from .family import Chunk, Installed, ModelCall, Place, view_of

WORK_BYTES = 64 * 2**20  # what one chunk of queries may take for its masks or probabilities


class BiasCache:
    """Additive masks and weights of one run: the same for all layers of a grid, so worked out once for each in a step.

    On the CPU, and copied to the device where they differ from those of the step before.
    """

    def __init__(self) -> None:
        # key -> progress of the step, what was worked out, what was made of it on the device
        self._made: dict[tuple[Any, ...], tuple[float, Tensor, Any]] = {}
        self.memo: dict[Any, Any] = {}  # AttentionSite.memo of every site of the run

    def get(self, block: _Block, like: Tensor) -> Tensor:
        """The sum of the block's bias edits on text, [1, 1, h * w, text keys], in the dtype and device of `like`."""
        place = block.place
        columns = (place.text.start, place.text.stop, block.chunk.text_length)
        return self._once(
            block, block.text_bias, (*columns, like.dtype), like, partial(_text_bias, block), lambda bias: bias.to(like)
        )

    def shares(self, block: _Block, item: Installed, like: Tensor) -> _Shares:
        """Who reads which text of a mix at this site, on the device of `like`."""
        return self._once(
            block, [item], (), like, partial(_weights, block, item), lambda w: _shares(w, block.place, like.device)
        )

    def _once(
        self,
        block: _Block,
        items: list[Installed],
        more: tuple[Any, ...],
        like: Tensor,
        work_out: Callable[[], Tensor],
        make: Callable[[Tensor], Any],
    ) -> Any:
        edits = tuple(id(item.edit) for item in items)
        # Autograd may not save what was made in inference mode.
        mode = torch.is_inference_mode_enabled()
        key = (edits, block.place.grid, block.place.extent, block.chunk.offset, *more, like.device, mode)
        step, before, made = self._made.get(key, (None, None, None))
        if step != block.call.progress:
            found = work_out()
            if before is None or not torch.equal(found, before):
                made = make(found)
            self._made[key] = block.call.progress, found, made
        return made


@dataclass(frozen=True)
class _Block:
    """The edits of one chunk's rows that act in one attention call, in order."""

    call: ModelCall
    chunk: Chunk
    place: Place
    cache: BiasCache
    text_bias: list[Installed] = field(default_factory=list)
    image_bias: list[Installed] = field(default_factory=list)
    read: list[Installed] = field(default_factory=list)
    guides: list[Installed] = field(default_factory=list)  # readers for gradients: before any edit
    scores: list[Installed] = field(default_factory=list)
    probs: list[Installed] = field(default_factory=list)
    mixes: list[Installed] = field(default_factory=list)

    @property
    def biased(self) -> bool:
        return bool(self.text_bias or self.image_bias)

    @property
    def explicit(self) -> bool:
        return bool(self.scores or self.probs)

    @property
    def edited(self) -> bool:
        return self.biased or self.explicit

    @property
    def changes(self) -> bool:
        return self.edited or bool(self.mixes)

    def site(self, item: Installed, tokens: slice) -> AttentionSite:
        return AttentionSite(
            kind=item.edit.kind,
            layer=self.place.layer,
            grid=self.place.grid,
            view=view_of(self.call, self.chunk, self.place),
            level=self.place.level,
            levels=len(self.call.factors),
            queries=tokens,
            progress=self.call.progress,
            layout=item.layout,
            memo=self.cache.memo,
        )

    def tokens(self, part: slice) -> slice:
        """Which image tokens a part of the query axis holds."""
        return slice(part.start - self.place.queries.start, part.stop - self.place.queries.start)

    def columns(self, item: Installed) -> list[slice]:
        """Where an edit's keys lie on the key axis; the host repeats a short prompt beside a longer one."""
        if item.edit.kind == "image_image":
            return [self.place.image]
        count, text = len(item.layout.prompt.tokens), self.place.text
        return [slice(i, i + count) for i in range(text.start, text.stop, self.chunk.text_length)]


def _block(call: ModelCall, chunk: Chunk, place: Place, cache: BiasCache) -> _Block:
    block = _Block(call, chunk, place, cache)
    everything = slice(0, place.grid[0] * place.grid[1])
    for item in chunk.edits:
        edit = item.edit
        if not isinstance(edit, (AttentionEdit, TextMix)) or place.keys_of(edit.kind) is None:
            continue
        if isinstance(edit, TextMix):
            block.mixes.append(item)
            continue
        if edit.where is everywhere or edit.where(block.site(item, everything)):
            stage = edit.stage
            if stage == "bias":
                stage = "text_bias" if edit.kind == "image_text" else "image_bias"
            elif item.graph:
                stage = "guides"
            getattr(block, stage).append(item)
    return block


def edited_attention(
    host: Attention,
    call: ModelCall,
    place: Place,
    cache: BiasCache,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    in_one_piece: bool,
    plain: Attention | None = None,
) -> Tensor:
    """The attention call with every chunk's edits.

    Rows without edits go through `host` exactly as they came, and all rows where edits only read. With `in_one_piece`
    the host is called once with all rows and queries and one mask (zero where nothing is edited): another pack's
    override may count on their number, so that further texts go through `plain`, the host's own attention.
    """
    options = dict(kwargs)
    q, k, v, heads = args[:4]
    mask = args[4] if len(args) > 4 else options.pop("mask", None)
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)  # [rows, queries, keys]: the same for all heads
    whole = _own(AttentionCall(host, q, k, v, heads, mask, args[5:], options), call, place)
    everything = AttentionCall(plain or host, q, k, v, heads, mask, args[5:], options)
    blocks = [_block(call, chunk, place, cache) for chunk in call.chunks]
    for block in blocks:
        _read(whole.rows(block.chunk.rows), block)
    if in_one_piece:
        out = _attend_in_one_piece(whole, blocks)
        if not any(block.mixes for block in blocks):
            return out
        pieces = [_mixed(out[block.chunk.rows], everything.rows(block.chunk.rows), block) for block in blocks]
        return torch.cat(pieces)
    parts = [
        _mixed(_attend(whole.rows(rows), block), everything.rows(rows), block)
        for rows, block in _merge_unchanged(blocks)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def read_only(
    call: ModelCall, place: Place, cache: BiasCache, q: Tensor, k: Tensor, heads: int, options: dict[str, Any]
) -> bool:
    """Show readers an attention call that somebody else makes. False, with nothing done, if an edit would change it."""
    whole = _own(AttentionCall(None, q, k, k, heads, None, (), options), call, place)
    blocks = [_block(call, chunk, place, cache) for chunk in call.chunks]
    if any(block.changes for block in blocks):
        return False
    for block in blocks:
        _read(whole.rows(block.chunk.rows), block)
    return True


def _own(everything: AttentionCall, call: ModelCall, place: Place) -> AttentionCall:
    """The call without the keys of further texts."""
    if place.text is None or not call.further_length:
        return everything
    return everything.keys(slice(0, everything.k.shape[everything.token_axis] - call.further_length))


def _merge_unchanged(blocks: list[_Block]) -> list[tuple[slice, _Block]]:
    merged: list[tuple[slice, _Block]] = []
    for block in blocks:
        rows = block.chunk.rows
        if merged and not block.changes and not merged[-1][1].changes:
            rows = slice(merged.pop()[0].start, rows.stop)
        merged.append((rows, block))
    return merged


def _attend(rows: AttentionCall, block: _Block) -> Tensor:
    """The rows of one chunk, in as few pieces of the query axis as memory allows."""
    if not block.edited:
        return rows.fused()
    outputs = []
    for part, is_image in _query_parts(rows, block, block.explicit):
        queries = rows.queries(part)
        if not is_image:
            outputs.append(queries.fused())
        elif block.explicit:
            outputs.append(_explicit(queries, block, part))
        else:
            outputs.append(queries.fused(_bias(queries, block, part)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=rows.out_axis)


def _attend_in_one_piece(whole: AttentionCall, blocks: list[_Block]) -> Tensor:
    queries, keys = whole.q.shape[whole.token_axis], whole.k.shape[whole.token_axis]
    biased = [block for block in blocks if block.biased]
    mask = whole.q.new_zeros(whole.q.shape[0], 1, queries, keys) if biased else None
    for block in biased:
        part = block.place.queries
        mask[block.chunk.rows, :, part] = _bias(whole.rows(block.chunk.rows).queries(part), block, part)
    out = whole.fused(mask)
    for block in blocks:
        if not block.explicit:
            continue
        rows = whole.rows(block.chunk.rows)
        out = out.clone()
        for part, is_image in _query_parts(rows, block, True):
            if is_image:
                target = out[block.chunk.rows].narrow(whole.out_axis, part.start, part.stop - part.start)
                target.copy_(_explicit(rows.queries(part), block, part))
    return out


@dataclass(frozen=True)
class _Shares:
    """Who reads which text of a mix at one site; places are on the query axis."""

    own: Tensor  # float32 [queries, 1]: what is left of the attention to the row's own text
    readers: tuple[tuple[Tensor | None, Tensor], ...]  # for each text: places (None = everywhere), their weights [n, 1]


def _weights(block: _Block, item: Installed) -> Tensor:
    return item.edit.weigh(block.site(item, slice(0, block.place.grid[0] * block.place.grid[1]))).float()


def _shares(weights: Tensor, place: Place, device: torch.device) -> _Shares:
    readers = []
    for weight in weights:
        index = weight.nonzero()[:, 0]
        everywhere = len(index) == len(weight) and place.queries.start == 0
        where = None if everywhere else (index + place.queries.start).to(device)
        readers.append((where, weight[index, None].to(device)))
    own = (1.0 - weights.sum(dim=0)).clamp_min(0.0)[:, None]
    return _Shares(own.to(device), tuple(readers))


def _mixed(out: Tensor, rows: AttentionCall, block: _Block) -> Tensor:
    """The attention of some rows to their own text, with what they read in the further texts of the block's mixes.

    Queries that read nothing of a text are left out there, so that the cost goes with the area of the regions.
    """
    axis, start = rows.out_axis, block.place.text.stop if block.mixes else 0
    for item in block.mixes:
        shares = block.cache.shares(block, item, rows.q)
        out = out * shares.own.to(out.dtype)
        for text, (where, weight) in zip(item.edit.texts, shares.readers, strict=True):
            keys, start = slice(start, start + text.shape[1]), start + text.shape[1]
            if len(weight) == 0:
                continue
            part = (rows if where is None else rows.chosen(where)).keys(keys).fused() * weight.to(out.dtype)
            out = out.add_(part) if where is None else out.index_add_(axis, where, part)
    return out


def _read(rows: AttentionCall, block: _Block) -> None:
    """Show readers what the attention is going to be, and guides what it would be without edits."""
    shown = [(block.guides, False)]
    if not block.explicit:  # else on the way, from the same probabilities
        shown.append((block.read, True))
    for readers, edited in shown:
        for part, is_image in _query_parts(rows, block, True) if readers else ():
            if is_image:
                _show(readers, _probabilities(rows.queries(part), block, part, edited), block, part)


def _query_parts(rows: AttentionCall, block: _Block, explicit: bool) -> list[tuple[slice, bool]]:
    """The query axis cut into (slice, holds image tokens); image tokens in pieces that bound the memory they take."""
    count, keys = rows.q.shape[rows.token_axis], rows.k.shape[rows.token_axis]
    if explicit:
        per_query = rows.q.shape[0] * rows.heads * keys * 4
    elif not block.image_bias and block.place.text == slice(0, keys):
        per_query = 0  # the mask is the cached bias itself
    else:
        per_query = keys * 4
    start, stop = block.place.queries.start, block.place.queries.stop
    step = max(1, WORK_BYTES // per_query) if per_query else stop - start
    parts = [(slice(i, min(i + step, stop)), True) for i in range(start, stop, step)]
    before = [(slice(0, start), False)] if start else []
    after = [(slice(stop, count), False)] if stop < count else []
    return [*before, *parts, *after]


def _bias(queries: AttentionCall, block: _Block, part: slice) -> Tensor:
    """The sum of all bias edits for some image queries, [1, 1, n, keys of the call]."""
    keys, tokens = queries.k.shape[queries.token_axis], block.tokens(part)
    text = block.cache.get(block, like=queries.q)[:, :, tokens] if block.text_bias else None
    if text is not None and block.place.text == slice(0, keys):
        return text
    total = queries.q.new_zeros(1, 1, part.stop - part.start, keys)
    if text is not None:
        total[..., block.place.text] = text
    for item in block.image_bias:
        zeros = torch.zeros(1, 1, part.stop - part.start, _width(block.place.image), device=queries.q.device)
        total[..., block.place.image] += item.edit.fn(zeros, block.site(item, tokens)).to(total)
    return total.clamp_min(NEVER)


def _text_bias(block: _Block) -> Tensor:
    place, count = block.place, block.place.grid[0] * block.place.grid[1]
    total = torch.zeros(1, 1, count, _width(place.text))
    for item in block.text_bias:
        site = block.site(item, slice(0, count))
        values = item.edit.fn(torch.zeros(1, 1, count, len(item.layout.prompt.tokens)), site)
        for columns in block.columns(item):
            total[..., columns.start - place.text.start : columns.stop - place.text.start] += values
    return total.clamp_min(NEVER)


def _explicit(queries: AttentionCall, block: _Block, part: slice) -> Tensor:
    """Attention of some image queries of one chunk with its bias, score and probability edits, softmax in float32."""
    probs = _probabilities(queries, block, part)
    _show(block.read, probs, block, part)
    probs = _edit(probs, block.probs, block, part)
    v = queries.by_head(queries.v)
    out = probs.to(v.dtype) @ v
    return out if queries.options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)


def _probabilities(queries: AttentionCall, block: _Block, part: slice, edited: bool = True) -> Tensor:
    """What some image queries attend to, `edited` by biases and scores or not: float32 [B, H, n, keys of the call]."""
    q, k = queries.by_head(queries.q), queries.by_head(queries.k)
    scores = (q.float() @ k.float().transpose(-1, -2)) * queries.options.get("scale", q.shape[-1] ** -0.5)
    if edited:  # before any mask: what is hidden has no score of its own
        scores = _edit(scores, block.scores, block, part)
    if queries.mask is not None:
        scores = scores + additive(queries.mask, torch.float32)
    if edited and block.biased:
        scores = scores + _bias(queries, block, part).float()
    return scores.softmax(dim=-1)


def _edit(values: Tensor, items: list[Installed], block: _Block, part: slice) -> Tensor:
    """Run the edits of one stage over their columns of `values` [B, H, n, keys]; in place but for autograd."""
    for item in items:
        site = block.site(item, block.tokens(part))
        for columns in block.columns(item):
            edited = item.edit.fn(values[..., columns], site)
            if values.requires_grad:  # the edit's own backward needs what it was given
                values = torch.cat([values[..., : columns.start], edited, values[..., columns.stop :]], dim=-1)
            else:
                values[..., columns] = edited
    return values


def _show(readers: list[Installed], probs: Tensor, block: _Block, part: slice) -> None:
    """Give readers their columns; repeats of a short prompt are summed."""
    for item in readers:
        first, *repeats = block.columns(item)
        seen = probs[..., first]
        for columns in repeats:
            seen = seen + probs[..., columns]
        item.edit.fn(seen if item.graph else seen.detach(), block.site(item, block.tokens(part)))


def _width(keys: slice) -> int:
    return keys.stop - keys.start
