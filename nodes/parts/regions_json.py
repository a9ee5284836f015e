"""Regions as JSON text, our own format, and back. The text is untrusted; see web/docs/BoxwrightRegions.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...attention_patches.core.regions import OPTIONS
from ...attention_patches.core.types import MAX_LORA, Box, BoxwrightError, Region
from .checks import (
    ROUNDING,
    check_count,
    check_size,
    checked_file,
    checked_phrase,
    clipped_box,
    counted,
    number_of,
    ranged,
    shortened,
    shown,
)
from .shapes import BOX_KEYS, area_of, checked_shape, outline_of

FORMAT_TYPE = "boxwright.regions"
FORMAT_VERSION = 1
MAX_TEXT = 1_000_000  # characters of JSON
MAX_DEPTH = 32  # levels of nesting; ours has 3, the rest is room for unknown keys
COLOR = re.compile("#[0-9a-fA-F]{6}")

# Optional keys of one region, checked here, once. Those of OPTIONS become fields of the Region; absent (or null) means
# the field's default. Every other key of the user's JSON is kept in Region.extra as it is.
FRACTIONS = ("start", "end", "feather", "opacity")  # 0 to 1
FRAMES = ("start_frame", "end_frame")
MAX_FRAMES = 1_000_000
FLAGS = ("enabled", "locked", "hidden")  # the last two concern the editor only


def parse_regions_json(text: str) -> tuple[Region, ...]:
    """Our JSON (fractions of the image, see web/docs/BoxwrightRegions.md) -> regions, at least one.

    Keys that no field stands for go to Region.extra; regions that are not enabled are left out. Raises BoxwrightError.
    """
    entries = _entries(_layout_object(text))
    if not entries:
        raise BoxwrightError(
            '"regions" in regions_json must be a list with at least one region; it is []. '
            "Add a region, or empty regions_json and connect boxes or masks."
        )
    regions = _enabled(_region_from_json(entry, number) for number, entry in enumerate(entries, 1))
    if not regions:
        raise BoxwrightError(
            f"Every region of regions_json is switched off ({counted(len(entries), 'region')}). Switch one on: take "
            '"enabled": false away.'
        )
    return regions


@dataclass(frozen=True)
class Drawing:
    """What the box editor's text holds."""

    regions: tuple[Region, ...]  # those that are enabled; a phrase may still be ""
    count: int  # of all regions, switched-off ones too
    upstream: str  # the fingerprint of the connected boxes that were last taken over, or ""


def parse_drawing(text: str) -> Drawing:
    """The box editor's text: our JSON, which may hold no region and regions without a phrase; "" = nothing drawn yet.

    Raises BoxwrightError.
    """
    if not text.strip():
        return Drawing((), 0, "")
    data = _layout_object(text)
    entries = _entries(data)
    regions = _enabled(_region_from_json(entry, number, unnamed=True) for number, entry in enumerate(entries, 1))
    upstream = data.get("upstream")
    return Drawing(regions, len(entries), upstream if isinstance(upstream, str) else "")


def regions_to_json(regions: Sequence[Region]) -> str:
    """The text that parse_regions_json reads back as the same regions; one line per region.

    A mask that no shape of ours has made becomes paint: cells of 52 levels, at most 512 each way.
    """
    rows = [json.dumps(_region_to_json(region), ensure_ascii=False, allow_nan=False) for region in regions]
    body = ",\n  ".join(rows)
    return f'{{"type": "{FORMAT_TYPE}", "version": {FORMAT_VERSION}, "regions": [\n  {body}\n]}}'


def is_ours(text: str) -> bool:
    """Whether a text starts as our layouts do; any other may be a layout of another program."""
    return '"regions"' in text and text.lstrip().startswith("{")


def load_json(text: str, name: str = "regions_json") -> Any:
    """json.loads for text that may be hostile: size, depth, NaN and infinities are checked. `name`: of the input.

    Raises BoxwrightError.
    """
    if len(text) > MAX_TEXT:
        raise BoxwrightError(
            f"{name} is {len(text)} characters long; at most {MAX_TEXT} are read. Remove what is not a region."
        )

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise BoxwrightError(f"{name} holds the number {shown(digits)}, which is too large. Replace it.")
        return value

    def refused(constant: str) -> float:
        raise BoxwrightError(f"{name} holds {constant}; only ordinary numbers are allowed. Replace it.")

    try:
        data = json.loads(text, parse_constant=refused, parse_float=finite)
    except json.JSONDecodeError as error:
        raise BoxwrightError(
            f"{name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. Mend it there."
        ) from error
    except RecursionError:
        raise _too_deep(name) from None
    except BoxwrightError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise BoxwrightError(f"{name} holds a number that cannot be read: {error}.") from error
    if not _shallower_than(data, MAX_DEPTH):
        raise _too_deep(name)
    return data


