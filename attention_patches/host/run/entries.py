"""The conditioning entries of a run, and which of them carry which edits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...core.seam import ContextEdit, LatentGuide, LayerEdit, NoiseEdit, TextMix
from ...core.types import BoxwrightError, Layout
from ..attention.calls import Chunk, Extra, Installed
from ..text.layout import LAYOUT_KEY


@dataclass(frozen=True)
class Entry:
    """A conditioning entry with edits."""

    edits: tuple[Installed, ...]
    text_length: int
    area: tuple[int, ...] | None  # in latent cells: (height, width, y, x), with frames (T, height, width, t, y, x)

    @property
    def layouts(self) -> frozenset[str]:
        """The keys of the layouts that it was encoded with; a noise may ask for less, see `row_period`."""
        own = (item for item in self.edits if of_layout(item) and not isinstance(item.edit, NoiseEdit))
        return frozenset(item.layout.key for item in own)

    def crop(self, image: tuple[int, int]) -> tuple[int, int, int, int]:
        """(height, width, y, x) of what the model sees for this entry."""
        return crop_of(self.area, image)

    def chunk(self, rows: slice, progress: float, image: tuple[int, int], extra: Extra, key: Any, heard: bool) -> Chunk:
        """Its rows in a model call, with the edits that act at this point of the schedule.

        `key`: its uuid; `heard`: whether readers have heard it in this prediction. `extra`: see Extra.
        """
        edits = (item for item in self.edits if not isinstance(item.edit, (LatentGuide, LayerEdit, NoiseEdit)))
        active = (item for item in edits if item.edit.window.contains(progress))
        kept = (item for item in active if not (extra.aside and isinstance(item.edit, TextMix)))
        kept = (item for item in kept if isinstance(item.edit, ContextEdit) or not extra.plain)
        # A guide asks what the prompt itself does. Where a region reads a text of its own, that holds what the prompt
        # wants there, wherever the model would draw it.
        kept = (item for item in kept if not (heard and getattr(item.edit, "stage", None) == "read"))
        return Chunk(rows, (*kept, *extra.items.get(key, ())), self.text_length, self.crop(image)[2:])


def crop_of(area: tuple[int, ...] | None, image: tuple[int, int]) -> tuple[int, int, int, int]:
    """(height, width, y, x) of what the model sees of the latent where a conditioning entry has this area."""
    if area is None:
        return (*image, 0, 0)
    axes = len(area) // 2
    (height, width), (y, x) = area[axes - 2 : axes], area[-2:]
    return min(height, image[0] - y), min(width, image[1] - x), y, x


def areas_of(conds: dict[str, list[dict]]) -> dict[Any, tuple[int, ...] | None]:
    """Of every entry, by its uuid: the area that the model sees, None for all of the latent."""
    return {entry["uuid"]: entry.get("area") for entries in conds.values() for entry in entries}


def of_layout(item: Installed) -> bool:
    """Whether the edit acts in the rows that were encoded with its layout (else: in those of the negative prompt)."""
    return getattr(item.edit, "rows", "layout") == "layout"


def part_copies(conds: dict[str, list[dict]]) -> None:
    """Give every copy of a conditioning entry a uuid of its own, so that a uuid says what the model reads.

    For an entry with an area the host adds a copy to every other list, which has the name, text, mark and uuid of the
    one and the model inputs of the other. The originals come first.
    """
    originals: set[int] = set()
    for entry in (entry for entries in conds.values() for entry in entries):
        read = _text_input(entry)
        if read in originals:
            entry["uuid"] = uuid.uuid4()
        originals.add(read)


def entries_with_edits(conds: dict[str, list[dict]], installed: tuple[Installed, ...]) -> dict[Any, Entry]:
    """uuid of a conditioning entry -> its edits, where copies have been parted.

    Raises BoxwrightError where a layout has no conditioning in this run.
    """
    found = edits_by_entry(conds, installed)
    seen = {item.layout.key for entry in found.values() for item in entry.edits if of_layout(item)}
    reached = {id(item) for entry in found.values() for item in entry.edits}
    for item in installed:
        if item.layout.key not in seen or (of_layout(item) and id(item) not in reached):
            raise BoxwrightError(_foreign_prompt(item.layout, conds))
    return found


def edits_by_entry(conds: dict[str, list[dict]], installed: tuple[Installed, ...]) -> dict[Any, Entry]:
    """The same, for conditionings that need not carry any.

    Entries are recognised by the layout they were encoded with, never by their position in the batch; edits of the
    negative rows go to every entry of the negative prompt; a copy has the edits of what the model reads for it.
    """
    of_input: dict[int, Entry | None] = {}
    found: dict[Any, Entry] = {}
    for name, entries in conds.items():
        for entry in entries:
            read = _text_input(entry)
            if read not in of_input:  # the original
                if "negative" not in name:
                    edits = tuple(i for i in installed if of_layout(i) and _is_for(entry, i))
                elif name == "negative" and entry.get("cross_attn") is not None:
                    edits = tuple(i for i in installed if not of_layout(i))
                else:
                    edits = ()
                of_input[read] = Entry(edits, entry["cross_attn"].shape[1], None) if edits else None
            if of_input[read]:
                found[entry["uuid"]] = replace(of_input[read], area=entry.get("area"))
    return found


def _text_input(entry: dict) -> int:
    """Which object the model reads as text for an entry."""
    return id(entry["model_conds"].get("c_crossattn", entry))


def _is_for(entry: dict, item: Installed) -> bool:
    if isinstance(item.edit, NoiseEdit):
        return row_period(entry, item.layout) > 0
    return _encoded_with(entry, item.layout)


def row_period(entry: dict, layout: Layout) -> int:
    """Each how many rows of an entry read the layout's text: 1 = all of them, n = the first of every n; 0 = none.

    Prompt to Prompt puts several prompts into one entry, the source first, and gives all of a group its noise.
    """
    if _encoded_with(entry, layout):
        return 1
    text, expected = entry.get("cross_attn"), layout.prompt.embedding
    if text is None or text.shape[0] < 2 or text.shape[1:] != expected.shape[1:]:
        return 0
    return text.shape[0] * torch.equal(text[:1].to(expected), expected)


def _encoded_with(entry: dict, layout: Layout) -> bool:
    text = entry.get("cross_attn")
    if text is None:
        return False
    expected, key = layout.prompt.embedding, entry.get(LAYOUT_KEY)
    if key == layout.key:
        if text.shape[1] < expected.shape[1]:
            raise BoxwrightError(
                f"The conditioning has {text.shape[1]} text tokens, its layout {expected.shape[1]}: a node in between "
                "shortened it. Wire `positive` of Layout Prompt to the sampler without that node."
            )
        if text.shape[1] != expected.shape[1] != len(layout.prompt.tokens):
            raise BoxwrightError(
                f"The conditioning has {text.shape[1]} text tokens, its layout {expected.shape[1]}: a node in between "
                "added text, and this model reads more behind it, which then lies elsewhere. Wire `positive` of Layout "
                "Prompt to the sampler without that node."
            )
        return True
    # A layout without regions (of a recorder) is of its text alone, whatever else that was encoded for.
    free = key is None or not layout.regions
    return free and text.shape == expected.shape and torch.equal(text.to(expected), expected)


def _foreign_prompt(layout: Layout, conds: dict[str, list[dict]]) -> str:
    own = layout.prompt.embedding.shape[1]
    lengths = {e["cross_attn"].shape[1] for e in conds.get("positive", ()) if e.get("cross_attn") is not None}
    counts = "" if own in lengths else f" ({own} text tokens; the run has {', '.join(map(str, sorted(lengths)))})"
    return (
        f'No positive conditioning of this run was encoded with the layout of "{_short(layout.prompt.tokens.text)}"'
        f"{counts}. The layout knows the words of its own prompt only: wire `positive` of the same Layout Prompt node "
        "to the sampler (other conditioning nodes may stand in between). If it is the prompt of an Attention Recorder, "
        "write there exactly the text of the positive conditioning."
    )


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
