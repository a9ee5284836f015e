"""What the prompt of a model that reads boxes says, whichever the model, and what its formats share. Text only.

Every format counts in thousandths of the picture, so a layout comes back exact to a thousandth. What is read is
untrusted: sizes, numbers, keys and texts are checked, and what cannot be kept is named in Document.notes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import number_of, shortened, shown

GRID = 1000
OVERHANG = 0.02  # of a layer over the edge of the picture: its numbers are rounded, and models write them
HEX = re.compile(r"#[0-9a-fA-F]{6}")
MAX_TEXT_FIELD = 20_000  # characters of a prompt, background or style
PICTURE_COLORS = 16  # in a palette, at most
LETTERING = re.compile(r'(?s)(.*\S) reading "(.*)"')

# Keys of Region.extra that a prompt may hold.
PROMPT_KEYS = ("id", "from", "text", "palette", "relation")


@dataclass(frozen=True)
class Document:
    """What such a prompt says.

    `source`: of an edit, what stands in the reference picture, where it stands there; `regions`: where it shall stand.
    Keys of Region.extra: "id" (FLUX.3's name of the row), "from" (the reference picture it comes from), "text"
    (lettering to be drawn), "palette" (colours), "relation" (to other layers).
    """

    regions: tuple[Region, ...]
    source: tuple[Region, ...] | None = None  # None: no edit
    prompt: str = ""  # the whole picture in words
    background: str = ""
    style: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was left out


@dataclass(frozen=True)
class Places:
    """What a way to write a layout has places for."""

    name: str
    holds: frozenset[str]  # of "prompt", "background", "source" and PROMPT_KEYS
    styles: tuple[str, ...]  # keys of Document.style it has a place for


@dataclass(frozen=True)
class Format(Places):
    """One model's way to write a layout."""

    write: Callable[[Document, tuple[int, int] | None], str]
    read: Callable[[str], Document]


# The grid


def thousandths(box: Box) -> tuple[int, int, int, int]:
    """left, top, right, bottom in thousandths of the picture, none thinner than one."""

    def span(start: float, length: float) -> tuple[int, int]:
        low = min(round(start * GRID), GRID - 1)
        return low, max(low + 1, min(round((start + length) * GRID), GRID))

    (left, right), (top, bottom) = span(box.x, box.width), span(box.y, box.height)
    return left, top, right, bottom


def on_the_grid(left: float, top: float, right: float, bottom: float) -> Box:
    """The box of four numbers in thousandths."""
    return Box(left / GRID, top / GRID, (right - left) / GRID, (bottom - top) / GRID)


def to_bbox(box: Box) -> list[int]:
    """[top, left, bottom, right] in thousandths of the picture, as `from_bbox` reads it."""
    left, top, right, bottom = thousandths(box)
    return [top, left, bottom, right]


def from_bbox(value: Any, where: str) -> Box:
    """[top, left, bottom, right], whole numbers from 0 to 1000."""
    if not isinstance(value, list) or len(value) != 4:
        raise BoxwrightError(f"{where} must be [top, left, bottom, right]; it is {shown(value)}.")
    top, left, bottom, right = (number_of(each, where) for each in value)
    if any(not each.is_integer() or not 0 <= each <= GRID for each in (top, left, bottom, right)):
        raise BoxwrightError(f"{where} must be whole numbers from 0 to {GRID}; it is {shown(value)}.")
    if top >= bottom or left >= right:
        raise BoxwrightError(
            f"{where}: {shown(value)} is empty or turned around; the order is [top, left, bottom, right], top above "
            "bottom and left before right."
        )
    return on_the_grid(left, top, right, bottom)


# Texts, colours, keys


def compact(data: Any) -> str:
    """JSON without white space; NaN and infinities raise ValueError."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def with_lettering(region: Region) -> str:
    """The words, and the lettering as words where the format has no field of its own for it."""
    text = region.extra.get("text")
    if not text:
        return region.phrase
    return f'{region.phrase} reading "{checked_text(text, "text")}"'


def without_lettering(phrase: str) -> tuple[str, dict[str, Any]]:
    """The words without such lettering, and it as Region.extra holds it."""
    found = LETTERING.fullmatch(phrase)
    return (found[1], {"text": found[2]}) if found and found[2] else (phrase, {})


def palette_of(region: Region, limit: int) -> list[str]:
    """The region's colours, #RRGGBB in capitals. Raises BoxwrightError for others, or more than `limit`."""
    return checked_palette(region.extra.get("palette") or [], limit, f'The palette of "{shortened(region.phrase, 40)}"')


def checked_palette(value: Any, limit: int, where: str) -> list[str]:
    """Colours #RRGGBB in capitals, at most `limit`."""
    colors = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(colors, (list, tuple)) or any(
        not isinstance(each, str) or not HEX.fullmatch(each) for each in colors
    ):
        raise BoxwrightError(f'{where} must be colours like "#E69F00"; it is {shown(value)}.')
    if len(colors) > limit:
        raise BoxwrightError(f"{where} has {len(colors)} colours; at most {limit} are allowed. Remove some.")
    return [each.upper() for each in colors]


def checked_text(value: Any, where: str) -> str:
    """The text without the space around it. Raises BoxwrightError for other values, and above MAX_TEXT_FIELD."""
    if not isinstance(value, str):
        raise BoxwrightError(f"{where} must be text; it is {shown(value)}.")
    if len(value) > MAX_TEXT_FIELD:
        raise BoxwrightError(f"{where} is {len(value)} characters long; at most {MAX_TEXT_FIELD} are read. Shorten it.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BoxwrightError(f"{where} holds half of a character pair; write it anew.")
    return value.strip()


def checked_style(value: Any, key: str) -> Any:
    """The value of a key of the style; a palette is checked where it is written."""
    return value if key == "color_palette" else checked_text(value or "", key)


def check_keys(entry: Any, required: Sequence[str], allowed: Sequence[str] | None, where: str) -> None:
    """Raises BoxwrightError unless it is an object with the required keys, and no other than `allowed` (None = any)."""
    if not isinstance(entry, dict):
        raise BoxwrightError(f"{where} must be an object; it is {shown(entry)}.")
    missing = [key for key in required if key not in entry]
    if missing:
        raise BoxwrightError(f"{where} lacks {', '.join(missing)}. Add what is missing.")
    foreign = [key for key in entry if allowed is not None and key not in allowed]
    if foreign:
        raise BoxwrightError(f"{where} has {shown(foreign[0])}, which the format does not know. Remove it.")


def foreign_keys(data: dict[str, Any], known: Sequence[str], where: str) -> list[str]:
    """A note on the keys that are not among the known ones; none where there are none."""
    foreign = [str(key) for key in data if key not in known]
    inside = f" of {where}" if where else ""
    return [f"Left out: {shortened(', '.join(foreign), 80)}{inside}."] if foreign else []
