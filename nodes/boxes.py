"""Wire data -> regions, and back: our JSON, the host's BOUNDING_BOX and ARRAY values, MASK batches.

Everything that enters here is untrusted. What leaves is in fractions of the image, checked, and never asked again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..attention_patches.types import MAX_PHRASE, MAX_REGIONS, Box, BoxwrightError, Region, StepWindow

FORMAT_TYPE = "boxwright.regions"
FORMAT_VERSION = 1
MAX_TEXT = 1_000_000  # characters of JSON
MAX_DEPTH = 32  # levels of nesting; ours has 3, the rest is room for unknown keys
ROUNDING = 1e-6  # fractions of the image: what may stick out of it, and what is too thin to be a box
COLOR = re.compile("#[0-9a-fA-F]{6}")
ELEMENT_SCALE = 1000.0  # the host writes ARRAY elements on 0..1000, whatever the picture's size

# Keys of one region that are checked here, once, and then stand in Region.extra as these types. Absent (or null) means
# that the node which uses the region decides. Every other key of the user's JSON is kept as it is.
FRACTIONS = ("start", "end", "feather")  # floats, 0 to 1: schedule window (see StepWindow), ramp outside the box
FLAGS = ("enabled", "locked", "hidden")  # enabled: false = the region takes no part; the others concern the editor only
# Besides: "negative", text of at most MAX_PHRASE characters; "color", "#rrggbb".

EXAMPLE_REGIONS = (
    Region("red heart", Box(0.1, 0.1, 0.35, 0.35)),
    Region("blue star", Box(0.55, 0.55, 0.35, 0.35)),
)


def collect_regions(
    regions_json: str,
    phrases: str,
    width: int,
    height: int,
    bounding_boxes: Any = None,
    elements: Any = None,
    masks: Tensor | None = None,
    frame: int = 0,
) -> tuple[Region, ...]:
    """All regions of one layout, 1 to MAX_REGIONS: first the JSON's, then boxes, elements and masks, each in order.

    `phrases`: lines for the areas that came without text (see name_regions). None = nothing is connected there.
    `width`, `height`: pixels of the picture that `bounding_boxes` was measured on. `frame`: see from_bounding_boxes.
    Raises BoxwrightError.
    """
    written = parse_regions_json(regions_json) if regions_json.strip() else ()
    wired: tuple[Region, ...] = ()
    if bounding_boxes is not None:
        wired += from_bounding_boxes(bounding_boxes, width, height, frame)
    if elements is not None:
        wired += from_elements(elements)
    painted = from_masks(masks) if masks is not None else ()
    named = name_regions(wired + painted, phrases)
    _refuse_empty_masks(named[len(wired) :])
    regions = written + named
    if not regions:
        raise BoxwrightError(
            "There is no region. Write at least one in regions_json, or connect bounding_boxes, elements or masks."
        )
    _check_count(len(regions), "All inputs together hold")
    return regions


def parse_regions_json(text: str) -> tuple[Region, ...]:
    """Our JSON (fractions of the image, see web/docs/BoxwrightRegions.md) -> regions, at least one.

    Further keys of a region go to Region.extra, checked where we know them; regions that are not enabled are left out.
    Raises BoxwrightError.
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


def from_anything(value: Any, width: int, height: int) -> tuple[Region, ...]:
    """Regions from any value that holds boxes; the phrase is "" where there is no text.

    `value`: regions, BOUNDING_BOX (of frames, the first), elements, any of these as JSON text, our JSON, or masks. A
    painted mask becomes the box around its pixels of at least one half. `width`, `height`: see from_bounding_boxes.
    Raises BoxwrightError.
    """
    if isinstance(value, Tensor):
        return tuple(replace(region, area=_box_around(region, number))
                     for number, region in enumerate(from_masks(value), 1))
    if isinstance(value, str):
        value = _load_json(value)
        if isinstance(value, dict) and "regions" in value:
            return parse_drawing(json.dumps(value)).regions
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, Region) for entry in value):
        return tuple(replace(region, area=_box_around(region, number)) for number, region in enumerate(value, 1))
    entries = value if isinstance(value, (list, tuple)) else [value]
    if entries and isinstance(entries[0], Mapping) and "bbox" in entries[0]:
        return from_elements(list(entries))
    return from_bounding_boxes(value, width, height)


