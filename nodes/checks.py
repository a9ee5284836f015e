"""What comes from outside is checked here, once: numbers, phrases, boxes. And foreign values for error messages."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ..attention_patches.types import MAX_PHRASE, MAX_REGIONS, Box, BoxwrightError, counted

ROUNDING = 1e-6  # fractions of the image: what may stick out of it, and what is too thin to be a box


def checked_phrase(phrase: Any, where: str) -> str:
    """The phrase without the space around it, 1 to MAX_PHRASE characters of valid Unicode."""
    if not isinstance(phrase, str):
        raise BoxwrightError(f'{where} must be text like "red heart"; it is {shown(phrase)}.')
    if not phrase.strip():
        raise BoxwrightError(f"{where} is empty. Write the words of the prompt that belong there.")
    if len(phrase) > MAX_PHRASE:
        raise BoxwrightError(
            f"{where} is {len(phrase)} characters long ({shortened(phrase, 40)}); at most {MAX_PHRASE} are allowed. "
            "Shorten it."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in phrase):
        raise BoxwrightError(f"{where} holds half of a character pair ({shown(phrase)}); write it anew.")
    return phrase.strip()


def own_text(where: str, *candidates: Any) -> str:
    """The first candidate that is a text with something in it, or ""; class numbers and the like are no text."""
    for text in candidates:
        if isinstance(text, str) and text.strip():
            return checked_phrase(text, f"The text of {where[0].lower()}{where[1:]}")
    return ""


def number_of(value: Any, where: str) -> float:
    """A finite float; booleans and texts are no numbers, numbers of numpy are."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BoxwrightError(f"{where} must be a number; it is {shown(value)}. Write it without quotation marks.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BoxwrightError(f"{where} must be an ordinary number; it is {shown(value)}. Replace it.")
    return number


def check_size(width: float, height: float, where: str) -> None:
    for name, value in (("width", width), ("height", height)):
        if value <= 0.0:
            raise BoxwrightError(f"{where}: {name} {value:g} must be above 0. Give the box a size.")


def clipped_box(x: float, y: float, width: float, height: float, where: str) -> Box:
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


def check_count(count: int, holds: str) -> None:
    if count > MAX_REGIONS:
        raise BoxwrightError(f"{holds} {counted(count, 'region')}; at most {MAX_REGIONS} are allowed. Remove some.")


def shown(value: Any) -> str:
    """A foreign value for an error message, shortened."""
    return "missing or null" if value is None else shortened(repr(value), 80)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of one printable line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
