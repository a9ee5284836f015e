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
from .calls import IncompatiblePatchError, ModelCall, Place, names_of
from .saveable import saveable

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
    is put there for a call is asked in every step.
    """
    lasting = id(patch) in call.others.lasting
    found, key = call.others.found, ("adds", place.layer, place.text is None, id(patch) if lasting else None)
    asked = (*key, call.progress)
    if key in found:
        return True
    if asked not in found:
        found[asked], works = _adds_to_the_attention(patch, own, options)
        if found[asked] and works and lasting:
            found[key] = True
    return found[asked]


@torch.no_grad()
def _adds_to_the_attention(patch: Attention, own: AttentionCall, options: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the function's result is the attention plus what does not depend on the values; and is not nothing."""
    alone = patch(own.q, own.k, torch.zeros_like(own.v), options)
    out, plain = patch(own.q, own.k, own.v, options), own.fused().float()
    if out.shape != plain.shape or alone.shape != plain.shape:
        return False, True
    # Rounding in 16 bits, and kernels that round more, stay far below this; another attention does not.
    adds = float((out.float() - alone.float() - plain).norm()) <= 0.05 * float(plain.norm())
    return adds, bool(alone.any())


def attend_in_one_piece(whole: AttentionCall, plain: AttentionCall, blocks: list[Block]) -> Tensor:
    """All rows by another pack's override, with one mask; what it leaves unedited is done again by `plain`."""
    queries, keys = whole.q.shape[whole.token_axis], whole.k.shape[whole.token_axis]
    biased = [block for block in blocks if block.biased]
    mask = whole.q.new_zeros(whole.q.shape[0], 1, queries, keys) if biased else None
    for block in biased:
        for part in block.frames():
            mask[block.chunk.rows, :, part] = block.bias(whole.rows(block.chunk.rows).queries(part), part)
        for seat in block.seating(whole, image=False).parts if block.coupled else ():
            mask[block.chunk.rows, :, seat.queries] = seat.over_all(keys)
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

    Seen once in a step for each layer and shape, by some queries of one row. An override may count its calls: only one
    that does more than attention is called again. Raises IncompatiblePatchError where such a one ignores masks: it
    cannot be left out.
    """
    known = block.call.others.found
    key = ("ignores masks", block.place.layer, block.call.progress, whole.q.shape[1:], whole.k.shape[1:])
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
