"""Regions that know what they were drawn for: the size of the picture, and its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...attention_patches.core.types import Region


class SizedRegions(tuple):
    """Regions as every node takes them; `size`: width and height of the picture in pixels; `prompt`: "" = not known."""

    size: tuple[int, int]
    prompt: str

    def __new__(cls, regions: Iterable[Region], width: int, height: int, prompt: str = "") -> SizedRegions:
        sized = super().__new__(cls, regions)
        sized.size, sized.prompt = (width, height), prompt
        return sized


def size_of(*layouts: Sequence[Region] | None) -> tuple[int, int] | None:
    """Width and height in pixels of the first of the layouts that knows them; None where none does."""
    return next((layout.size for layout in layouts if isinstance(layout, SizedRegions)), None)


def prompt_of(regions: Sequence[Region]) -> str:
    """The prompt of the picture the regions were drawn for; "" where they do not know it."""
    return regions.prompt if isinstance(regions, SizedRegions) else ""
