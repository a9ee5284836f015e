"""One attention call of the model with the edits of every chunk of its rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .attend import attend, mixed, read
from .block import Block, blocks_of, of_own_text
from .cache import BiasCache
from .call import Attention, AttentionCall
from .calls import ModelCall, Place
from .others import attend_in_one_piece


def edited_attention(
    attention: AttentionCall,
    call: ModelCall,
    place: Place,
    cache: BiasCache,
    in_one_piece: bool,
    plain: Attention | None = None,
) -> Tensor:
    """The attention call with every chunk's edits.

    Rows without edits go through its host exactly as they came, and all rows where edits only read. With `in_one_piece`
    the host is called once with all rows and queries and one mask (zero where nothing is edited): another pack's
    override may count on their number, so that further texts go through `plain`, the host's own attention.
    """
    whole = of_own_text(attention, call, place)
    everything = replace(attention, host=plain or attention.host)
    blocks = blocks_of(call, place, cache)
    for block in blocks:
        read(whole.rows(block.chunk.rows), block)
    if in_one_piece:
        out = attend_in_one_piece(whole, replace(whole, host=everything.host), blocks)
        if not any(block.mixes for block in blocks):
            return out
        pieces = [mixed(out[block.chunk.rows], everything.rows(block.chunk.rows), block) for block in blocks]
        return torch.cat(pieces)
    parts = [
        mixed(attend(whole.rows(rows), block), everything.rows(rows), block) for rows, block in _merge_unchanged(blocks)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _merge_unchanged(blocks: list[Block]) -> list[tuple[slice, Block]]:
    merged: list[tuple[slice, Block]] = []
    for block in blocks:
        rows = block.chunk.rows
        if merged and not block.changes and not merged[-1][1].changes:
            rows = slice(merged.pop()[0].start, rows.stop)
        merged.append((rows, block))
    return merged
