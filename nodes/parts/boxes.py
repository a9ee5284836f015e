"""Wire data -> regions, and back: the host's BOUNDING_BOX and ARRAY values, MASK batches.

Everything that enters here is untrusted. What leaves is in fractions of the image, checked, and never asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import (
    ROUNDING,
    check_count,
    check_size,
    checked_phrase,
    clipped_box,
    counted,
    number_of,
    own_text,
    shortened,
    shown,
)
from .layout_import import is_element, read_layout
from .regions_json import is_ours, parse_regions_json
from .shapes import as_drawn, bounding_box

ELEMENT_SCALE = 1000.0  # the host writes ARRAY elements on 0..1000, whatever the picture's size

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
    """All regions of one layout, 1 to MAX_REGIONS: first the text's, then boxes, elements and masks, each in order.

    `regions_json`: our JSON, or any text that layout_import reads; the boxes of the latter are named like connected
    ones. `phrases`: lines for the areas that came without text (see name_regions). None = nothing is connected there.
    `width`, `height`: pixels of the picture that boxes in pixels were measured on. `frame`: see from_bounding_boxes.
    Raises BoxwrightError.
    """
    ours = is_ours(regions_json)
    written = parse_regions_json(regions_json) if ours else ()
    wired: tuple[Region, ...] = ()
    if not ours and regions_json.strip():
        wired += read_layout(regions_json, width, height, "regions_json").regions
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
    check_count(len(regions), "All inputs together hold")
    return regions


def from_anything(value: Any, width: int, height: int) -> tuple[Region, ...]:
    """Regions from any value that holds areas; the phrase is "" where there is no text.

    `value`: regions, BOUNDING_BOX (of frames, the first), elements, masks, or a text that layout_import reads. A mask
    that is a full rectangle becomes a box. `width`, `height`: see from_bounding_boxes. Raises BoxwrightError.
    """
    if isinstance(value, Tensor):
        painted = from_masks(value)
        _refuse_empty_masks(painted)
        return tuple(as_drawn(region) for region in painted)
    if isinstance(value, str):
        return read_layout(value, width, height, "boxes").regions
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, Region) for entry in value):
        return tuple(as_drawn(region) for region in value)
    entries = value if isinstance(value, (list, tuple)) else [value]
    first = entries[0] if entries else None
    if isinstance(first, Mapping) and "bbox" in first:
        if is_element(first):
            return from_elements(list(entries))
        return read_layout(json.dumps(list(entries), default=float), width, height, "boxes").regions
    return from_bounding_boxes(value, width, height)


def to_bounding_boxes(regions: Sequence[Region], width: int, height: int) -> list[list[dict[str, Any]]]:
    """The boxes around regions as one frame of the host's BOUNDING_BOX: whole pixels of a `width` x `height` picture,
    inside it, none thinner than one pixel; the phrase is the description."""
    frame = []
    for region in regions:
        box = bounding_box(region)
        left, top = min(round(box.x * width), width - 1), min(round(box.y * height), height - 1)
        right, bottom = round((box.x + box.width) * width), round((box.y + box.height) * height)
        palette = [region.color] if region.color else []
        frame.append(
            {
                "x": left,
                "y": top,
                "width": max(1, right - left),
                "height": max(1, bottom - top),
                "metadata": {"type": "obj", "text": "", "desc": region.phrase, "palette": palette},
            }
        )
    return [frame]


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
    check_count(len(boxes), "bounding_boxes holds")
    return tuple(_region_from_pixels(box, width, height, number) for number, box in enumerate(boxes, 1))


def _boxes_of_frame(value: Any, frame: int) -> list[Any]:
    """The boxes of one frame, not yet looked at, from any shape a BOUNDING_BOX wire carries."""
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise BoxwrightError(
            f"bounding_boxes must be a box, a list of boxes or a list of frames; it is {shown(value)}. Connect a "
            "node with a BOUNDING_BOX output."
        )
    if not value or not isinstance(value[0], (list, tuple)):
        return list(value)
    if not 0 <= frame < len(value):
        raise BoxwrightError(
            f"frame {frame} does not exist: bounding_boxes holds {counted(len(value), 'frame')}, counted from 0."
        )
    if not isinstance(value[frame], (list, tuple)):
        raise BoxwrightError(f"Frame {frame} of bounding_boxes must be a list of boxes; it is {shown(value[frame])}.")
    return list(value[frame])


def _region_from_pixels(box: Any, width: int, height: int, number: int) -> Region:
    where = f"Box {number} of bounding_boxes"
    keys = ("x", "y", "width", "height")
    if not isinstance(box, Mapping) or any(key not in box for key in keys):
        raise BoxwrightError(f"{where} must have x, y, width and height; it is {shown(box)}.")
    left, top, across, down = (number_of(box[key], f"{where}: {key}") for key in keys)
    check_size(across, down, where)
    metadata = box.get("metadata")
    texts = metadata if isinstance(metadata, Mapping) else {}
    phrase = own_text(where, texts.get("desc"), texts.get("text"), box.get("label"))
    where = f"{where}, on a picture of {width} x {height} pixels,"
    return Region(phrase, clipped_box(left / width, top / height, across / width, down / height, where))


def from_elements(value: Any) -> tuple[Region, ...]:
    """The host's ARRAY of elements -> regions; the phrase is "" where an element carries no text.

    An element is {"bbox": [ymin, xmin, ymax, xmax] on 0..1000, "desc": ..., "text": ...}. Raises BoxwrightError.
    """
    if not isinstance(value, (list, tuple)):
        raise BoxwrightError(f"elements must be a list of elements; it is {shown(value)}.")
    if not value:
        raise BoxwrightError("elements is connected but holds no element. Draw a box, or disconnect it.")
    check_count(len(value), "elements holds")
    return tuple(_region_from_element(element, number) for number, element in enumerate(value, 1))


def _region_from_element(element: Any, number: int) -> Region:
    where = f"Element {number} of elements"
    bbox = element.get("bbox") if isinstance(element, Mapping) else None
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        raise BoxwrightError(
            f"{where} must have a bbox [ymin, xmin, ymax, xmax]; it is {shown(element)}. Boxes with x, y, width and "
            "height go to the bounding_boxes socket."
        )
    ymin, xmin, ymax, xmax = (number_of(value, f"{where}: bbox") / ELEMENT_SCALE for value in bbox)
    if ymax <= ymin or xmax <= xmin:
        raise BoxwrightError(
            f"{where}: bbox {shown(bbox)} is empty or turned around; the order is [ymin, xmin, ymax, xmax] with "
            "ymin below ymax and xmin below xmax."
        )
    if min(ymin, xmin) < -ROUNDING or max(ymax, xmax) > 1.0 + ROUNDING:
        raise BoxwrightError(f"{where}: bbox {shown(bbox)} reaches outside 0 to {ELEMENT_SCALE:g}, the whole image.")
    # In the host's editor `desc` says what the thing is, as a prompt would; `text` is lettering to be written in the
    # picture, and exists for elements of type "text" only. So `text` serves when nothing else was said.
    phrase = own_text(where, element.get("desc"), element.get("text"))
    return Region(phrase, clipped_box(xmin, ymin, xmax - xmin, ymax - ymin, where))


def from_masks(masks: Tensor) -> tuple[Region, ...]:
    """A MASK [B, H, W] or [H, W] of any size -> one region per mask, all with the phrase "".

    Soft edges are kept; values are clamped into [0, 1]. Raises BoxwrightError.
    """
    if not isinstance(masks, Tensor) or masks.ndim not in (2, 3):
        shape = list(masks.shape) if isinstance(masks, Tensor) else shown(masks)
        raise BoxwrightError(f"masks must have the shape [B, H, W] or [H, W]; it is {shape}.")
    batch = masks if masks.ndim == 3 else masks[None]
    if batch.numel() == 0:
        raise BoxwrightError(
            f"masks is connected but has no pixels: its shape is {list(masks.shape)}. Connect a painted mask, or "
            "disconnect it."
        )
    check_count(len(batch), "masks holds")
    batch = batch.to(torch.float32)
    for number, mask in enumerate(batch, 1):
        if not bool(torch.isfinite(mask).all()):
            raise BoxwrightError(
                f"Mask {number} holds NaN or infinite values; a mask is made of numbers from 0 to 1. "
                "Look at the node that made it."
            )
    return tuple(Region("", mask) for mask in batch.clamp(0.0, 1.0))


def _refuse_empty_masks(regions: Sequence[Region]) -> None:
    for number, region in enumerate(regions, 1):
        if not isinstance(region.area, Box) and not bool(region.area.any()):
            raise BoxwrightError(
                f'Mask {number} ("{shortened(region.phrase, 40)}") is empty: every pixel is 0. Paint it, or remove it '
                "together with its line in phrases."
            )


def name_regions(regions: Sequence[Region], phrases: str) -> tuple[Region, ...]:
    """The same regions with the lines of `phrases` as their phrases; blank lines do not count.

    As many lines as regions: each region gets its line, also where it had a text. As many lines as regions without
    a text: those get them, in order. Any other number raises BoxwrightError.
    """
    lines = [line.strip() for line in phrases.splitlines() if line.strip()]
    if lines and not regions:
        raise BoxwrightError(
            f"phrases has {counted(len(lines), 'line')}, and no area is connected that could take it. Clear phrases, "
            "or connect bounding_boxes, elements or masks. (Regions of regions_json have their phrases there.)"
        )
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
            region = replace(region, phrase=checked_phrase(next(supply), f"The line for area {number} in phrases"))
        named.append(region)
    return tuple(named)
