"""Layouts as the prompts of models that read boxes themselves, by the model's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ...attention_patches.core.regions import OPTIONS
from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import check_count, counted, shortened, shown
from .layout_document import MAX_TEXT_FIELD, PROMPT_KEYS, Document, Places, checked_style
from .layout_flux3 import FLUX3
from .layout_ideogram import IDEOGRAM, STYLE_KEYS
from .layout_ming import CANVAS_KEYS, MING
from .regions_json import load_json
from .shapes import BOX_KEYS, bounding_box

FORMATS = {form.name: form for form in (FLUX3, IDEOGRAM, MING)}

NAMED = re.compile(r'"id"\s{0,9}:\s{0,9}"[a-z][a-z0-9]{0,60}_[0-9]')  # an id of FLUX.3; detectors count

EDITOR_KEYS = ("enabled", "locked", "hidden", "color")  # of no concern to a model
WITH_OTHERS = ("lora_strength",)  # nothing by themselves
# Values that say as much as none, where None leaves a choice to the method.
NEUTRAL = {"start": 0.0, "end": 1.0, "feather": 0.0, "start_frame": 0}
# Fields of a region that change how a method draws, and what they are where they change nothing. No prompt has a place
# for them.
METHOD_KEYS = {"strength": Region.strength} | {
    option.name: NEUTRAL.get(option.name, option.default)
    for option in OPTIONS
    if option.name not in (*EDITOR_KEYS, *WITH_OTHERS)
}


def written(
    document: Document, name: str, size: tuple[int, int] | None, leave_out: bool
) -> tuple[str, tuple[str, ...]]:
    """The prompt in the format `name`, and notes on what it lacks.

    `size`: width and height of the picture in pixels, None = unknown. What the format has no place for is refused, or
    with `leave_out` named in the notes. Raises BoxwrightError.
    """
    form = FORMATS[name]
    document, boxed = boxes_only(document)
    notes = left_out(document, form, leave_out)
    return form.write(document, size), boxed + notes


def left_out(document: Document, form: Places, leave_out: bool) -> tuple[str, ...]:
    """Notes on what the format has no place for. Raises BoxwrightError for that, unless `leave_out`; and for what no
    format can hold: no region at all, or too many."""
    if not document.regions and not document.source:
        raise BoxwrightError("There is no region to write. Connect regions, or for an edit source.")
    check_count(len(document.regions) + len(document.source or ()), "The layout holds")
    problems = [*_unheld(document, form), *_unknown_keys(document)]
    lost = [text for text, serious in problems if serious]
    if lost and not leave_out:
        raise BoxwrightError(f"{form.name} cannot hold {_some(lost)}. Take that away, or set unsupported to leave out.")
    return tuple(f"Left out, {form.name} cannot hold it: {text}" for text, _ in problems)


def boxes_only(document: Document) -> tuple[Document, tuple[str, ...]]:
    """The document with the box around each shape, since prompts hold nothing else, and notes on that."""
    notes = []

    def boxed(region: Region) -> Region:
        if isinstance(region.area, Box):
            return region
        notes.append(f'"{shortened(region.phrase, 40)}" is a shape, and a prompt holds boxes: the box around it.')
        extra = {key: value for key, value in region.extra.items() if key not in ("shape", *BOX_KEYS)}
        return replace(region, area=bounding_box(region), extra=extra)

    source = None if document.source is None else tuple(map(boxed, document.source))
    return replace(document, regions=tuple(map(boxed, document.regions)), source=source), tuple(notes)


def read(text: str, name: str) -> Document:
    """The prompt `text` in the format `name` as a Document. Raises BoxwrightError."""
    return FORMATS[name].read(text)


def recognised(text: str) -> str | None:
    """The name of the format that a text is in, by what only this one has; None where it may be any list of boxes."""
    start = text.lstrip()[:1]
    if start == "{" and '"compositional_deconstruction"' in text:
        return "Ideogram 4"
    if '"layers"' in text and '"coordinates"' in text:
        return "Ming-Image"
    flux3 = start != "{" and '"desc"' in text and NAMED.search(text) and "bbox" in text
    return "FLUX.3" if flux3 else None


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more


def _unheld(document: Document, form: Places) -> Iterable[tuple[str, bool]]:
    """What the format has no place for: (words, whether it matters)."""
    if document.background and "background" not in form.holds:
        yield "the background text", True
    if document.background and document.prompt and "prompt" not in form.holds:
        yield "a prompt beside the background text", True
    if document.source is not None and "source" not in form.holds:
        yield "the source boxes of an edit", True
    for key in document.style:
        if key not in form.styles:
            yield f"the style {shortened(str(key), 40)}", True
    for number, region in enumerate((*document.regions, *(document.source or ())), 1):
        where = f'of region {number} ("{shortened(region.phrase, 40)}")'
        for key, default in METHOD_KEYS.items():
            value = getattr(region, key)
            if value not in (default, None):
                yield f"the {key} {where}", True
        for key in ("text", "palette", "relation"):
            if region.extra.get(key) and key not in form.holds:
                yield f"the {key} {where}", True


def _unknown_keys(document: Document) -> Iterable[tuple[str, bool]]:
    known = {*METHOD_KEYS, *EDITOR_KEYS, *PROMPT_KEYS}
    others = {str(key) for region in (*document.regions, *(document.source or ())) for key in region.extra} - known
    if others:
        yield f"the keys {shortened(', '.join(sorted(others)), 80)}", False


def parse_style(text: str) -> dict[str, Any]:
    """`text` -> the style: lines like "lighting: soft daylight", or a JSON object. Raises BoxwrightError."""
    if len(text) > MAX_TEXT_FIELD:
        raise BoxwrightError(f"style is {len(text)} characters long; at most {MAX_TEXT_FIELD} are read. Shorten it.")
    known = (*STYLE_KEYS, *CANVAS_KEYS)
    if text.lstrip().startswith("{"):
        style = load_json(text, "style")
    else:
        lines = [line.partition(":") for line in text.splitlines() if line.strip()]
        style = {key.strip(): value.strip() for key, _, value in lines}
        if len(style) < len(lines):
            raise BoxwrightError("style names one key twice, or has a line without a key. Write each as key: words.")
    for key in style:
        if key not in known:
            raise BoxwrightError(f"style has {shown(key)}, which no format knows; known are {', '.join(known)}.")
    return {key: checked_style(value, key) for key, value in style.items() if value}


def summary(document: Document, name: str) -> str:
    """What was read, in one line."""
    edit = "" if document.source is None else f", an edit of {counted(len(document.source), 'thing')} in the picture"
    return f"Read as {name}: {counted(len(document.regions), 'region')}{edit}."
