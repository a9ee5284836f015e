"""The further texts of a model call; the call as several, and with a longer text: what its inputs are then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.seam import TextMix
from ..attention.calls import Chunk, IncompatiblePatchError
from ..attention.sending import sent
from ..families.base import Adapter

MASK = "attention_mask"
_PER_ENTRY = ("uuids", "cond_or_uncond")  # lists in transformer_options with an item for each conditioning entry


def texts_of(chunk: Chunk) -> list[Tensor]:
    """The further texts of its rows' mixes, in their order."""
    return [text for item in chunk.edits if isinstance(item.edit, TextMix) for text in item.edit.texts]


def spans_of(texts: Sequence[Tensor], adapter: Adapter) -> tuple[slice, ...]:
    """Where texts lie side by side, each filled up as it is when it stands alone."""
    found, start = [], 0
    for text in texts:
        found.append(slice(start, start + adapter.room(text.shape[1])[0]))
        start = found[-1].stop
    return tuple(found)


def further_texts(
    chunks: Sequence[Chunk], context: Tensor, device: torch.device, adapter: Adapter, memo: dict[Any, Any]
) -> Tensor | None:
    """The texts of every chunk's mixes side by side, [rows, E, C] on the device, made once while they are the same.

    Rows with fewer end in zeros that nobody reads.
    """
    texts = [texts_of(chunk) for chunk in chunks]
    spans = [spans_of(own, adapter) for own in texts]
    longest = max(found[-1].stop if found else 0 for found in spans)
    if not longest:
        return None
    rows = tuple((chunk.rows.start, *map(id, own)) for chunk, own in zip(chunks, texts, strict=True))
    # Autograd may not save what was made in inference mode.
    key = ("further texts", rows, context.shape[0], device, torch.is_inference_mode_enabled())
    if key not in memo:
        further = context.new_zeros(context.shape[0], longest, context.shape[2])
        for chunk, own, found in zip(chunks, texts, spans, strict=True):
            for text, span in zip(own, found, strict=True):
                first, count = span.start + adapter.room(text.shape[1])[1], text.shape[1]
                further[chunk.rows, first : first + count] = text.to(context)
        memo[key] = sent(further, device)
    return memo[key]


def runs_of_equals(items: Sequence[Any]) -> list[slice]:
    """Where neighbours are equal."""
    runs: list[slice] = []
    for number, item in enumerate(items):
        if runs and item == items[number - 1]:
            runs[-1] = slice(runs[-1].start, number + 1)
        else:
            runs.append(slice(number, number + 1))
    return runs


def rows_of(given: Any, entries: slice, count: int, options: dict[str, Any]) -> Any:
    """The inputs of a model call of `count` rows for some of its conditioning entries."""
    size = count // len(options["uuids"])
    rows = slice(entries.start * size, entries.stop * size)
    fewer = {**options, **{name: options[name][entries] for name in _PER_ENTRY if name in options}}

    def part(value: Any) -> Any:
        if value is options:
            return fewer
        if isinstance(value, Tensor):
            return value[rows] if value.ndim and value.shape[0] == count else value
        if isinstance(value, dict):
            return {name: part(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(part, value))
        return value

    return part(given)


def with_longer_mask(inputs: dict[str, Any], length: int, further: int) -> dict[str, Any]:
    """The inputs with a mask of text tokens that lets further ones through.

    Raises IncompatiblePatchError for a mask of another kind (of style models: for all tokens of the attention).
    """
    mask = inputs.get(MASK)
    if mask is None:
        return inputs
    if mask.ndim != 2 or mask.shape[1] != length:
        raise IncompatiblePatchError(
            f"The conditioning carries an attention mask of {'x'.join(map(str, mask.shape))} values, which does not "
            "know of the texts of regions. Remove the node that adds it (a style or image prompt), or use Region "
            "Conditioning."
        )
    seen = mask.new_zeros if mask.is_floating_point() else mask.new_ones  # added to scores, or tokens to be read
    return {**inputs, MASK: torch.cat([mask, seen(mask.shape[0], further)], dim=1)}