def _layout_object(text: str) -> dict[str, Any]:
    """The outermost object of our JSON, its type and version checked."""
    data = load_json(text)
    if not isinstance(data, dict) or data.get("type") != FORMAT_TYPE:
        raise BoxwrightError(
            f"regions_json is not a Boxwright layout: it looks like {_kind_of_json(data)}. It must start with "
            f'{{"type": "{FORMAT_TYPE}", "version": {FORMAT_VERSION}, "regions": [...]}}.'
        )
    _check_version(data.get("version"))
    return data


def _entries(data: dict[str, Any]) -> list[Any]:
    entries = data.get("regions")
    if not isinstance(entries, list):
        raise BoxwrightError(
            f'"regions" in regions_json must be a list with at least one region; it is {shown(entries)}. '
            "Add a region, or empty regions_json and connect boxes or masks."
        )
    check_count(len(entries), "regions_json holds")
    return entries


def _enabled(regions: Iterable[Region]) -> tuple[Region, ...]:
    return tuple(region for region in regions if region.enabled)


def _too_deep(name: str) -> BoxwrightError:
    return BoxwrightError(
        f"{name} is nested more than {MAX_DEPTH} levels deep; a layout needs 3. Remove the nested part."
    )


def _shallower_than(data: Any, limit: int) -> bool:
    """Whether JSON data nests at most `limit` lists and objects; recurses no deeper than that."""
    if not isinstance(data, (dict, list)):
        return True
    children = data.values() if isinstance(data, dict) else data
    return limit > 0 and all(_shallower_than(child, limit - 1) for child in children)


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BoxwrightError(
            f'"version" in regions_json must be {FORMAT_VERSION}; it is {shown(version)}. Write '
            f'"version": {FORMAT_VERSION}.'
        )
    if version > FORMAT_VERSION:
        raise BoxwrightError(
            f"regions_json has version {shown(version)}, from a newer Boxwright; this one reads version "
            f"{FORMAT_VERSION}. Update the Boxwright pack."
        )


def _kind_of_json(data: Any) -> str:
    """What foreign JSON probably is, in words for an error message."""
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(data, dict):
        if "regions" in data:
            return f'a layout whose "type" is {shown(data.get("type"))}'
        if "compositional_deconstruction" in data:
            return "a JSON prompt (connect its elements to the elements socket)"
        if is_workflow(data):
            return "a ComfyUI workflow"
        return _describe_entry(data)
    if isinstance(first, dict):
        return f"a list whose first entry is {_describe_entry(first)}"
    return shown(data)


def is_workflow(data: Mapping[str, Any]) -> bool:
    """Whether this is a graph of the host, as it is saved or as it is sent."""
    return "nodes" in data or any(isinstance(node, dict) and "class_type" in node for node in data.values())


def _describe_entry(entry: dict[str, Any]) -> str:
    if "bbox" in entry:
        return "an element (connect such lists to the elements socket)"
    if {"x", "y", "width", "height"} <= entry.keys():
        return "a bare box or region (boxes in pixels go to the bounding_boxes socket)"
    return f"an object with the keys {shown(sorted(entry))}"


def _region_from_json(entry: Any, number: int, unnamed: bool = False) -> Region:
    """One entry of "regions". `unnamed`: whether the phrase may be empty."""
    where = f"Region {number} of regions_json"
    if not isinstance(entry, dict):
        raise BoxwrightError(f'{where} must be an object like {{"phrase": ..., "x": ...}}; it is {shown(entry)}.')
    missing = [key for key in ("phrase", "x", "y", "width", "height") if key not in entry]
    if missing:
        raise BoxwrightError(f"{where} lacks {', '.join(missing)}. Add what is missing.")
    extra = dict(entry)
    phrase = extra.pop("phrase")
    if not (unnamed and phrase == ""):
        phrase = checked_phrase(phrase, f"The phrase of region {number} of regions_json")
    where = f'{where} ("{shortened(phrase, 40)}")'
    x, y, width, height = (number_of(extra.pop(key), f"{where}: {key}") for key in ("x", "y", "width", "height"))
    given = extra.pop("strength", None)
    strength = Region.strength if given is None else _share(given, where, "strength", "1 is full strength, 0 is off")
    _check_options(extra, where)
    options = {option.name: extra.pop(option.name) for option in OPTIONS if option.name in extra}
    area = box = _box_inside_image(x, y, width, height, where)
    if extra.get("shape") is not None:
        area = area_of(checked_shape(extra["shape"], where), box, where)
        extra |= {key: getattr(box, key) for key in BOX_KEYS}  # see shapes.outline_of
    else:
        extra.pop("shape", None)
    return Region(phrase, area, strength, extra, **options)


