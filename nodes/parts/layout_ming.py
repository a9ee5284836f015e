"""Ming-Image: layers from back to front, each with its centre and size."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ...attention_patches.core.types import MAX_REGIONS, Box, BoxwrightError, Region
from .checks import check_count, checked_phrase, shortened, shown
from .layout_document import (
    GRID,
    OVERHANG,
    PICTURE_COLORS,
    Document,
    Format,
    check_keys,
    checked_palette,
    checked_text,
    foreign_keys,
    on_the_grid,
    palette_of,
    thousandths,
    with_lettering,
    without_lettering,
)
from .regions_json import load_json

CANVAS_KEYS = ("aspect_ratio", "ambient_lighting", "image_style")
COORDINATES = re.compile(r"\s*cx\s*:\s*(\S+?)\s*,\s*cy\s*:\s*(\S+?)\s*,\s*w\s*:\s*(\S+?)\s*,\s*h\s*:\s*(\S+?)\s*")
BEHIND, IN_FRONT = "Behind everything else.", "In front of the background."  # what is written where nothing was said


def _write_ming(document: Document, size: tuple[int, int] | None) -> str:
    style = dict(document.style)
    if "aspect_ratio" not in style:
        if size is None:
            raise BoxwrightError(
                "Ming-Image needs the shape of the picture. Set width and height, or take the regions from Box Editor, "
                "which knows them."
            )
        shared = math.gcd(*size)
        style["aspect_ratio"] = f"{size[0] // shared}:{size[1] // shared}"
    behind = document.background.strip() or document.prompt.strip()
    layers = [_ming_layer(behind, Box(0.0, 0.0, 1.0, 1.0), BEHIND, [])] if behind else []
    for region in document.regions:
        relation = checked_text(region.extra.get("relation") or IN_FRONT, "relation")
        colors = palette_of(region, PICTURE_COLORS)
        layers.append(_ming_layer(with_lettering(region), region.area, relation, colors))
    settings = {key: checked_text(style.get(key, ""), key) for key in CANVAS_KEYS}
    return json.dumps({"canvas_settings": settings, "layers": layers}, ensure_ascii=False, indent=2)


def _ming_layer(description: str, box: Box, relation: str, colors: list[str]) -> dict[str, Any]:
    left, top, right, bottom = thousandths(box)
    # Three digits, as the model saw them. Where the middle lies between two thousandths the lower one is written;
    # an odd width says so, and ming_box finds the box again.
    numbers = {"cx": (left + right) // 2, "cy": (top + bottom) // 2, "w": right - left, "h": bottom - top}
    coordinates = ", ".join(f"{key}: {value / GRID:.3f}" for key, value in numbers.items())
    return {
        "description": description,
        "coordinates": coordinates,
        "hierarchy_and_relation": relation,
        "color_specs": colors,
    }


def ming_box(coordinates: Any, where: str) -> Box:
    """The box of "cx: ..., cy: ..., w: ..., h: ...", cut where it reaches over the edge by rounding."""
    found = COORDINATES.fullmatch(coordinates) if isinstance(coordinates, str) and len(coordinates) <= 200 else None
    try:
        cx, cy, w, h = map(float, found.groups() if found else ())
    except ValueError:
        raise BoxwrightError(
            f'{where}: coordinates must look like "cx: 0.500, cy: 0.250, w: 0.700, h: 0.160"; they are '
            f"{shown(coordinates)}."
        ) from None

    def span(middle: float, length: float) -> tuple[float, float]:
        low = middle * GRID - length * GRID / 2
        whole = round(length * GRID), round(middle * GRID)
        if abs(length * GRID - whole[0]) < 1e-6 and abs(middle * GRID - whole[1]) < 1e-6:
            low = whole[1] - whole[0] // 2
            return max(0, low), min(GRID, low + whole[0])
        return max(0.0, low), min(float(GRID), low + length * GRID)

    if not all(math.isfinite(each) for each in (cx, cy, w, h)) or w <= 0.0 or h <= 0.0:
        raise BoxwrightError(f"{where}: {shown(coordinates)} is no box; w and h must be above 0.")
    (left, right), (top, bottom) = span(cx, w), span(cy, h)
    low, high = min(cx - w / 2, cy - h / 2), max(cx + w / 2, cy + h / 2)
    if low < -OVERHANG or high > 1.0 + OVERHANG or left >= right or top >= bottom:
        raise BoxwrightError(f"{where}: {shown(coordinates)} reaches outside the picture, 0 to 1.")
    return on_the_grid(left, top, right, bottom)


def _read_ming(text: str) -> Document:
    start = text.find("{")  # a line on transparency may stand before
    data = load_json(text[max(start, 0) :], "text")
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise BoxwrightError("text is no Ming-Image prompt: it must be an object in which layers is a list.")
    if len(layers) > MAX_REGIONS + 1:
        check_count(len(layers), "The prompt holds")
    notes = foreign_keys(data, ("canvas_settings", "layers"), "")
    if text[: max(start, 0)].strip():
        notes.append(f"Left out: {shortened(text[:start], 80)}")
    settings = data.get("canvas_settings") or {}
    if not isinstance(settings, dict):
        raise BoxwrightError(f"canvas_settings must be an object; it is {shown(settings)}.")
    notes += foreign_keys(settings, CANVAS_KEYS, "canvas_settings")
    regions, background = [], ""
    for number, layer in enumerate(layers, 1):
        where = f"Layer {number} of the prompt"
        check_keys(layer, ("description", "coordinates"), None, where)
        notes += foreign_keys(layer, ("description", "coordinates", "hierarchy_and_relation", "color_specs"), where)
        box = ming_box(layer["coordinates"], where)
        description = checked_phrase(layer["description"], f"{where}: description")
        colors = checked_palette(layer.get("color_specs") or [], PICTURE_COLORS, f"{where}: color_specs")
        written_as_region = layer.get("hierarchy_and_relation") == IN_FRONT
        if number == 1 and box == Box(0.0, 0.0, 1.0, 1.0) and not colors and not written_as_region:
            background = description
            continue
        phrase, extra = without_lettering(description)
        relation = checked_text(layer.get("hierarchy_and_relation") or "", f"{where}: hierarchy_and_relation")
        if relation and relation != IN_FRONT:
            extra["relation"] = relation
        if colors:
            extra["palette"] = colors
        regions.append(Region(phrase, box, extra=extra))
    style = {key: checked_text(settings[key], key) for key in CANVAS_KEYS if settings.get(key)}
    return Document(tuple(regions), background=background, style=style, notes=tuple(notes))


MING = Format(
    "Ming-Image",
    frozenset({"background", "text", "palette", "relation"}),
    CANVAS_KEYS,
    _write_ming,
    _read_ming,
)
