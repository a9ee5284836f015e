"""One call of the model as several, and with a longer text: what its inputs are then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention.calls import IncompatiblePatchError

MASK = "attention_mask"
_PER_ENTRY = ("uuids", "cond_or_uncond")  # lists in transformer_options with an item for each conditioning entry


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
