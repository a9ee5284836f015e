"""Ideogram 4: one JSON object, whose keys stand in the order the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...attention_patches.core.types import BoxwrightError, Region
from .checks import check_count, checked_phrase, shortened, shown
from .layout_document import (
    PICTURE_COLORS,
    Document,
    Format,
    check_keys,
    checked_palette,
    checked_style,
    checked_text,
    compact,
    foreign_keys,
    from_bbox,
    palette_of,
    to_bbox,
)
from .regions_json import load_json

STYLE_KEYS = ("aesthetics", "lighting", "photo", "medium", "art_style", "color_palette")
ELEMENT_COLORS = 5  # in the palette of an element, at most


def _write_ideogram(document: Document, size: tuple[int, int] | None) -> str:
    caption: dict[str, Any] = {}
    if document.prompt.strip():
        caption["high_level_description"] = document.prompt.strip()
    style = _ideogram_style(document.style)
    if style:
        caption["style_description"] = style
    caption["compositional_deconstruction"] = {
        "background": document.background.strip(),
        "elements": [_ideogram_element(region) for region in document.regions],
    }
    return compact(caption)


def _ideogram_style(style: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in style.items() if key in STYLE_KEYS and value}
    if "photo" in given and "art_style" in given:
        raise BoxwrightError("The style has both photo and art_style; Ideogram 4 takes one of them. Remove one.")
    if "color_palette" in given:
        given["color_palette"] = checked_palette(given["color_palette"], PICTURE_COLORS, "color_palette of the style")
    return {key: given[key] for key in STYLE_KEYS if key in given}


def _ideogram_element(region: Region) -> dict[str, Any]:
    text = region.extra.get("text")
    element: dict[str, Any] = {"type": "text" if text else "obj", "bbox": to_bbox(region.area)}
    if text:
        element["text"] = checked_text(text, f'The text of "{shortened(region.phrase, 40)}"')
    element["desc"] = region.phrase
    palette = palette_of(region, ELEMENT_COLORS)
    if palette:
        element["color_palette"] = palette
    return element


def _read_ideogram(text: str) -> Document:
    data = load_json(text, "text")
    layout = data.get("compositional_deconstruction") if isinstance(data, dict) else None
    elements = layout.get("elements") if isinstance(layout, dict) else None
    if not isinstance(layout, dict) or not isinstance(elements, list):
        raise BoxwrightError(
            "text is no Ideogram 4 caption: it must be an object with compositional_deconstruction, in which elements "
            "is a list."
        )
    check_count(len(elements), "The caption holds")
    notes = foreign_keys(data, ("high_level_description", "style_description", "compositional_deconstruction"), "")
    notes += foreign_keys(layout, ("background", "elements"), "compositional_deconstruction")
    style = data.get("style_description") or {}
    if not isinstance(style, dict):
        raise BoxwrightError(f"style_description must be an object; it is {shown(style)}.")
    notes += foreign_keys(style, STYLE_KEYS, "style_description")
    regions = []
    for number, element in enumerate(elements, 1):
        where = f"Element {number} of the caption"
        check_keys(element, ("desc",), None, where)
        if element.get("bbox") is None:
            phrase = shortened(str(element["desc"]), 40)
            notes.append(f'{where} ("{phrase}") has no bbox, so it has no place among boxes: left out.')
            continue
        notes += foreign_keys(element, ("type", "bbox", "text", "desc", "color_palette"), where)
        phrase = element["desc"] if element["desc"] else element.get("text")
        extra: dict[str, Any] = {}
        if element.get("text"):
            extra["text"] = checked_text(element["text"], f"{where}: text")
        if element.get("color_palette"):
            extra["palette"] = checked_palette(element["color_palette"], ELEMENT_COLORS, f"{where}: color_palette")
        box = from_bbox(element["bbox"], f"{where}: bbox")
        regions.append(Region(checked_phrase(phrase, f"{where}: desc"), box, extra=extra))
    return Document(
        tuple(regions),
        prompt=checked_text(data.get("high_level_description") or "", "high_level_description"),
        background=checked_text(layout.get("background") or "", "background"),
        style=_ideogram_style({k: checked_style(v, k) for k, v in style.items() if k in STYLE_KEYS}),
        notes=tuple(notes),
    )


IDEOGRAM = Format(
    "Ideogram 4",
    frozenset({"prompt", "background", "text", "palette"}),
    STYLE_KEYS,
    _write_ideogram,
    _read_ideogram,
)
