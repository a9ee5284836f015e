"""Layouts in a text of the user's own making: a template with placeholders, and the same template read backwards.

A line that holds a placeholder of a region is written once for each region, every other line once. A placeholder is
{name} or {name:how}; braces around anything else are left as they are, so that JSON needs no escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import check_count, check_size, checked_phrase, clipped_box, shortened
from .layout_document import OVERHANG, Document, Places

TEMPLATE = "template"  # what nodes call this way to write a layout, among the models' own
MAX_TEMPLATE = 20_000  # characters
MAX_LINES = 200  # of the template
EXAMPLE = "{prompt}\n{phrase}: [{x1}, {y1}, {x2}, {y2}]"

SIDES: Mapping[str, Callable[[Box], float]] = {
    "x": lambda box: box.x,
    "y": lambda box: box.y,
    "w": lambda box: box.width,
    "h": lambda box: box.height,
    "x1": lambda box: box.x,
    "y1": lambda box: box.y,
    "x2": lambda box: box.x + box.width,
    "y2": lambda box: box.y + box.height,
    "cx": lambda box: box.x + box.width / 2,
    "cy": lambda box: box.y + box.height / 2,
}
ACROSS = ("x", "w", "x1", "x2", "cx")
LENGTHS = ("w", "h")
OF_REGION = (*SIDES, "n", "id", "phrase", "text", ",")
OF_PICTURE = ("prompt", "background", "width", "height", "count")
WORDS = ("phrase", "text", "id", "prompt", "background")
PLACEHOLDER = re.compile(
    r"\{("
    + "|".join(re.escape(name) for name in sorted((*OF_REGION, *OF_PICTURE), key=len, reverse=True))
    + r")(?::([a-z0-9.%]+))?\}"
)
NUMBER = re.compile(r"[+-]?(?:\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})")


@dataclass(frozen=True)
class Piece:
    """Part of a line: plain text, or a placeholder."""

    name: str  # "" = plain text
    how: str  # what stands behind the colon, or the plain text


def write_template(template: str, document: Document, size: tuple[int, int] | None) -> str:
    """The template filled in. `size`: width and height of the picture in pixels, None = unknown. Raises
    BoxwrightError."""
    lines = []
    for pieces in _lines(template):
        if not _repeats(pieces):
            lines.append("".join(_of_picture(piece, document, size) for piece in pieces))
            continue
        for number, region in enumerate(document.regions, 1):
            last = number == len(document.regions)
            lines.append("".join(_of_region(piece, region, number, last, document, size) for piece in pieces))
    return "\n".join(lines)


def template_format(template: str) -> Places:
    """What the template has places for."""
    names = {piece.name for pieces in _lines(template) for piece in pieces}
    return Places("The template", frozenset(names), ())


def read_template(template: str, text: str, size: tuple[int, int] | None) -> Document:
    """What write_template wrote, from its text. Raises BoxwrightError where a line does not fit the template."""
    rows = _lines(template)
    if not any(_repeats(pieces) for pieces in rows):
        raise BoxwrightError("The template has no line with a box, so no region can be read by it.")
    lines, at = text.splitlines(), 0
    regions: list[Region] = []
    found: dict[str, Any] = {}
    for pieces in rows:
        values = _match(pieces, lines[at]) if at < len(lines) else None
        if not _repeats(pieces):
            if values is None:
                raise _does_not_fit(pieces, lines, at)
            found |= values
            at += 1
            continue
        first = len(regions)
        while values is not None:
            regions.append(_region(values, len(regions) + 1, size))
            check_count(len(regions), "The text holds")
            at += 1
            values = _match(pieces, lines[at]) if at < len(lines) else None
        if len(regions) == first:
            raise _does_not_fit(pieces, lines, at)
    if at < len(lines) and any(line.strip() for line in lines[at:]):
        raise BoxwrightError(
            f'Line {at + 1} of the text, "{shortened(lines[at], 60)}", fits no line of the template any more.'
        )
    return Document(tuple(regions), prompt=found.get("prompt", ""), background=found.get("background", ""))


def _lines(template: str) -> list[list[Piece]]:
    if len(template) > MAX_TEMPLATE or template.count("\n") >= MAX_LINES:
        raise BoxwrightError(
            f"template has {len(template)} characters in {template.count(chr(10)) + 1} lines; at most {MAX_TEMPLATE} "
            f"in {MAX_LINES} are read. Shorten it."
        )
    if not template.strip():
        raise BoxwrightError(f'template is empty. Write one, as "{EXAMPLE.splitlines()[1]}".')
    lines = []
    for line in template.splitlines():
        pieces, end = [], 0
        for found in PLACEHOLDER.finditer(line):
            if found.start() > end:
                pieces.append(Piece("", line[end : found.start()]))
            pieces.append(Piece(found[1], found[2] or ""))
            _check_how(pieces[-1], found[0])
            end = found.end()
        if end < len(line) or not pieces:
            pieces.append(Piece("", line[end:]))
        lines.append(pieces)
    return lines


def _check_how(piece: Piece, written: str) -> None:
    if piece.name in SIDES:
        good = bool(re.fullmatch(r"|px|pxc|%|[1-9]\d{0,4}|\.[1-6]", piece.how))
        allowed = "a number (0 to that), .3 (fraction with 3 digits), %, px (pixels) or pxc (pixels from the centre)"
    else:
        good = piece.how == "" or (piece.how == "json" and piece.name in WORDS)
        allowed = "json (quoted, for the words)"
    if not good:
        raise BoxwrightError(
            f"The placeholder {written} of the template is not known; behind the colon may stand {allowed}."
        )


def _repeats(pieces: Sequence[Piece]) -> bool:
    return any(piece.name in OF_REGION for piece in pieces)


def _of_picture(piece: Piece, document: Document, size: tuple[int, int] | None) -> str:
    if not piece.name:
        return piece.how
    if piece.name in ("width", "height"):
        return str(_size(size)[piece.name == "height"])
    value = str(len(document.regions)) if piece.name == "count" else getattr(document, piece.name)
    return _words(piece, value)


def _words(piece: Piece, value: str) -> str:
    if piece.how == "json":
        return json.dumps(value, ensure_ascii=False)
    return " ".join(value.splitlines())  # the template's lines are what tells regions apart


def _of_region(
    piece: Piece, region: Region, number: int, last: bool, document: Document, size: tuple[int, int] | None
) -> str:
    if piece.name not in OF_REGION:
        return _of_picture(piece, document, size)
    if piece.name == ",":
        return "" if last else ","
    if piece.name == "n":
        return str(number)
    if piece.name in SIDES:
        return _number(piece, SIDES[piece.name](region.area), size)
    default = f"obj_{number}" if piece.name == "id" else ""
    value = region.phrase if piece.name == "phrase" else region.extra.get(piece.name) or default
    return _words(piece, str(value))


def _size(size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        raise BoxwrightError(
            "The template asks for pixels, and the size of the picture is not known. Set width and height, or take the "
            "regions from Box Editor, which knows them."
        )
    return size


def _scale(piece: Piece, size: tuple[int, int] | None) -> tuple[float, float]:
    """What a fraction is multiplied by, and what is then added, for the number in the text."""
    if piece.how in ("px", "pxc"):
        pixels = _size(size)[piece.name not in ACROSS]
        return pixels, -pixels / 2 if piece.how == "pxc" and piece.name not in LENGTHS else 0.0
    return {"": 1000.0, "%": 100.0}.get(piece.how) or (1.0 if piece.how.startswith(".") else float(piece.how)), 0.0


def _number(piece: Piece, fraction: float, size: tuple[int, int] | None) -> str:
    factor, shift = _scale(piece, size)
    value = fraction * factor + shift
    if piece.how.startswith("."):
        return f"{value:.{int(piece.how[1:])}f}"
    return f"{value:.1f}" if piece.how == "%" else str(round(value))


# Backwards


def _does_not_fit(pieces: Sequence[Piece], lines: Sequence[str], at: int) -> BoxwrightError:
    line = "".join(piece.how if not piece.name else f"{{{piece.name}}}" for piece in pieces)
    here = f'"{shortened(lines[at], 60)}"' if at < len(lines) else "the end of the text"
    return BoxwrightError(
        f'Line {at + 1} of the text is {here}; the template wants "{shortened(line, 80)}" there. Mend the text or the '
        "template."
    )


def _match(pieces: Sequence[Piece], line: str) -> dict[str, Any] | None:
    """The values of a line's placeholders, None where it does not fit. Words reach to the next plain text's first
    place, so that the time is that of reading the line once."""
    values: dict[str, Any] = {}
    at = 0
    for index, piece in enumerate(pieces):
        if not piece.name:
            if not line.startswith(piece.how, at):
                return None
            at += len(piece.how)
        elif piece.name == ",":
            at += line.startswith(",", at)
        elif piece.how == "json":
            try:
                value, at = json.JSONDecoder().raw_decode(line, at)
            except (ValueError, RecursionError):
                return None
            if not isinstance(value, str):
                return None
            values[piece.name] = value
        elif piece.name in WORDS:
            follower = pieces[index + 1] if index + 1 < len(pieces) else None
            end = len(line) if follower is None else line.find(follower.how, at) if not follower.name else -1
            if end < 0:
                return None
            values[piece.name] = line[at:end]
            at = end
        else:
            found = NUMBER.match(line, at)
            if found is None:
                return None
            values[piece.name] = (piece, float(found[0]))
            at = found.end()
    return values if not line[at:].strip() else None


def _region(values: Mapping[str, Any], number: int, size: tuple[int, int] | None) -> Region:
    sides = {}
    for name in SIDES:
        if name in values:
            piece, value = values[name]
            factor, shift = _scale(piece, size)
            sides[name] = (value - shift) / factor
    across, down = _span(sides, "x", "x1", "x2", "cx", "w"), _span(sides, "y", "y1", "y2", "cy", "h")
    if across is None or down is None:
        raise BoxwrightError(
            "The template does not say where a box ends: a line needs two numbers each way, as {x1} and {x2}, or {x} "
            "and {w}, or {cx} and {w}."
        )
    (x, width), (y, height) = across, down
    where = f"Region {number} of the text"
    check_size(width, height, where)
    if min(x, y) < -OVERHANG or max(x + width, y + height) > 1.0 + OVERHANG:
        raise BoxwrightError(
            f"{where} reaches outside the picture: x {x:g} to {x + width:g}, y {y:g} to {y + height:g}, in fractions "
            "of it. Mend its numbers, or the template's scale."
        )
    phrase = checked_phrase(values.get("phrase", ""), f"The phrase of region {number}")
    extra = {"text": values["text"]} if values.get("text") else {}
    if values.get("id") and values["id"] != f"obj_{number}":
        extra["id"] = values["id"]
    return Region(phrase, clipped_box(x, y, width, height, where), extra=extra)


def _span(
    sides: Mapping[str, float], start: str, low: str, high: str, middle: str, length: str
) -> tuple[float, float] | None:
    """(start, length) from whichever two of the numbers were given; None where they do not say."""
    begin = sides.get(start, sides.get(low))
    if begin is not None and high in sides:
        return begin, sides[high] - begin
    if length not in sides:
        return None
    if begin is not None:
        return begin, sides[length]
    if high in sides:
        return sides[high] - sides[length], sides[length]
    return (sides[middle] - sides[length] / 2, sides[length]) if middle in sides else None
