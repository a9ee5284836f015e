"""Boxes as they stand in a text of any origin, and what their numbers mean: the order and the unit.

layout_import.py says the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import ROUNDING, check_size, clipped_box, shortened

SLACK = 0.1  # share of the picture by which a detector's box may reach over the edge; more means another picture
ORDERS = {
    "xyxy": "[x1, y1, x2, y2]",
    "xywh": "[x, y, width, height]",
    "yxyx": "[top, left, bottom, right]",
    "cxcywh": "[centre x, centre y, width, height]",
}
UNITS = {"pixels": 0.0, "fractions": 1.0, "percent": 100.0, "thousandths": 1000.0}


@dataclass(frozen=True)
class Raw:
    """Four numbers as they stand in the text."""

    numbers: tuple[float, float, float, float]
    order: str  # "" = not said
    unit: str  # "" = not said
    phrase: str
    thousandths_too: bool = False


def with_unit(raws: list[Raw], size: tuple[int | None, int | None], name: str) -> tuple[list[Raw], str]:
    """The boxes with the unit of each, and that unit. Raises BoxwrightError where it cannot be told."""
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


def with_order(raws: list[Raw], size: tuple[int | None, int | None], name: str) -> tuple[list[Raw], str]:
    """The boxes with the order of each, and that order. Raises BoxwrightError where it cannot be told."""
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
    assert across is not None and down is not None  # pixels of a picture of unknown size have been refused
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
    return min(width, height) > 0.0 and min(left, top) >= -SLACK and max(left + width, top + height) <= 1.0 + SLACK


def region_of(raw: Raw, size: tuple[int | None, int | None], number: int, name: str) -> Region:
    """The region of a box whose order and unit are known. Raises BoxwrightError."""
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