def _check_options(extra: dict[str, Any], where: str) -> None:
    """Check the optional keys we know, in place: numbers become floats, a null is taken out."""
    for key in {*FLAGS, *(option.name for option in OPTIONS)}:
        if key in extra and extra[key] is None:
            del extra[key]
    for key in set(FRACTIONS) & extra.keys():
        extra[key] = _share(extra[key], where, key)
    start, end = extra.get("start", 0.0), extra.get("end", 1.0)
    if start >= end:
        raise BoxwrightError(
            f"{where}: start {start:g} must lie below end {end:g}; 0 is the first step, 1 after the last."
        )
    for key in set(FRAMES) & extra.keys():
        value = number_of(extra[key], f"{where}: {key}")
        if not value.is_integer() or not 0 <= value <= MAX_FRAMES:
            raise BoxwrightError(
                f"{where}: {key} must be a whole number of frames from 0 to {MAX_FRAMES}; it is {shown(extra[key])}."
            )
        extra[key] = int(value)
    if extra.get("start_frame", 0) >= extra.get("end_frame", MAX_FRAMES + 1):
        raise BoxwrightError(
            f"{where}: start_frame {extra.get('start_frame', 0)} must lie below end_frame {extra['end_frame']}; frames "
            "count from 0, and the region ends before end_frame."
        )
    for key in set(FLAGS) & extra.keys():
        if not isinstance(extra[key], bool):
            raise BoxwrightError(f"{where}: {key} must be true or false; it is {shown(extra[key])}.")
    negative = extra.get("negative", "")
    if not isinstance(negative, str):
        raise BoxwrightError(f"{where}: negative must be text; it is {shown(negative)}.")
    if "negative" in extra:
        extra["negative"] = checked_phrase(negative, f"{where}: negative") if negative.strip() else ""
    if extra.get("lora"):
        extra["lora"] = checked_file(extra["lora"], f"{where}: lora")
    elif extra.get("lora", "") != "":
        raise BoxwrightError(f"{where}: lora must be the name of a file; it is {shown(extra['lora'])}.")
    if "lora_strength" in extra:
        extra["lora_strength"] = ranged(extra["lora_strength"], f"{where}: lora_strength", -MAX_LORA, MAX_LORA)
    if "color" in extra and not (isinstance(extra["color"], str) and COLOR.fullmatch(extra["color"])):
        raise BoxwrightError(
            f'{where}: color must look like "#e69f00"; it is {shown(extra["color"])}. Take it away '
            "for an automatic one."
        )


def _share(value: Any, where: str, key: str, hint: str = "choose a number in that range") -> float:
    """A number from 0 to 1, up to float rounding. The editor shows one that is not as the nearest that is, and says so
    (RANGES in web/editor/model/json.js)."""
    number = number_of(value, f"{where}: {key}")
    if not -ROUNDING <= number <= 1.0 + ROUNDING:
        raise BoxwrightError(f"{where}: {key} {number:g} is outside 0 to 1; {hint}.")
    return min(max(number, 0.0), 1.0)


def _box_inside_image(x: float, y: float, width: float, height: float, where: str) -> Box:
    """A Box from fractions that must lie inside the image, up to float rounding."""
    check_size(width, height, where)
    for axis, start, length, size in (("x", x, width, "width"), ("y", y, height, "height")):
        if start < -ROUNDING or start + length > 1.0 + ROUNDING:
            raise BoxwrightError(
                f"{where}: {axis} {start:g} with {size} {length:g} reaches outside the image, which spans 0 to 1. "
                f"Choose {axis} of at least 0 and {axis} + {size} of at most 1 (fractions, not pixels)."
            )
    return clipped_box(x, y, width, height, where)


def _region_to_json(region: Region) -> dict[str, Any]:
    shape, box = outline_of(region)
    known = {
        "phrase": region.phrase,
        "x": box.x,
        "y": box.y,
        "width": box.width,
        "height": box.height,
        "strength": region.strength,
    }
    if shape is not None:
        known["shape"] = shape
    options = ((option, getattr(region, option.name)) for option in OPTIONS)
    known |= {option.name: value for option, value in options if value != option.default}
    others = {key: value for key, value in region.extra.items() if key != "shape"}
    return known | others | known  # our keys first and last: their order, and never overruled
