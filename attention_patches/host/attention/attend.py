"""Attention with edits: the fused kernel of the host with an additive mask, or explicit float32 in query chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...core.seam import NEVER, AttentionEdit, AttentionSite, TextMix, everywhere
from .call import Attention, AttentionCall, additive
from .calls import Chunk, IncompatiblePatchError, Installed, ModelCall, Place, names_of, view_of
from .outside_blocks import outside_blocks
from .saveable import saveable

WORK_BYTES = 64 * 2**20  # what one chunk of queries may take for its masks or probabilities
SAMPLED = 256  # queries that are looked at to see whether another pack's attention heeds a mask


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
            with outside_blocks():
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
            lasting=outside_blocks,
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
    blocks = _blocks(call, place, cache)
    for block in blocks:
        _read(whole.rows(block.chunk.rows), block)
    if in_one_piece:
        out = _attend_in_one_piece(whole, replace(whole, host=everything.host), blocks)
        if not any(block.mixes for block in blocks):
            return out
        pieces = [_mixed(out[block.chunk.rows], everything.rows(block.chunk.rows), block) for block in blocks]
        return torch.cat(pieces)
    parts = [
        _mixed(_attend(whole.rows(rows), block), everything.rows(rows), block)
        for rows, block in _merge_unchanged(blocks)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def replaced_attention(
    cache: BiasCache, call: ModelCall, place: Place, patch: Attention, args: tuple[Any, ...]
) -> Tensor:
    """What another pack's function (q, k, v, options) in place of the attention returns, with every chunk's edits.

    Readers hear of its queries and keys. Where it returns the attention plus something of its own (as image-prompt
    adapters do, and patches that only look), edits change the attention's part: by the difference that they make to
    the host's. Raises IncompatiblePatchError where it does anything else with rows that an edit would change.
    """
    q, k, v, options = args
    everything = AttentionCall(attention_pytorch, q, k, v, options["n_heads"], None, (), {})
    own = _own(everything, call, place)
    blocks = _blocks(call, place, cache)
    for block in blocks:
        _read(own.rows(block.chunk.rows), block)
    if not any(block.changes for block in blocks):
        return saveable(patch, q, own.k, own.v, options)
    found, key = call.others.found, ("adds", place.layer, place.text is None, call.progress)  # it may begin later
    if key not in found:
        found[key] = _adds_to_the_attention(patch, own, options)
    if not found[key]:
        slot = "attn1" if place.text is None else "attn2"
        raise IncompatiblePatchError(
            f"Another patch ({names_of([patch])}) replaces the {'self' if slot == 'attn1' else 'cross'}-attention of "
            f"{place.layer} by something else than that attention plus an addition, so Boxwright's edit would be lost "
            f"there. Remove that patch (an {slot} replace) from this model, or place regions with Region Conditioning."
        )
    out, pieces = saveable(patch, q, own.k, own.v, options), []
    for block in blocks:
        piece, rows = out[block.chunk.rows], own.rows(block.chunk.rows)
        if block.changes:
            edited = _mixed(_attend(rows, block), everything.rows(block.chunk.rows), block)
            piece = piece + (edited - rows.fused())
        pieces.append(piece)
    return torch.cat(pieces)


@torch.no_grad()
def _adds_to_the_attention(patch: Attention, own: AttentionCall, options: dict[str, Any]) -> bool:
    """Whether the function's result is the attention plus something that does not depend on the values."""
    alone = patch(own.q, own.k, torch.zeros_like(own.v), options)
    out, plain = patch(own.q, own.k, own.v, options), own.fused().float()
    if out.shape != plain.shape or alone.shape != plain.shape:
        return False
    # Rounding in 16 bits, and kernels that round more, stay far below this; another attention does not.
    return float((out.float() - alone.float() - plain).norm()) <= 0.05 * float(plain.norm())


