"""What comes from outside is checked here, once: numbers, phrases, boxes, pictures. And foreign values for error
messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any
from unicodedata import category

from torch import Tensor

from ...attention_patches.core.types import MAX_PHRASE, MAX_REGIONS, Box, BoxwrightError, Layout, counted

MAX_FILE = 300  # characters of a file's name with its folders
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


def check_some_acts(layout: Layout) -> None:
    """Raises BoxwrightError where no region has a strength above 0: a method of regions would change nothing."""
    if not any(region.strength > 0 for region in layout.regions):
        raise BoxwrightError(
            "Nothing would change: no region of the layout has a strength above 0. Raise the strength of one in Box "
            "Editor or Regions, or bypass this node."
        )


def checked_file(name: Any, where: str) -> str:
    """A file's name below a folder of the host, its own folders parted by "/"; nothing that could lead out of it."""
    if not isinstance(name, str):
        raise BoxwrightError(f"{where} must be the name of a file; it is {shown(name)}.")
    parts = name.strip().replace("\\", "/").split("/")
    leads_out = ":" in name or any(part in ("", ".", "..") for part in parts)
    if len(name) > MAX_FILE or leads_out or any(category(letter) in ("Cc", "Cs") for letter in name):
        raise BoxwrightError(
            f"{where} is {shown(name)}, which is no name of a file in the folder of LoRAs. Write it as the LoRA loader "
            'lists it, for instance "styles/ink.safetensors".'
        )
    return "/".join(parts)


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


def ranged(value: Any, name: str, low: float, high: float) -> float:
    """A finite float from `low` to `high`; what a sum of floats misses an end by is let in, as the end."""
    number = number_of(value, name)
    if isinstance(value, float) and low - ROUNDING <= value <= high + ROUNDING:
        return min(max(number, low), high)
    if not low <= value <= high:  # as it came: a float has no room for the largest seeds
        raise BoxwrightError(f"{name} is {shown(value)}; choose a number from {low} to {high}.")
    return number


def whole(value: Any, name: str, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    ranged(value, name, low, high)
    if value != int(value):
        raise BoxwrightError(f"{name} is {shown(value)}; choose a whole number from {low} to {high}.")
    return int(value)


def one_of(value: Any, name: str, options: Sequence[str]) -> str:
    """The value if it is one of the options. Raises BoxwrightError, which lists them."""
    if value not in options:
        raise BoxwrightError(f"{name} is {shown(value)}; choose one of {', '.join(options)}.")
    return value


def text(value: Any, name: str) -> str:
    """The value if it is text. Raises BoxwrightError."""
    if not isinstance(value, str):
        raise BoxwrightError(f"{name} must be text; it is {shown(value)}. Look at the node that is wired to it.")
    return value


def rgb(images: Any, name: str) -> Tensor:
    """IMAGE [B, H, W, C] of at least one pixel -> [B, H, W, 3]: grey becomes colour, an alpha channel is left out."""
    shape = tuple(images.shape) if isinstance(images, Tensor) else shown(images)
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in shape or shape[3] not in (1, 3, 4):
        raise BoxwrightError(
            f"{name} has the shape {shape}; pictures are [batch, height, width, channels] with at least one pixel and "
            "1, 3 or 4 channels. Look at the node that is wired to it."
        )
    return images[..., :3].expand(-1, -1, -1, 3)


def masks(value: Any, name: str) -> Tensor:
    """MASK [H, W] or [M, H, W] of at least one pixel, without NaN or infinite values; [M, 1, H, W] is read as that."""
    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 1:
        value = value[:, 0]
    shape = tuple(value.shape) if isinstance(value, Tensor) else shown(value)
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or 0 in shape:
        raise BoxwrightError(
            f"{name} has the shape {shape}; masks are [height, width] or [batch, height, width] with at least one "
            "pixel. Look at the node that is wired to it."
        )
    if not bool(value.isfinite().all()):
        raise BoxwrightError(
            f"{name} holds NaN or infinite values; a mask is made of numbers from 0 to 1. Look at the node that is "
            "wired to it."
        )
    return value


def latent(value: Any, name: str) -> Mapping[str, Any]:
    """LATENT of one tensor with at least one cell, without NaN or infinite values."""
    samples = value.get("samples") if isinstance(value, Mapping) else None
    if getattr(samples, "is_nested", False):
        raise BoxwrightError(f"{name} holds several latents in one (picture and sound). Wire the latent of a picture.")
    if not isinstance(samples, Tensor) or 0 in samples.shape:
        shape = tuple(samples.shape) if isinstance(samples, Tensor) else shown(value)
        raise BoxwrightError(f"{name} has the shape {shape}: there is no latent in it. Look at the node wired to it.")
    if not bool(samples.isfinite().all()):
        raise BoxwrightError(f"{name} holds NaN or infinite values. Look at the node that is wired to it.")
    return value


def check_size(width: float, height: float, where: str) -> None:
    """Raises BoxwrightError unless both sides, in any unit, are above 0."""
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
    """Raises BoxwrightError above MAX_REGIONS; `holds`: the beginning of its sentence, "elements holds"."""
    if count > MAX_REGIONS:
        raise BoxwrightError(f"{holds} {counted(count, 'region')}; at most {MAX_REGIONS} are allowed. Remove some.")


def shown(value: Any) -> str:
    """A foreign value for an error message, shortened."""
    return "missing or null" if value is None else shortened(repr(value), 80)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of one printable line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
