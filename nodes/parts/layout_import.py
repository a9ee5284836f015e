"""Boxes from a text of any origin. The editor (web/editor/model/json.js) reads the same: tests/golden/layouts.json.

What is understood is said (Imported.how), and what cannot be told is refused with the words that would tell it.

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

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import ROUNDING, check_count, check_size, checked_phrase, clipped_box, counted, number_of, shortened, shown
from .layout_formats import ming_box, split_flux3
from .regions_json import is_workflow, load_json, parse_drawing

SLACK = 0.1  # share of the picture by which a detector's box may reach over the edge; more means another picture
ORDERS = {
    "xyxy": "[x1, y1, x2, y2]",
    "xywh": "[x, y, width, height]",
    "yxyx": "[top, left, bottom, right]",
    "cxcywh": "[centre x, centre y, width, height]",
}
UNITS = {"pixels": 0.0, "fractions": 1.0, "percent": 100.0, "thousandths": 1000.0}
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
class Raw:
    """Four numbers as they stand in the text."""

    numbers: tuple[float, float, float, float]
    order: str  # "" = not said
    unit: str  # "" = not said
    phrase: str
    thousandths_too: bool = False


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
        _, data = split_flux3(text, name)
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
    raws, unit = _with_unit(raws, size, name)
    if unit == "pixels" and size[0] is None and strict:
        raise BoxwrightError(
            f"The boxes of {name} count pixels, and the size of their picture is not known. Set width and height to it."
        )
    raws, order = _with_order(raws, size, name)
    regions = tuple(_region(raw, size, number, name) for number, raw in enumerate(raws, 1))
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
                each for each in (elements if isinstance(elements, list) else [])
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
    source = "flux3" if _is_flux3(first) else "elements" if _is_element(first) else "boxes"
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


def _is_element(entry: Any) -> bool:
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
            if key == "bbox" and _is_element(entry):
                order, unit = "yxyx", "thousandths"
            return Raw(_numbers(box, where), order, unit, phrase, key in THOUSANDTHS_TOO)
    what = "a ComfyUI workflow" if is_workflow(entry) else shown(entry)
    raise BoxwrightError(
        f"{where} is {what}, in which no box was found. Write x, y, width and height, or bbox and four numbers."
    )


def _numbers(values: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    return tuple(number_of(value, where) for value in values)


def _phrase_of(entry: Mapping[str, Any], where: str) -> str:
    metadata = entry.get("metadata")
    inner = metadata if isinstance(metadata, Mapping) else {}
    texts = [entry.get("phrase"), entry.get("desc"), inner.get("desc"), entry.get("text"), inner.get("text")]
    texts += [entry.get(key) for key in PHRASES[3:]]
    for text in texts:
        if isinstance(text, str) and text.strip():
            return checked_phrase(text, f"The phrase of {where[0].lower()}{where[1:]}")
    return ""


def _with_unit(raws: list[Raw], size: tuple[int | None, int | None], name: str) -> tuple[list[Raw], str]:
    open_ones = [raw for raw in raws if not raw.unit]
    if open_ones:
        largest = max(abs(number) for raw in open_ones for number in raw.numbers)
        if largest <= 1.0 + ROUNDING:
            unit = "fractions"
        elif largest < 2.0:
            raise BoxwrightError(
                f"The largest number of {name} is {largest:g}: too large for fractions of the picture, too small for "
                "pixels. Write pixels or fractions in front of it."
            )
        else:
            unit = "pixels"
            if any(raw.thousandths_too for raw in open_ones) and largest <= 1000.0:
                unit = _pixels_or_thousandths(open_ones, size, name)
        raws = [replace(raw, unit=raw.unit or unit) for raw in raws]
    units = {raw.unit for raw in raws}
    if len(units) > 1:
        raise BoxwrightError(
            f"{name} mixes {' and '.join(sorted(units))}; boxes of one kind can be read. Write {min(units)} or "
            f"{max(units)} in front of it, or part the lists."
        )
    return raws, units.pop()


def _pixels_or_thousandths(raws: list[Raw], size: tuple[int | None, int | None], name: str) -> str:
    if size[0] and not all(_fits(replace(raw, unit="pixels"), raw.order, size) for raw in raws):
        return "thousandths"
    raise BoxwrightError(
        f"The boxes of {name} may count pixels or thousandths; models write both under this key. Write pixels or "
        "thousandths in front of it."
    )


def _with_order(raws: list[Raw], size: tuple[int | None, int | None], name: str) -> tuple[list[Raw], str]:
    open_ones = [raw for raw in raws if not raw.order]
    if open_ones:
        if open_ones[0].unit == "pixels" and size[0] is None:
            return [replace(raw, order=raw.order or "xyxy") for raw in raws], "xyxy"  # told once the size is known
        fitting = [order for order in ("xyxy", "xywh") if all(_fits(raw, order, size) for raw in open_ones)]
        numbers = shortened(str([_plain(number) for number in open_ones[0].numbers]), 60)
        if len(fitting) > 1:
            raise BoxwrightError(
                f"The boxes of {name} may be [x1, y1, x2, y2] or [x, y, width, height]: both fit, as {numbers} shows. "
                "Write xyxy or xywh in front of the text."
            )
        if not fitting:
            raise BoxwrightError(
                f"The boxes of {name} fit the picture neither as [x1, y1, x2, y2] nor as [x, y, width, height], as "
                f"{numbers} shows. Set width and height to the picture's, or write yxyx or cxcywh in front of the text."
            )
        raws = [replace(raw, order=raw.order or fitting[0]) for raw in raws]
    orders = {raw.order for raw in raws}
    if len(orders) > 1:
        raise BoxwrightError(
            f"{name} mixes {' and '.join(ORDERS[order] for order in sorted(orders))}; boxes of one kind can be read. "
            "Part the lists."
        )
    return raws, orders.pop()


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() else number


def _sides(raw: Raw, order: str, size: tuple[int | None, int | None]) -> tuple[float, float, float, float]:
    """left, top, width, height in fractions."""
    across, down = (UNITS[raw.unit] or side for side in size)
    a, b, c, d = raw.numbers
    if order == "xyxy":
        left, top, width, height = a, b, c - a, d - b
    elif order == "yxyx":
        left, top, width, height = b, a, d - b, c - a
    elif order == "cxcywh":
        left, top, width, height = a - c / 2, b - d / 2, c, d
    else:
        left, top, width, height = a, b, c, d
    return left / across, top / down, width / across, height / down


def _fits(raw: Raw, order: str, size: tuple[int | None, int | None]) -> bool:
    left, top, width, height = _sides(raw, order, size)
    return (
        min(width, height) > 0.0
        and min(left, top) >= -SLACK
        and max(left + width, top + height) <= 1.0 + SLACK
    )


def _region(raw: Raw, size: tuple[int | None, int | None], number: int, name: str) -> Region:
    where = f"Box {number} of {name}"
    if raw.unit == "pixels" and size[0] is None:
        return Region(raw.phrase, Box(0.0, 0.0, 1.0, 1.0))  # only whether the text can be read is asked here
    left, top, width, height = _sides(raw, raw.order, size)
    check_size(width, height, where)
    slack = ROUNDING if raw.unit == "thousandths" else SLACK
    if min(left, top) < -slack or max(left + width, top + height) > 1.0 + slack:
        numbers = shortened(str([_plain(each) for each in raw.numbers]), 60)
        remedy = (
            f" of {size[0]} x {size[1]}; set width and height to the picture's" if raw.unit == "pixels" else ", 0 to 1"
        )
        raise BoxwrightError(
            f"{where}: {numbers} as {ORDERS[raw.order]} in {raw.unit} reaches outside the image{remedy}."
        )
    return Region(raw.phrase, clipped_box(left, top, width, height, where))
