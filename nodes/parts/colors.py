"""Colours as users write them."""

from __future__ import annotations

import re

from PIL import ImageColor

from ...attention_patches.core.types import BoxwrightError
from .checks import shown

MOST = 1000  # characters


def colors_of(text: str) -> tuple[tuple[float, float, float], ...]:
    """Red, green, blue in 0..1 of each in "#d02020, gold": hex, or a name of CSS; parted by commas, spaces or lines.

    Raises BoxwrightError, naming the word that is no colour.
    """
    if len(text) > MOST:
        raise BoxwrightError(f"The text of colours has {len(text)} characters; at most {MOST} are allowed. Shorten it.")
    words = re.split(r"[\s,;]+", text.strip())
    if words == [""]:
        raise BoxwrightError('There is no colour. Write one, as "#d02020" or "red".')
    return tuple(_color(word) for word in words)


def _color(word: str) -> tuple[float, float, float]:
    try:
        red, green, blue = ImageColor.getrgb(word)[:3]
    except ValueError:
        raise BoxwrightError(
            f'{shown(word)} is no colour. Write "#rrggbb", or a name as in web pages: red, gold, teal.'
        ) from None
    return red / 255, green / 255, blue / 255