def _blocks(call: ModelCall, place: Place, cache: BiasCache) -> list[_Block]:
    return [_block(call, chunk, place, cache) for chunk in place.chunks or call.chunks]


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
            outputs.append(queries.exact(_bias(queries, block, part)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=rows.out_axis)


def _attend_in_one_piece(whole: AttentionCall, plain: AttentionCall, blocks: list[_Block]) -> Tensor:
    """All rows by another pack's override, with one mask; what it leaves unedited is done again by `plain`."""
    queries, keys = whole.q.shape[whole.token_axis], whole.k.shape[whole.token_axis]
    biased = [block for block in blocks if block.biased]
    mask = whole.q.new_zeros(whole.q.shape[0], 1, queries, keys) if biased else None
    for block in biased:
        part = block.place.queries
        mask[block.chunk.rows, :, part] = _bias(whole.rows(block.chunk.rows).queries(part), block, part)
    out = whole.fused(mask)
    for block in blocks:
        if not block.explicit and not (block.biased and _ignores_masks(whole, plain, block, mask, out)):
            continue
        rows = plain.rows(block.chunk.rows)
        out = out.clone()
        for part, is_image in _query_parts(rows, block, block.explicit):
            if is_image:
                queries = rows.queries(part)
                edited = (
                    _explicit(queries, block, part) if block.explicit else queries.exact(_bias(queries, block, part))
                )
                out[block.chunk.rows].narrow(whole.out_axis, part.start, part.stop - part.start).copy_(edited)
    return out


def _ignores_masks(whole: AttentionCall, plain: AttentionCall, block: _Block, mask: Tensor, out: Tensor) -> bool:
    """Whether another pack's override returned what it would have returned without the mask (SageAttention's do).

    Seen once in a step for each shape, by some queries of one row. An override may count its calls: only one that does
    more than attention is called again. Raises IncompatiblePatchError where such a one ignores masks: it cannot be
    left out.
    """
    known, key = block.call.others.found, ("ignores masks", block.call.progress, whole.q.shape[1:], whole.k.shape[1:])
    if key in known:
        return known[key]
    row, start = slice(block.chunk.rows.start, block.chunk.rows.start + 1), block.place.queries.start
    bias = mask[row, :, block.place.queries]
    spread = (bias.amax(dim=-1) - bias.amin(dim=-1))[0, 0].nonzero()[:, 0]  # the same for all keys changes nothing
    if len(spread) == 0:
        return False
    spread = spread[:: max(1, len(spread) // SAMPLED)]
    some = plain.rows(row).chosen(spread + start)
    without, with_it = some.exact().float(), some.exact(bias[:, :, spread]).float()
    theirs = out[row].index_select(whole.out_axis, spread + start).float()
    effect, own = float((with_it - without).norm()), float((theirs - without).norm())
    if effect <= 1e-3 * float(without.norm()):
        return False  # nothing to see here, and nothing to lose
    ignored = own < effect / 2
    if not ignored and float((theirs - with_it).norm()) >= effect / 2:
        again = whole.fused()[row].index_select(whole.out_axis, spread + start).float()
        ignored = float((theirs - again).norm()) < effect / 10
    if ignored:
        name = names_of([whole.host])
        if own > 0.25 * float(without.norm()):
            raise IncompatiblePatchError(
                f"Another patch ({name}, an attention override) ignores masks and changes the attention itself, so "
                "that either its effect or Boxwright's would be lost. Remove it from this model."
            )
        if not known.get(name):
            logging.warning("Boxwright: %s ignores masks; rows with regions take the host's attention.", name)
        known[name] = True
    known[key] = ignored
    return ignored


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
            edited = saveable(item.edit.fn, values[..., columns], site)
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
        with outside_blocks():  # readers keep what they read
            item.edit.fn(seen if item.graph else seen.detach(), block.site(item, block.tokens(part)))


def _width(keys: slice) -> int:
    return keys.stop - keys.start
