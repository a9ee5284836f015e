"""Attention with edits where another pack has a hand in it: its override in line, or its function in place of it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .attend import attend, explicit_attention, mixed, query_parts, read
from .block import Block, blocks_of, of_own_text
from .cache import BiasCache
from .call import Attention, AttentionCall
from .calls import AS_BEFORE, OTHERWISE, SETTLED, IncompatiblePatchError, ModelCall, Place, names_of
from .outside_blocks import outside_blocks
from .saveable import saveable

SMALL = 1e-3  # share of an attention that a mask changes: less is nothing to see, and nothing to lose
CHANGED = 0.25  # share of an attention by which an override's may differ and still be one
SAMPLED = 256  # queries that are looked at to see whether another pack's attention heeds a mask


def replaced_attention(
    cache: BiasCache,
    call: ModelCall,
    place: Place,
    everything: AttentionCall,
    patch: Attention,
    options: dict[str, Any],
) -> Tensor:
    """What another pack's function (q, k, v, options) in place of an attention returns, with every chunk's edits.

    Readers hear of its queries and keys. Where it returns the attention plus something of its own (as image-prompt
    adapters do, and patches that only look), edits change the attention's part: by the difference that they make to
    the host's. Raises IncompatiblePatchError where it does anything else with rows that an edit would change.
    """
    own = of_own_text(everything, call, place)
    blocks = blocks_of(call, place, cache)
    for block in blocks:
        read(own.rows(block.chunk.rows), block)
    if not any(block.changes for block in blocks):
        return saveable(patch, own.q, own.k, own.v, options)
    if not _only_adds(patch, own, options, call, place):
        slot = "attn1" if place.text is None else "attn2"
        raise IncompatiblePatchError(
            f"Another patch ({names_of([patch])}) replaces the {'self' if slot == 'attn1' else 'cross'}-attention of "
            f"{place.layer} by something else than that attention plus an addition, so Boxwright's edit would be lost "
            f"there. Remove that patch (an {slot} replace) from this model, or place regions with Region Conditioning."
        )
    out, pieces = saveable(patch, own.q, own.k, own.v, options), []
    for block in blocks:
        piece, rows = out[block.chunk.rows], own.rows(block.chunk.rows)
        if block.changes:
            edited = mixed(attend(rows, block), everything.rows(block.chunk.rows), block)
            piece = piece + (edited - rows.fused())
        pieces.append(piece)
    return torch.cat(pieces)


def _only_adds(patch: Attention, own: AttentionCall, options: dict[str, Any], call: ModelCall, place: Place) -> bool:
    """Whether the function is one that adds to the attention; it is called twice to find out.

    One that stays for the run is asked until it was seen to add something: before, it may not have begun yet. One that
    is put there for a call is asked in every step. The first answer counts for those after it, which are compared with
    it behind the model call (`OtherPacks.are_otherwise`).
    """
    others, lasting = call.others, id(patch) in call.others.lasting
    key = ("adds", place.layer, place.text is None, id(patch) if lasting else None)
    asked = (*key, call.progress)
    if key in others.found:
        return True
    if asked not in others.found:
        adds, works = _adds_to_the_attention(patch, own, options)
        if key in others.watched:
            others.found[asked] = True
            with outside_blocks():
                settled = works & lasting
                call.comparisons.append((key, torch.where(adds, settled * SETTLED, OTHERWISE)))
            return True
        others.found[asked], works_now = torch.stack([adds, works]).tolist()
        if others.found[asked] and works_now and lasting:
            others.found[key] = True
        elif others.found[asked]:
            others.watched[key] = True
    return others.found[asked]


@torch.no_grad()
def _adds_to_the_attention(patch: Attention, own: AttentionCall, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Whether the function's result is the attention plus what does not depend on the values; and is not nothing.

    Both bool [], on the device.
    """
    alone = patch(own.q, own.k, torch.zeros_like(own.v), options)
    out, plain = patch(own.q, own.k, own.v, options), own.fused().float()
    if out.shape != plain.shape or alone.shape != plain.shape:
        no = torch.zeros((), dtype=torch.bool, device=plain.device)
        return no, ~no
    # Rounding in 16 bits, and kernels that round more, stay far below this; another attention does not.
    adds = (out.float() - alone.float() - plain).norm() <= 0.05 * plain.norm()
    return adds, alone.any()


