"""Regions that know the size of the picture they were drawn for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...attention_patches.core.types import Region


class SizedRegions(tuple):
    """Regions as every node takes them, and `size`: width and height of the picture in pixels."""

    size: tuple[int, int]

    def __new__(cls, regions: Iterable[Region], width: int, height: int) -> SizedRegions:
        sized = super().__new__(cls, regions)
        sized.size = (width, height)
        return sized


def size_of(*layouts: Sequence[Region] | None) -> tuple[int, int] | None:
    """Width and height in pixels of the first of the layouts that knows them; None where none does."""
    return next((layout.size for layout in layouts if isinstance(layout, SizedRegions)), None)