def _box_around(region: Region, number: int) -> Box:
    if isinstance(region.area, Box):
        return region.area
    height, width = region.area.shape
    rows, columns = (region.area >= 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise BoxwrightError(f"Mask {number} has no pixel of one half or more, so there is no box around it. Paint it.")
    left, top = int(columns.min()), int(rows.min())
    across, down = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
    return Box(left / width, top / height, across / width, down / height)


def to_bounding_boxes(regions: Sequence[Region], width: int, height: int) -> list[list[dict[str, Any]]]:
    """Boxes as one frame of the host's BOUNDING_BOX: whole pixels of a `width` x `height` picture, inside it, none
    thinner than one pixel; the phrase is the description."""
    frame = []
    for region in regions:
        box = region.area
        left, top = min(round(box.x * width), width - 1), min(round(box.y * height), height - 1)
        right, bottom = round((box.x + box.width) * width), round((box.y + box.height) * height)
        color = region.extra.get("color")
        frame.append({
            "x": left,
            "y": top,
            "width": max(1, right - left),
            "height": max(1, bottom - top),
            "metadata": {"type": "obj", "text": "", "desc": region.phrase, "palette": [color] if color else []},
        })
    return [frame]


def _layout_object(text: str) -> dict[str, Any]:
    """The outermost object of our JSON, its type and version checked."""
    data = _load_json(text)
    if not isinstance(data, dict) or data.get("type") != FORMAT_TYPE:
        raise BoxwrightError(
            f'regions_json is not a Boxwright layout: it looks like {_kind_of_json(data)}. It must start with '
            f'{{"type": "{FORMAT_TYPE}", "version": {FORMAT_VERSION}, "regions": [...]}}.'
        )
    _check_version(data.get("version"))
    return data


def _entries(data: dict[str, Any]) -> list[Any]:
    entries = data.get("regions")
    if not isinstance(entries, list):
        raise BoxwrightError(
            f'"regions" in regions_json must be a list with at least one region; it is {_shown(entries)}. '
            "Add a region, or empty regions_json and connect boxes or masks."
        )
    _check_count(len(entries), "regions_json holds")
    return entries


def _enabled(regions: Iterable[Region]) -> tuple[Region, ...]:
    return tuple(region for region in regions if region.extra.get("enabled", True))


def regions_to_json(regions: Sequence[Region]) -> str:
    """The text that parse_regions_json reads back as the same regions; one line per region.

    Raises BoxwrightError for a painted region: masks are too big to be text.
    """
    rows = [
        json.dumps(_region_to_json(region, number), ensure_ascii=False, allow_nan=False)
        for number, region in enumerate(regions, 1)
    ]
    body = ",\n  ".join(rows)
    return f'{{"type": "{FORMAT_TYPE}", "version": {FORMAT_VERSION}, "regions": [\n  {body}\n]}}'


def from_bounding_boxes(value: Any, width: int, height: int, frame: int = 0) -> tuple[Region, ...]:
    """The host's BOUNDING_BOX -> regions; the phrase is "" where the box carries no text.

    `value`: {"x", "y", "width", "height"} in pixels of a `width` x `height` picture, a list of them, or a list of
    frames (lists of them), of which number `frame` is taken; a value without frames holds for every frame. Text is
    `metadata.desc`, `metadata.text` or `label`. Boxes that reach over the picture's edge are cut there, as detectors
    give such boxes for things at the edge; boxes wholly outside are refused. Raises BoxwrightError.
    """
    if width < 1 or height < 1:
        raise BoxwrightError(f"width {width} and height {height} must be at least 1: the pixels of the picture.")
    boxes = _boxes_of_frame(value, frame)
    if not boxes:
        raise BoxwrightError(
            f"bounding_boxes is connected but holds no box (frame {frame}). Draw a box, lower the detector's "
            "threshold, or disconnect it."
        )
    _check_count(len(boxes), "bounding_boxes holds")
    return tuple(_region_from_pixels(box, width, height, number) for number, box in enumerate(boxes, 1))


def from_elements(value: Any) -> tuple[Region, ...]:
    """The host's ARRAY of elements -> regions; the phrase is "" where an element carries no text.

    An element is {"bbox": [ymin, xmin, ymax, xmax] on 0..1000, "desc": ..., "text": ...}. Raises BoxwrightError.
    """
    if not isinstance(value, (list, tuple)):
        raise BoxwrightError(f"elements must be a list of elements; it is {_shown(value)}.")
    if not value:
        raise BoxwrightError("elements is connected but holds no element. Draw a box, or disconnect it.")
    _check_count(len(value), "elements holds")
    return tuple(_region_from_element(element, number) for number, element in enumerate(value, 1))


def from_masks(masks: Tensor) -> tuple[Region, ...]:
    """A MASK [B, H, W] or [H, W] of any size -> one region per mask, all with the phrase "".

    Soft edges are kept; values are clamped into [0, 1]. Raises BoxwrightError.
    """
    if not isinstance(masks, Tensor) or masks.ndim not in (2, 3):
        shape = list(masks.shape) if isinstance(masks, Tensor) else _shown(masks)
        raise BoxwrightError(f"masks must have the shape [B, H, W] or [H, W]; it is {shape}.")
    batch = masks if masks.ndim == 3 else masks[None]
    if batch.numel() == 0:
        raise BoxwrightError(
            f"masks is connected but has no pixels: its shape is {list(masks.shape)}. Connect a painted mask, or "
            "disconnect it."
        )
    _check_count(len(batch), "masks holds")
    batch = batch.to(torch.float32)
    for number, mask in enumerate(batch, 1):
        if not bool(torch.isfinite(mask).all()):
            raise BoxwrightError(
                f"Mask {number} holds NaN or infinite values; a mask is made of numbers from 0 to 1. "
                "Look at the node that made it."
            )
    return tuple(Region("", mask) for mask in batch.clamp(0.0, 1.0))


def name_regions(regions: Sequence[Region], phrases: str) -> tuple[Region, ...]:
    """The same regions with the lines of `phrases` as their phrases; blank lines do not count.

    As many lines as regions: each region gets its line, also where it had a text. As many lines as regions without
    a text: those get them, in order. Any other number raises BoxwrightError.
    """
    lines = [line.strip() for line in phrases.splitlines() if line.strip()]
    unnamed = sum(not region.phrase for region in regions)
    rename_all = len(lines) == len(regions)
    if not rename_all and len(lines) != unnamed:
        need = f"{unnamed}, or {len(regions)} to name every area anew" if unnamed < len(regions) else str(unnamed)
        raise BoxwrightError(
            f"phrases has {counted(len(lines), 'line')}, but the connected areas need {need}: "
            f"{counted(len(regions), 'area')} connected, {unnamed} of them without a text of its own. "
            "Write one line per area, in order: boxes, elements, masks."
        )
    supply = iter(lines)
    named = []
    for number, region in enumerate(regions, 1):
        if rename_all or not region.phrase:
            region = replace(region, phrase=_checked_phrase(next(supply), f"The line for area {number} in phrases"))
        named.append(region)
    return tuple(named)


def _load_json(text: str) -> Any:
    """json.loads for text that may be hostile: size, depth, NaN and infinities are checked."""
    if len(text) > MAX_TEXT:
        raise BoxwrightError(
            f"regions_json is {len(text)} characters long; at most {MAX_TEXT} are read. Remove what is not a region."
        )
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except json.JSONDecodeError as error:
        raise BoxwrightError(
            f"regions_json is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. Mend it there."
        ) from error
    except RecursionError:
        raise _too_deep() from None
    except BoxwrightError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise BoxwrightError(f"regions_json holds a number that cannot be read: {error}.") from error
    if not _shallower_than(data, MAX_DEPTH):
        raise _too_deep()
    return data


def _refuse_constant(name: str) -> float:
    raise BoxwrightError(f"regions_json holds {name}; only ordinary numbers are allowed. Replace it.")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BoxwrightError(f"regions_json holds the number {_shown(digits)}, which is too large. Replace it.")
    return value


def _too_deep() -> BoxwrightError:
    return BoxwrightError(
        f"regions_json is nested more than {MAX_DEPTH} levels deep; a layout needs 3. Remove the nested part."
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
            f'"version" in regions_json must be {FORMAT_VERSION}; it is {_shown(version)}. Write '
            f'"version": {FORMAT_VERSION}.'
        )
    if version > FORMAT_VERSION:
        raise BoxwrightError(
            f"regions_json has version {_shown(version)}, from a newer Boxwright; this one reads version "
            f"{FORMAT_VERSION}. Update the Boxwright pack."
        )


def _kind_of_json(data: Any) -> str:
    """What foreign JSON probably is, in words for an error message."""
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(data, dict):
        if "regions" in data:
            return f'a layout whose "type" is {_shown(data.get("type"))}'
        if "compositional_deconstruction" in data:
            return "a JSON prompt (connect its elements to the elements socket)"
        if "nodes" in data or any(isinstance(node, dict) and "class_type" in node for node in data.values()):
            return "a ComfyUI workflow"
        return _describe_entry(data)
    if isinstance(first, dict):
        return f"a list whose first entry is {_describe_entry(first)}"
    return _shown(data)


def _describe_entry(entry: dict[str, Any]) -> str:
    if "bbox" in entry:
        return "an element (connect such lists to the elements socket)"
    if {"x", "y", "width", "height"} <= entry.keys():
        return "a bare box or region (boxes in pixels go to the bounding_boxes socket)"
    return f"an object with the keys {_shown(sorted(entry))}"


def _region_from_json(entry: Any, number: int, unnamed: bool = False) -> Region:
    """One entry of "regions". `unnamed`: whether the phrase may be empty."""
    where = f"Region {number} of regions_json"
    if not isinstance(entry, dict):
        raise BoxwrightError(f'{where} must be an object like {{"phrase": ..., "x": ...}}; it is {_shown(entry)}.')
    missing = [key for key in ("phrase", "x", "y", "width", "height") if key not in entry]
    if missing:
        raise BoxwrightError(f"{where} lacks {', '.join(missing)}. Add what is missing.")
    extra = dict(entry)
    phrase = extra.pop("phrase")
    if not (unnamed and phrase == ""):
        phrase = _checked_phrase(phrase, f"The phrase of region {number} of regions_json")
    where = f'{where} ("{shortened(phrase, 40)}")'
    x, y, width, height = (_number(extra.pop(key), f"{where}: {key}") for key in ("x", "y", "width", "height"))
    strength = _number(extra.pop("strength", Region.strength), f"{where}: strength")
    if not 0.0 <= strength <= 1.0:
        raise BoxwrightError(f"{where}: strength {strength:g} is outside 0 to 1; 1 is full strength, 0 is off.")
    _check_options(extra, where)
    return Region(phrase, _box_inside_image(x, y, width, height, where), strength, extra)


def _check_options(extra: dict[str, Any], where: str) -> None:
    """Check the optional keys we know, in place: numbers become floats, a null is taken out."""
    for key in ("negative", "color", *FRACTIONS, *FLAGS):
        if key in extra and extra[key] is None:
            del extra[key]
    for key in set(FRACTIONS) & extra.keys():
        extra[key] = _number(extra[key], f"{where}: {key}")
        if not 0.0 <= extra[key] <= 1.0:
            raise BoxwrightError(f"{where}: {key} {extra[key]:g} is outside 0 to 1. Choose a number in that range.")
    start, end = extra.get("start", 0.0), extra.get("end", 1.0)
    if start >= end:
        raise BoxwrightError(f"{where}: start {start:g} must lie below end {end:g}; 0 is the first step, 1 after the "
                             "last.")
    for key in set(FLAGS) & extra.keys():
        if not isinstance(extra[key], bool):
            raise BoxwrightError(f"{where}: {key} must be true or false; it is {_shown(extra[key])}.")
    if extra.get("negative"):
        extra["negative"] = _checked_phrase(extra["negative"], f"{where}: negative")
    elif extra.get("negative", "") != "":
        raise BoxwrightError(f"{where}: negative must be text; it is {_shown(extra['negative'])}.")
    if "color" in extra and not (isinstance(extra["color"], str) and COLOR.fullmatch(extra["color"])):
        raise BoxwrightError(f'{where}: color must look like "#e69f00"; it is {_shown(extra["color"])}. Take it away '
                             "for an automatic one.")


def region_window(region: Region, otherwise: StepWindow) -> StepWindow:
    """When a region acts: its own start and end where it has them, else those of `otherwise`.

    Raises BoxwrightError where the two together leave no time.
    """
    return StepWindow(region.extra.get("start", otherwise.start), region.extra.get("end", otherwise.end))


def _region_to_json(region: Region, number: int) -> dict[str, Any]:
    if not isinstance(region.area, Box):
        raise BoxwrightError(
            f'Region {number} ("{shortened(region.phrase, 40)}") is a painted mask, which cannot be written as JSON. '
            "Use a box for it, or pass the regions on by wire."
        )
    box = region.area
    known = {
        "phrase": region.phrase,
        "x": box.x,
        "y": box.y,
        "width": box.width,
        "height": box.height,
        "strength": region.strength,
    }
    return known | dict(region.extra) | known  # our keys first and last: their order, and never overruled


def _box_inside_image(x: float, y: float, width: float, height: float, where: str) -> Box:
    """A Box from fractions that must lie inside the image, up to float rounding."""
    _check_size(width, height, where)
    for axis, start, length, size in (("x", x, width, "width"), ("y", y, height, "height")):
        if start < -ROUNDING or start + length > 1.0 + ROUNDING:
            raise BoxwrightError(
                f"{where}: {axis} {start:g} with {size} {length:g} reaches outside the image, which spans 0 to 1. "
                f"Choose {axis} of at least 0 and {axis} + {size} of at most 1 (fractions, not pixels)."
            )
    return _clipped_box(x, y, width, height, where)


def _clipped_box(x: float, y: float, width: float, height: float, where: str) -> Box:
    """The part of a box, in fractions, that lies inside the image; refused when there is none."""
    left, top = max(x, 0.0), max(y, 0.0)
    inside_width = width if left == x and x + width <= 1.0 else min(x + width, 1.0) - left
    inside_height = height if top == y and y + height <= 1.0 else min(y + height, 1.0) - top
    if inside_width < ROUNDING or inside_height < ROUNDING:
        raise BoxwrightError(
            f"{where} lies outside the image, or all but: it spans x {x:g} to {x + width:g} and y {y:g} to "
            f"{y + height:g}, in fractions of the image. Move or enlarge it."
        )
    return Box(left, top, inside_width, inside_height)


def _check_size(width: float, height: float, where: str) -> None:
    for name, value in (("width", width), ("height", height)):
        if value <= 0.0:
            raise BoxwrightError(f"{where}: {name} {value:g} must be above 0. Give the box a size.")


def _boxes_of_frame(value: Any, frame: int) -> list[Any]:
    """The boxes of one frame, not yet looked at, from any shape a BOUNDING_BOX wire carries."""
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise BoxwrightError(
            f"bounding_boxes must be a box, a list of boxes or a list of frames; it is {_shown(value)}. Connect a "
            "node with a BOUNDING_BOX output."
        )
    if not value or not isinstance(value[0], (list, tuple)):
        return list(value)
    if not 0 <= frame < len(value):
        raise BoxwrightError(
            f"frame {frame} does not exist: bounding_boxes holds {counted(len(value), 'frame')}, counted from 0."
        )
    if not isinstance(value[frame], (list, tuple)):
        raise BoxwrightError(f"Frame {frame} of bounding_boxes must be a list of boxes; it is {_shown(value[frame])}.")
    return list(value[frame])


def _region_from_pixels(box: Any, width: int, height: int, number: int) -> Region:
    where = f"Box {number} of bounding_boxes"
    keys = ("x", "y", "width", "height")
    if not isinstance(box, Mapping) or any(key not in box for key in keys):
        raise BoxwrightError(f"{where} must have x, y, width and height; it is {_shown(box)}.")
    left, top, across, down = (_number(box[key], f"{where}: {key}") for key in keys)
    _check_size(across, down, where)
    metadata = box.get("metadata")
    texts = metadata if isinstance(metadata, Mapping) else {}
    phrase = _own_text(where, texts.get("desc"), texts.get("text"), box.get("label"))
    where = f"{where}, on a picture of {width} x {height} pixels,"
    return Region(phrase, _clipped_box(left / width, top / height, across / width, down / height, where))


def _region_from_element(element: Any, number: int) -> Region:
    where = f"Element {number} of elements"
    bbox = element.get("bbox") if isinstance(element, Mapping) else None
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        raise BoxwrightError(
            f"{where} must have a bbox [ymin, xmin, ymax, xmax]; it is {_shown(element)}. Boxes with x, y, width and "
            "height go to the bounding_boxes socket."
        )
    ymin, xmin, ymax, xmax = (_number(value, f"{where}: bbox") / ELEMENT_SCALE for value in bbox)
    if ymax <= ymin or xmax <= xmin:
        raise BoxwrightError(
            f"{where}: bbox {_shown(bbox)} is empty or turned around; the order is [ymin, xmin, ymax, xmax] with "
            "ymin below ymax and xmin below xmax."
        )
    if min(ymin, xmin) < -ROUNDING or max(ymax, xmax) > 1.0 + ROUNDING:
        raise BoxwrightError(f"{where}: bbox {_shown(bbox)} reaches outside 0 to {ELEMENT_SCALE:g}, the whole image.")
    # In the host's editor `desc` says what the thing is, as a prompt would; `text` is lettering to be written in the
    # picture, and exists for elements of type "text" only. So `text` serves when nothing else was said.
    phrase = _own_text(where, element.get("desc"), element.get("text"))
    return Region(phrase, _clipped_box(xmin, ymin, xmax - xmin, ymax - ymin, where))


def _refuse_empty_masks(regions: Sequence[Region]) -> None:
    for number, region in enumerate(regions, 1):
        if not bool(region.area.any()):
            raise BoxwrightError(
                f'Mask {number} ("{shortened(region.phrase, 40)}") is empty: every pixel is 0. Paint it, or remove it '
                "together with its line in phrases."
            )


def _own_text(where: str, *candidates: Any) -> str:
    """The first candidate that is a text with something in it, or ""; class numbers and the like are no text."""
    for text in candidates:
        if isinstance(text, str) and text.strip():
            return _checked_phrase(text, f"The text of {where[0].lower()}{where[1:]}")
    return ""


def _checked_phrase(phrase: Any, where: str) -> str:
    """The phrase without the space around it, 1 to MAX_PHRASE characters of valid Unicode."""
    if not isinstance(phrase, str):
        raise BoxwrightError(f'{where} must be text like "red heart"; it is {_shown(phrase)}.')
    if not phrase.strip():
        raise BoxwrightError(f"{where} is empty. Write the words of the prompt that belong there.")
    if len(phrase) > MAX_PHRASE:
        raise BoxwrightError(
            f"{where} is {len(phrase)} characters long ({shortened(phrase, 40)}); at most {MAX_PHRASE} are allowed. "
            "Shorten it."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in phrase):
        raise BoxwrightError(f"{where} holds half of a character pair ({_shown(phrase)}); write it anew.")
    return phrase.strip()


def _number(value: Any, where: str) -> float:
    """A finite float; booleans and texts are no numbers, numbers of numpy are."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BoxwrightError(f"{where} must be a number; it is {_shown(value)}. Write it without quotation marks.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BoxwrightError(f"{where} must be an ordinary number; it is {_shown(value)}. Replace it.")
    return number


def _check_count(count: int, holds: str) -> None:
    if count > MAX_REGIONS:
        raise BoxwrightError(f"{holds} {count} regions; at most {MAX_REGIONS} are allowed. Remove some.")


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shown(value: Any) -> str:
    """A foreign value for an error message, shortened."""
    return "missing or null" if value is None else shortened(repr(value), 80)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of one printable line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