def attend_in_one_piece(whole: AttentionCall, plain: AttentionCall, blocks: list[Block]) -> Tensor:
    """All rows by another pack's override, with one mask; what it leaves unedited is done again by `plain`."""
    queries, keys = whole.q.shape[whole.token_axis], whole.k.shape[whole.token_axis]
    biased = [block for block in blocks if block.biased]
    mask = whole.q.new_zeros(whole.q.shape[0], 1, queries, keys) if biased else None
    for block in biased:
        for part in block.frames():
            mask[block.chunk.rows, :, part] = block.bias(whole.rows(block.chunk.rows).queries(part), part)
        for group in block.query_groups(whole, image=False).groups if block.coupled else ():
            mask[block.chunk.rows, :, group.queries] = group.over_all(keys)
    out = whole.fused(mask)
    for block in blocks:
        ignored = block.biased and (block.coupled or not block.explicit)
        ignored = ignored and _ignores_masks(whole, plain, block, mask, out)
        if not block.explicit and not ignored:
            continue
        rows = plain.rows(block.chunk.rows)
        out = out.clone()
        if block.coupled and ignored:  # the texts, too, have read what they should not
            out[block.chunk.rows] = attend(rows, block)
            continue
        for part, is_image in query_parts(rows, block, block.explicit):
            if is_image:
                queries = rows.queries(part)
                if block.explicit:
                    edited = explicit_attention(queries, block, part)
                else:
                    edited = queries.exact(block.bias(queries, part))
                out[block.chunk.rows].narrow(whole.out_axis, part.start, part.stop - part.start).copy_(edited)
    return out


def _ignores_masks(whole: AttentionCall, plain: AttentionCall, block: Block, mask: Tensor, out: Tensor) -> bool:
    """Whether another pack's override returned what it would have returned without the mask (SageAttention's do).

    Seen once in a run for each layer and shape, by some queries of one row; what it does there in further steps is
    compared with that behind the model call (`OtherPacks.are_otherwise`). An override may count its calls: only one
    that does more than attention is called again, and that in every step. Raises IncompatiblePatchError where such a
    one ignores masks: it cannot be left out.
    """
    known, watched = block.call.others.found, block.call.others.watched
    key = ("ignores masks", block.place.layer, whole.q.shape[1:], whole.k.shape[1:])
    asked = (*key, block.call.progress)
    if asked in known:
        return known[asked]
    row, start = slice(block.chunk.rows.start, block.chunk.rows.start + 1), block.place.queries.start
    if key in watched:
        ignored, some = watched[key]
        block.call.comparisons.append((key, _compared(_effects(whole, plain, block, mask, out, some), ignored)))
        return ignored
    bias = mask[row, :, block.place.queries]
    with outside_blocks():
        some = (bias.amax(dim=-1) - bias.amin(dim=-1))[0, 0].nonzero()[:, 0]  # the same for all keys changes nothing
        some = some[:: max(1, len(some) // SAMPLED)].clone()
    if len(some) == 0:
        return False
    size, effect, own, other = _effects(whole, plain, block, mask, out, some).tolist()
    if effect <= SMALL * size:
        return False  # nothing to see here, and nothing to lose
    ignored, plainly = own < effect / 2, True
    if not ignored and other >= effect / 2:
        plainly = False
        again = whole.fused()[row].index_select(whole.out_axis, some + start).float()
        theirs = out[row].index_select(whole.out_axis, some + start).float()
        ignored = float((theirs - again).norm()) < effect / 10
    if ignored:
        name = names_of([whole.host])
        if own > CHANGED * size:
            raise IncompatiblePatchError(
                f"Another patch ({name}, an attention override) ignores masks and changes the attention itself, so "
                "that either its effect or Boxwright's would be lost. Remove it from this model."
            )
        if not known.get(name):
            logging.warning("Boxwright: %s ignores masks; rows with regions take the host's attention.", name)
        known[name] = True
    known[asked] = ignored
    if plainly:
        watched[key] = ignored, some
    return ignored


@torch.no_grad()
def _effects(
    whole: AttentionCall, plain: AttentionCall, block: Block, mask: Tensor, out: Tensor, some: Tensor
) -> Tensor:
    """Of some image queries (numbers on the device) of the block's first row, lengths of differences, float32 [4].

    The attention without the mask, from that: what the mask makes of it and what the override returned; and from what
    the mask makes of it: what the override returned.
    """
    row, queries = slice(block.chunk.rows.start, block.chunk.rows.start + 1), some + block.place.queries.start
    rows = plain.rows(row).chosen(queries)
    without, with_it = rows.exact().float(), rows.exact(mask[row].index_select(2, queries)).float()
    theirs = out[row].index_select(whole.out_axis, queries).float()
    parts = (without, with_it - without, theirs - without, theirs - with_it)
    return torch.stack([part.norm() for part in parts])


def _compared(effects: Tensor, ignored: bool) -> Tensor:
    """Whether an override goes on ignoring masks, or heeding them: OTHERWISE or AS_BEFORE, [] on the device."""
    size, effect, own, other = effects.unbind()
    same = (own < effect / 2) & (own <= CHANGED * size) if ignored else other < effect / 2
    with outside_blocks():
        return torch.where(same | (effect <= SMALL * size), AS_BEFORE, OTHERWISE)
