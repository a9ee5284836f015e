"""Boxes from a text of any origin.

The editor (web/editor/model/layout_import.js) reads the same; tests/golden/layouts.json holds both to it. What is
understood is said (Imported.how), and what cannot be told is refused with the words that would tell it.

The order of four numbers is known from their keys (x1 ... y2, startX ..., xywh, box_2d ...) or from the file (COCO,
Ideogram 4, FLUX.3, Ming-Image). Four bare numbers are [x1, y1, x2, y2] or [x, y, width, height], whichever puts all
boxes into the picture; where both do, the user must say. Numbers are fractions if none is above 1, and pixels if the
largest is at least 2; between the two the user must say. To say it, words stand in front of the text: xyxy, xywh, yxyx
or cxcywh, and pixels, fractions, percent or thousandths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...attention_patches.core.types import BoxwrightError, Region
from .checks import check_count, checked_phrase, counted, number_of, shown
from .layout_flux3 import split_flux3
from .layout_ming import ming_box
from .layout_units import ORDERS, UNITS, Raw, region_of, with_order, with_unit
from .regions_json import is_workflow, load_json, parse_drawing

HINT = re.compile(r"\s*(?:(?:" + "|".join((*ORDERS, *UNITS)) + r")[\s,:]+)+(?=[\[{])", re.IGNORECASE)
# Keys that say the order. Of the first group that an object has whole, the numbers are taken.
KEYED = (
    ("xywh", ("x", "y", "width", "height")),
    ("xywh", ("x", "y", "w", "h")),
    ("xyxy", ("x1", "y1", "x2", "y2")),
    ("xyxy", ("x0", "y0", "x1", "y1")),
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")),
    ("xyxy", ("x_min", "y_min", "x_max", "y_max")),
    ("xyxy", ("startX", "startY", "endX", "endY")),
    ("xyxy", ("left", "top", "right", "bottom")),
    ("xywh", ("left", "top", "width", "height")),
    ("cxcywh", ("cx", "cy", "w", "h")),
    ("cxcywh", ("cx", "cy", "width", "height")),
)
LISTED = {
    "box_2d": ("yxyx", "thousandths"),
    "bbox_2d": ("xyxy", ""),
    "xyxy": ("xyxy", ""),
    "bbox_xyxy": ("xyxy", ""),
    "xywh": ("xywh", ""),
    "bbox_xywh": ("xywh", ""),
    "bbox": ("", ""),
    "box": ("", ""),
    "bounding_box": ("", ""),
    "boundingBox": ("", ""),
    "location": ("", ""),
    "rect": ("", ""),
}
THOUSANDTHS_TOO = ("bbox_2d",)  # keys under which some programs write pixels and others thousandths
PHRASES = ("phrase", "desc", "text", "label", "caption", "name", "description", "category", "prompt")
BOX_LISTS = ("boxes", "bboxes", "bounding_boxes", "locations", "elements", "objects", "detections", "items")
PHRASE_LISTS = ("phrases", "labels", "captions", "names", "texts")


@dataclass(frozen=True)
class Imported:
    """Regions (the phrase is "" where there was none), and how the text was understood."""

    regions: tuple[Region, ...]
    source: str  # "boxwright", "ideogram", "flux3", "ming", "coco", "elements" or "boxes"
    order: str  # a key of ORDERS; "" for our own format and Ming-Image
    unit: str  # a key of UNITS; "" for our own format
    how: str  # in words


def read_layout(text: str, width: int | None, height: int | None, name: str, strict: bool = True) -> Imported:
    """Boxes from any text that holds them. `name`: of the input, for messages.

    `width`, `height`: of the picture in pixels, where the text does not say them; None = not known. Pixels then are
    refused if `strict`, else the boxes are only looked at, and their places mean nothing. Raises BoxwrightError.
    """
    hint = HINT.match(text[:200])
    order = unit = ""
    if hint:
        words = re.split(r"[\s,:]+", hint[0].strip().lower().rstrip(",:"))
        order = next((word for word in words if word in ORDERS), "")
        unit = next((word for word in words if word in UNITS), "")
        text = text[hint.end() :]
    if text.strip() and text.strip()[0] not in "[{":
        _, data = split_flux3(text, name, "no JSON and ")
    else:
        data = load_json(text, name)
    if isinstance(data, dict) and "regions" in data:
        regions = parse_drawing(text).regions
        return Imported(regions, "boxwright", "", "", f"{counted(len(regions), 'region')} of a Boxwright layout")
    if isinstance(data, dict) and isinstance(data.get("layers"), list):
        return _ming(data["layers"])
    size = (width, height)
    if isinstance(data, dict):
        size = _size_of(data, size)
    source, raws = _raws(data, name)
    if not raws:
        raise BoxwrightError(f"There is no box in {name}. Write one, or empty it.")
    raws = [replace(raw, order=order or raw.order, unit=unit or raw.unit) for raw in raws]
    raws, unit = with_unit(raws, size, name)
    if unit == "pixels" and size[0] is None and strict:
        raise BoxwrightError(
            f"The boxes of {name} count pixels, and the size of their picture is not known. Set width and height to it."
        )
    raws, order = with_order(raws, size, name)
    regions = tuple(region_of(raw, size, number, name) for number, raw in enumerate(raws, 1))
    pixels = f" of a picture of {size[0]} x {size[1]}" if unit == "pixels" else ""
    origin = {"ideogram": "Ideogram 4: ", "flux3": "FLUX.3: ", "coco": "COCO: "}.get(source, "")
    how = f"{origin}{counted(len(regions), 'box')} read as {ORDERS[order]} in {unit}{pixels}".replace("boxs", "boxes")
    return Imported(regions, source, order, unit, how)


def _ming(layers: Sequence[Any]) -> Imported:
    check_count(len(layers), "The text holds")
    regions = []
    for number, layer in enumerate(layers, 1):
        where = f"Layer {number}"
        if not isinstance(layer, Mapping):
            raise BoxwrightError(f"{where} must be an object; it is {shown(layer)}.")
        regions.append(Region(_phrase_of(layer, where), ming_box(layer.get("coordinates"), where)))
    if not regions:
        raise BoxwrightError("There is no layer in the text. Write one, or empty it.")
    return Imported(tuple(regions), "ming", "cxcywh", "fractions", f"Ming-Image: {counted(len(regions), 'layer')}")


def _size_of(data: Mapping[str, Any], size: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """The picture's size where the file says it: beside its list of boxes, or as COCO's one image."""
    images = data.get("images")
    if isinstance(images, list) and len(images) == 1 and isinstance(images[0], Mapping):
        data = images[0]
    elif not any(isinstance(data.get(key), list) for key in (*BOX_LISTS, "annotations")):
        return size
    sides = data.get("width"), data.get("height")
    good = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 65536 for side in sides)
    return sides if good else size


def _raws(data: Any, name: str) -> tuple[str, list[Raw]]:
    """(source, boxes) of JSON data."""
    if isinstance(data, Mapping):
        layout = data.get("compositional_deconstruction")
        if isinstance(layout, Mapping):
            elements = layout.get("elements")
            placed = [
                each
                for each in (elements if isinstance(elements, list) else [])
                if not (isinstance(each, Mapping) and each.get("bbox") is None)
            ]
            check_count(len(placed), f"{name} holds")
            return "ideogram", [_entry(each, number, name) for number, each in enumerate(placed, 1)]
        if isinstance(data.get("annotations"), list):
            return "coco", _coco(data, name)
        boxes = next((data[key] for key in BOX_LISTS if isinstance(data.get(key), list)), None)
        if boxes is not None:
            phrases = next((data[key] for key in PHRASE_LISTS if isinstance(data.get(key), list)), None)
            return _raws(boxes if phrases is None else _paired(phrases, boxes, name), name)
        data = [data]
    if not isinstance(data, list):
        raise BoxwrightError(f"{name} must hold boxes; it is {shown(data)}.")
    if len(data) == 4 and all(_is_number(each) for each in data):
        data = [data]
    elif data and all(isinstance(each, list) and (not each or isinstance(each[0], Mapping)) for each in data):
        data = data[0]  # frames: the first
    check_count(len(data), f"{name} holds")
    first = data[0] if data else None
    source = "flux3" if _is_flux3(first) else "elements" if is_element(first) else "boxes"
    return source, [_entry(entry, number, name) for number, entry in enumerate(data, 1)]


def _paired(phrases: Sequence[Any], boxes: Sequence[Any], name: str) -> list[Any]:
    if len(phrases) != len(boxes):
        raise BoxwrightError(
            f"{name} has {counted(len(phrases), 'phrase')} for {len(boxes)} boxes; write one phrase for each box."
        )
    return [[phrase, box] for phrase, box in zip(phrases, boxes, strict=True)]


def _coco(data: Mapping[str, Any], name: str) -> list[Raw]:
    check_count(len(data["annotations"]), f"{name} holds")
    images = {shown(each.get("image_id")) for each in data["annotations"] if isinstance(each, Mapping)}
    if len(images) > 1:
        raise BoxwrightError(f"{name} has boxes of {len(images)} pictures; keep the annotations of one.")
    categories = data.get("categories")
    names = {
        each.get("id"): each.get("name")
        for each in (categories if isinstance(categories, list) else [])
        if isinstance(each, Mapping) and isinstance(each.get("id"), (int, str))
    }
    raws = []
    for number, entry in enumerate(data["annotations"], 1):
        raw = _entry(entry, number, name)
        kind = entry.get("category_id")
        label = names.get(kind) if isinstance(kind, (int, str)) else None
        phrase = raw.phrase or _phrase_of({"name": label}, f"Box {number}")
        raws.append(replace(raw, order="xywh", unit="pixels", phrase=phrase))
    return raws


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_flux3(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("id"), str) and "desc" in entry


def is_element(entry: Any) -> bool:
    """Of the host's elements or Ideogram's: their words are called desc, or the type is said."""
    return isinstance(entry, Mapping) and ("desc" in entry or entry.get("type") in ("obj", "text"))


def _entry(entry: Any, number: int, name: str) -> Raw:
    where = f"Box {number} of {name}"
    if isinstance(entry, list):
        if len(entry) == 4 and all(_is_number(each) for each in entry):
            return Raw(_numbers(entry, where), "", "", "")
        if len(entry) == 2 and isinstance(entry[0], str) != isinstance(entry[1], str):
            phrase, box = entry if isinstance(entry[0], str) else entry[::-1]
            return replace(_entry(box, number, name), phrase=_phrase_of({"phrase": phrase}, where))
    if not isinstance(entry, Mapping):
        raise BoxwrightError(
            f"{where} is {shown(entry)}, which is no box. Write four numbers, or an object with x, y, width and height."
        )
    phrase = _phrase_of(entry, where)
    if "src_bbox" in entry or "tgt_bbox" in entry:
        raise BoxwrightError(
            f"{where} is a row of an edit, with a box before and a box after. Prompt to Regions reads both."
        )
    for order, keys in KEYED:
        if all(key in entry for key in keys):
            return Raw(_numbers([entry[key] for key in keys], where), order, "", phrase)
    for key, (order, unit) in LISTED.items():
        box = entry.get(key)
        if isinstance(box, Mapping):
            return replace(_entry(box, number, name), phrase=phrase)
        if isinstance(box, list) and len(box) == 4:
            if key == "bbox" and is_element(entry):
                order, unit = "yxyx", "thousandths"
            return Raw(_numbers(box, where), order, unit, phrase, key in THOUSANDTHS_TOO)
    what = "a ComfyUI workflow" if is_workflow(entry) else shown(entry)
    raise BoxwrightError(
        f"{where} is {what}, in which no box was found. Write x, y, width and height, or bbox and four numbers."
    )


def _numbers(values: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    a, b, c, d = (number_of(value, where) for value in values)
    return a, b, c, d


def _phrase_of(entry: Mapping[str, Any], where: str) -> str:
    metadata = entry.get("metadata")
    inner = metadata if isinstance(metadata, Mapping) else {}
    texts = [entry.get("phrase"), entry.get("desc"), inner.get("desc"), entry.get("text"), inner.get("text")]
    texts += [entry.get(key) for key in PHRASES[3:]]
    for text in texts:
        if isinstance(text, str) and text.strip():
            return checked_phrase(text, f"The phrase of {where[0].lower()}{where[1:]}")
    return ""
