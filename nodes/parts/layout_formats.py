"""Layouts as the prompts of models that read boxes themselves: FLUX.3, Ideogram 4, Ming-Image. Text only.

Every format here counts in thousandths of the picture, so a layout comes back exact to a thousandth. What is read is
untrusted: sizes, numbers, keys and texts are checked, and what cannot be kept is named in Document.notes.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...attention_patches.core.types import MAX_REGIONS, Box, BoxwrightError, Region
from .checks import check_count, checked_phrase, counted, number_of, shortened, shown
from .regions_json import load_json

GRID = 1000
OVERHANG = 0.02  # of a layer over the edge of the picture: its numbers are rounded, and models write them
ID = re.compile(r"[a-z][a-z0-9]*_[0-9]+")
CITATION = re.compile(r"<([a-z][a-z0-9]*(?:_[a-z0-9]+)*_[0-9]+)>")
REFERENCE = re.compile(r"ref_image_[0-9]")
FIRST_REFERENCE = "ref_image_0"
HEX = re.compile(r"#[0-9a-fA-F]{6}")
MAX_TEXT_FIELD = 20_000  # characters of a prompt, background or style
PICTURE_COLOURS, ELEMENT_COLOURS = 16, 5  # of Ideogram's palettes
MAX_CANDIDATES = 8  # places in a text, from its end, where a table may begin
TABLE = re.compile(r"\[\s*\{")
COORDINATES = re.compile(r"\s*cx\s*:\s*(\S+?)\s*,\s*cy\s*:\s*(\S+?)\s*,\s*w\s*:\s*(\S+?)\s*,\s*h\s*:\s*(\S+?)\s*")
LETTERING = re.compile(r'(?s)(.*\S) reading "(.*)"')
BEHIND, IN_FRONT = "Behind everything else.", "In front of the background."  # what is written where nothing was said

# Keys of Region.extra that a prompt may hold.
PROMPT_KEYS = ("id", "from", "text", "palette", "relation")
# Keys that change how a method draws. No prompt has a place for them.
METHOD_KEYS = {"strength": 1.0, "negative": "", "start": 0.0, "end": 1.0, "feather": 0.0}
EDITOR_KEYS = ("enabled", "locked", "hidden", "color")  # of no concern to a model

STYLE_KEYS = ("aesthetics", "lighting", "photo", "medium", "art_style", "color_palette")
CANVAS_KEYS = ("aspect_ratio", "ambient_lighting", "image_style")


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
class Format:
    """One model's way to write a layout."""

    name: str
    holds: frozenset[str]  # of "prompt", "background", "source" and PROMPT_KEYS
    styles: tuple[str, ...]  # keys of Document.style it has a place for
    write: Callable[[Document, tuple[int, int] | None], str]
    read: Callable[[str], Document]


def written(
    document: Document, name: str, size: tuple[int, int] | None, leave_out: bool
) -> tuple[str, tuple[str, ...]]:
    """The prompt in the format `name`, and notes on what it lacks.

    `size`: width and height of the picture in pixels, None = unknown. What the format has no place for is refused, or
    with `leave_out` named in the notes. Raises BoxwrightError.
    """
    form = FORMATS[name]
    if not document.regions and not document.source:
        raise BoxwrightError("There is no region to write. Connect regions, or for an edit source.")
    check_count(len(document.regions) + len(document.source or ()), "The layout holds")
    problems = [*_unheld(document, form), *_unknown_keys(document)]
    lost = [text for text, serious in problems if serious]
    if lost and not leave_out:
        raise BoxwrightError(
            f"{form.name} cannot hold {_some(lost)}. Take that away, or set unsupported to leave out."
        )
    notes = tuple(f"Left out, {form.name} cannot hold it: {text}" for text, _ in problems)
    for region in (*document.regions, *(document.source or ())):
        if not isinstance(region.area, Box):
            raise BoxwrightError(
                f'"{shortened(region.phrase, 40)}" is a painted mask, and a prompt holds boxes only. Use a box for it.'
            )
    return form.write(document, size), notes


def read(text: str, name: str) -> Document:
    """The prompt `text` in the format `name` as a Document. Raises BoxwrightError."""
    return FORMATS[name].read(text)


def recognised(text: str) -> str | None:
    """The name of the format that a text is in, by what only this one has; None where it may be any list of boxes."""
    start = text.lstrip()[:1]
    if start == "{" and '"compositional_deconstruction"' in text:
        return "Ideogram 4"
    if '"layers"' in text and '"coordinates"' in text:
        return "Ming-Image"
    return "FLUX.3" if (start != "{" and '"desc"' in text and '"id"' in text and "bbox" in text) else None


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more


def _unheld(document: Document, form: Format) -> Iterable[tuple[str, bool]]:
    """What the format has no place for: (words, whether it matters)."""
    if document.background and "background" not in form.holds:
        yield "the background text", True
    if document.background and document.prompt and "prompt" not in form.holds:
        yield "a prompt beside the background text", True
    if document.source is not None and "source" not in form.holds:
        yield "the source boxes of an edit", True
    for key in document.style:
        if key not in form.styles:
            yield f"the style {shortened(str(key), 40)}", True
    for number, region in enumerate((*document.regions, *(document.source or ())), 1):
        where = f'of region {number} ("{shortened(region.phrase, 40)}")'
        for key, default in METHOD_KEYS.items():
            value = getattr(region, key)
            if value not in (default, None):
                yield f"the {key} {where}", True
        for key in ("text", "palette", "relation"):
            if region.extra.get(key) and key not in form.holds:
                yield f"the {key} {where}", True


def _unknown_keys(document: Document) -> Iterable[tuple[str, bool]]:
    known = {*METHOD_KEYS, *EDITOR_KEYS, *PROMPT_KEYS}
    others = {str(key) for region in (*document.regions, *(document.source or ())) for key in region.extra} - known
    if others:
        yield f"the keys {shortened(', '.join(sorted(others)), 80)}", False


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


def _to_bbox(box: Box) -> list[int]:
    left, top, right, bottom = thousandths(box)
    return [top, left, bottom, right]


def _from_bbox(value: Any, where: str) -> Box:
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


# FLUX.3: a caption that names <obj_1> ..., one space, and a table of rows


def _write_flux3(document: Document, size: tuple[int, int] | None) -> str:
    if document.source is None:
        ids = _ids([region.extra.get("id") for region in document.regions])
        rows = [
            {"id": name, "bbox": _to_bbox(region.area), "desc": _with_lettering(region)}
            for name, region in zip(ids, document.regions, strict=True)
        ]
        wanted = [(name, region.phrase, "") for name, region in zip(ids, document.regions, strict=True)]
        return f"{_cited(document.prompt, wanted)} {_compact(rows)}"
    moves = _moves(document.source, document.regions)
    ids = _ids([(new or old).extra.get("id") or (old and old.extra.get("id")) for old, new in moves])
    rows, wanted = [], []
    for name, (old, new) in zip(ids, moves, strict=True):
        src, tgt = (None if each is None else _to_bbox(each.area) for each in (old, new))
        origin = None if old is None else _reference(old)
        thing = new or old
        rows.append({"id": name, "from": origin, "src_bbox": src, "tgt_bbox": tgt, "desc": _with_lettering(thing)})
        verb = "Add" if src is None else "Remove" if tgt is None else "" if src == tgt else "Move"
        wanted.append((name, thing.phrase, verb))
    return f"{_cited(document.prompt, wanted, edit=True)} {_compact(rows)}"


def _reference(region: Region) -> str:
    origin = region.extra.get("from") or FIRST_REFERENCE
    if not isinstance(origin, str) or not REFERENCE.fullmatch(origin):
        raise BoxwrightError(
            f'"from" of "{shortened(region.phrase, 40)}" must be ref_image_0 to ref_image_9; it is {shown(origin)}.'
        )
    return origin


def _moves(source: Sequence[Region], target: Sequence[Region]) -> list[tuple[Region | None, Region | None]]:
    """(where it stands, where it shall stand) of each thing: the targets in order, then what has none.

    A target is the thing of the source with its id, else with its words; of several, first the one at the same place.
    """
    left, pairs = list(source), dict[int, Region]()

    def take(index: int, fits: Callable[[Region], bool]) -> None:
        found = next((old for old in left if fits(old)), None)
        if index not in pairs and found is not None:
            pairs[index] = found
            del left[next(at for at, old in enumerate(left) if old is found)]

    def alike(old: Region, new: Region) -> bool:
        names = old.extra.get("id"), new.extra.get("id")
        return names[0] == names[1] if all(names) else _key(old) == _key(new)

    for same_place in (True, False):
        for index, new in enumerate(target):
            box = thousandths(new.area)
            take(index, lambda old: alike(old, new) and (not same_place or thousandths(old.area) == box))  # noqa: B023
    return [(pairs.get(index), new) for index, new in enumerate(target)] + [(old, None) for old in left]


def _key(region: Region) -> str:
    return " ".join(region.phrase.casefold().split())


def _ids(own: Sequence[Any]) -> list[str]:
    """A name for each row: its own, else obj_ and its number, or a later number where that is taken."""
    for name in own:
        if name is not None and (not isinstance(name, str) or not ID.fullmatch(name)):
            raise BoxwrightError(
                f"The id {shown(name)} of a region is none for FLUX.3: small letters and digits, _ and a number, as "
                '"heart_1".'
            )
    twice = [name for name, count in Counter(name for name in own if name).items() if count > 1]
    if twice:
        raise BoxwrightError(f"The id {twice[0]} stands twice; each row needs its own.")
    taken = {name for name in own if name}
    names = []
    for number, name in enumerate(own, 1):
        while name is None:
            candidate = f"obj_{number}"
            name = None if candidate in taken else candidate
            number += 1
        taken.add(name)
        names.append(name)
    return names


def _cited(prompt: str, rows: Sequence[tuple[str, str, str]], edit: bool = False) -> str:
    """The caption with each row's <id> behind its words; what the caption lacks is appended. Raises BoxwrightError.

    `rows`: (id, phrase, verb); of an edit, only rows with a verb (what is to be done with the thing) are appended.
    """
    text = prompt.strip()
    known = {name for name, _, _ in rows}
    for name in CITATION.findall(text):
        if name not in known and not REFERENCE.fullmatch(name):
            raise BoxwrightError(
                f"The prompt names <{shortened(name, 40)}>, but no region has that id. Its ids are "
                f"{shortened(', '.join(sorted(known)), 80)}."
            )
    marks: list[tuple[int, int, str]] = []  # start and end of the words, and the id that follows them
    for name, phrase, _ in sorted(rows, key=lambda row: -len(row[1])):
        if f"<{name}>" in text:
            continue
        for found in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)(?! <)", text, re.IGNORECASE):
            if all(found.end() <= start or end <= found.start() for start, end, _ in marks):
                marks.append((found.start(), found.end(), name))
                break
    for _, end, name in sorted(marks, reverse=True):
        text = f"{text[:end]} <{name}>{text[end:]}"
    missing = [(name, phrase, verb) for name, phrase, verb in rows if f"<{name}>" not in text]
    if edit:
        said = [f"{verb} {phrase} <{name}>." for name, phrase, verb in missing if verb]
        text = " ".join([text, *said] if text else said)
        return text or "Keep everything as it is."
    return ", ".join([text] * bool(text) + [f"{phrase} <{name}>" for name, phrase, _ in missing])


def uncited(caption: str) -> str:
    """The caption without its <id> marks; <ref_image_0> and the like stay."""
    return re.sub(rf" ?{CITATION.pattern}", lambda m: m[0] if REFERENCE.fullmatch(m[1]) else "", caption)


def _read_flux3(text: str) -> Document:
    caption, rows = split_flux3(text)
    if not rows:
        raise BoxwrightError("The FLUX.3 table has no row. Add one, or use another format.")
    check_count(len(rows), "The FLUX.3 table holds")
    edit = [isinstance(row, dict) and not {"from", "src_bbox", "tgt_bbox"}.isdisjoint(row) for row in rows]
    if any(edit) and not all(edit):
        raise BoxwrightError(
            f"Row {edit.index(not edit[0]) + 1} of the FLUX.3 table is of another kind than row 1: rows with bbox make "
            "a picture, rows with src_bbox and tgt_bbox change one, and a table holds one kind only."
        )
    keys = ("id", "from", "src_bbox", "tgt_bbox", "desc") if edit[0] else ("id", "bbox", "desc")
    names: list[str] = []
    regions, source = [], []
    for number, row in enumerate(rows, 1):
        where = f"Row {number} of the FLUX.3 table"
        _check_keys(row, keys, keys, where)
        name = row["id"]
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise BoxwrightError(f'{where}: the id must look like "heart_1"; it is {shown(name)}.')
        if name in names:
            raise BoxwrightError(f"{where}: the id {name} stands twice; each row needs its own.")
        names.append(name)
        phrase, extra = _without_lettering(checked_phrase(row["desc"], f"{where}: desc"))
        extra["id"] = name
        if not edit[0]:
            regions.append(Region(phrase, _from_bbox(row["bbox"], f"{where}: bbox"), extra=extra))
            continue
        origin, src, tgt = row["from"], row["src_bbox"], row["tgt_bbox"]
        if (origin is None) != (src is None) or (src is None and tgt is None):
            raise BoxwrightError(
                f"{where}: from and src_bbox belong together, both given (something of the picture) or both null "
                "(something new, which needs a tgt_bbox)."
            )
        if tgt is not None:
            regions.append(Region(phrase, _from_bbox(tgt, f"{where}: tgt_bbox"), extra=dict(extra)))
        if src is not None:
            old = Region(phrase, _from_bbox(src, f"{where}: src_bbox"), extra=extra | {"from": origin})
            if _reference(old) == FIRST_REFERENCE:
                del old.extra["from"]
            source.append(old)
    _check_citations(caption, names)
    named = Document(tuple(regions), tuple(source) if edit[0] else None, caption)
    plain = Document(_without_ids(regions), _without_ids(source) if edit[0] else None, uncited(caption))
    # Ids and marks are kept only where writing the layout again would not bring them back.
    return plain if _write_flux3(plain, None) == _write_flux3(named, None) else named


def split_flux3(text: str, name: str = "text") -> tuple[str, list[Any]]:
    """The caption and the rows of a FLUX.3 prompt. Raises BoxwrightError."""
    problem = BoxwrightError(
        f'{name} holds no FLUX.3 table: behind the caption must stand a list like [{{"id": "obj_1", "bbox": [top, '
        'left, bottom, right], "desc": "..."}].'
    )
    if len(text) <= 1_000_000:
        places = [found.start() for found in TABLE.finditer(text)][-MAX_CANDIDATES:]
        for start in reversed(places):  # from the end: short texts first, and a caption may hold brackets too
            try:
                rows = load_json(text[start:].strip(), name)
            except BoxwrightError as error:
                problem = error if start == places[-1] else problem
                continue
            return text[:start].strip(), rows
    raise problem


def _check_citations(caption: str, names: Sequence[str]) -> None:
    for name in CITATION.findall(caption):
        if name not in names and not REFERENCE.fullmatch(name):
            raise BoxwrightError(f"The caption names <{shortened(name, 40)}>, but the table has no row of that id.")


def _without_ids(regions: Iterable[Region]) -> tuple[Region, ...]:
    return tuple(
        Region(each.phrase, each.area, extra={key: value for key, value in each.extra.items() if key != "id"})
        for each in regions
    )


# Ideogram 4: one JSON object, whose keys stand in the order the model was trained on


def _write_ideogram(document: Document, size: tuple[int, int] | None) -> str:
    caption: dict[str, Any] = {}
    if document.prompt.strip():
        caption["high_level_description"] = document.prompt.strip()
    style = _ideogram_style(document.style)
    if style:
        caption["style_description"] = style
    caption["compositional_deconstruction"] = {
        "background": document.background.strip(),
        "elements": [_ideogram_element(region) for region in document.regions],
    }
    return _compact(caption)


def _ideogram_style(style: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in style.items() if key in STYLE_KEYS and value}
    if "photo" in given and "art_style" in given:
        raise BoxwrightError("The style has both photo and art_style; Ideogram 4 takes one of them. Remove one.")
    if "color_palette" in given:
        given["color_palette"] = _palette(given["color_palette"], PICTURE_COLOURS, "color_palette of the style")
    return {key: given[key] for key in STYLE_KEYS if key in given}


def _ideogram_element(region: Region) -> dict[str, Any]:
    text = region.extra.get("text")
    element: dict[str, Any] = {"type": "text" if text else "obj", "bbox": _to_bbox(region.area)}
    if text:
        element["text"] = _checked_text(text, f'The text of "{shortened(region.phrase, 40)}"')
    element["desc"] = region.phrase
    palette = _palette_of(region, ELEMENT_COLOURS)
    if palette:
        element["color_palette"] = palette
    return element


def _read_ideogram(text: str) -> Document:
    data = load_json(text, "text")
    layout = data.get("compositional_deconstruction") if isinstance(data, dict) else None
    elements = layout.get("elements") if isinstance(layout, dict) else None
    if not isinstance(elements, list):
        raise BoxwrightError(
            "text is no Ideogram 4 caption: it must be an object with compositional_deconstruction, in which elements "
            "is a list."
        )
    check_count(len(elements), "The caption holds")
    notes = _foreign_keys(data, ("high_level_description", "style_description", "compositional_deconstruction"), "")
    notes += _foreign_keys(layout, ("background", "elements"), "compositional_deconstruction")
    style = data.get("style_description") or {}
    if not isinstance(style, dict):
        raise BoxwrightError(f"style_description must be an object; it is {shown(style)}.")
    notes += _foreign_keys(style, STYLE_KEYS, "style_description")
    regions = []
    for number, element in enumerate(elements, 1):
        where = f"Element {number} of the caption"
        _check_keys(element, ("desc",), None, where)
        if element.get("bbox") is None:
            phrase = shortened(str(element["desc"]), 40)
            notes.append(f'{where} ("{phrase}") has no bbox, so it has no place among boxes: left out.')
            continue
        notes += _foreign_keys(element, ("type", "bbox", "text", "desc", "color_palette"), where)
        phrase = element["desc"] if element["desc"] else element.get("text")
        extra = {}
        if element.get("text"):
            extra["text"] = _checked_text(element["text"], f"{where}: text")
        if element.get("color_palette"):
            extra["palette"] = _palette(element["color_palette"], ELEMENT_COLOURS, f"{where}: color_palette")
        box = _from_bbox(element["bbox"], f"{where}: bbox")
        regions.append(Region(checked_phrase(phrase, f"{where}: desc"), box, extra=extra))
    return Document(
        tuple(regions),
        prompt=_checked_text(data.get("high_level_description") or "", "high_level_description"),
        background=_checked_text(layout.get("background") or "", "background"),
        style=_ideogram_style({k: _checked_style(v, k) for k, v in style.items() if k in STYLE_KEYS}),
        notes=tuple(notes),
    )


# Ming-Image: layers from back to front, each with its centre and size


def _write_ming(document: Document, size: tuple[int, int] | None) -> str:
    style = dict(document.style)
    if "aspect_ratio" not in style:
        if size is None:
            raise BoxwrightError(
                "Ming-Image needs the shape of the picture. Set width and height, or take the regions from Box Editor, "
                "which knows them."
            )
        shared = math.gcd(*size)
        style["aspect_ratio"] = f"{size[0] // shared}:{size[1] // shared}"
    behind = document.background.strip() or document.prompt.strip()
    layers = [_ming_layer(behind, Box(0.0, 0.0, 1.0, 1.0), BEHIND, [])] if behind else []
    for region in document.regions:
        relation = _checked_text(region.extra.get("relation") or IN_FRONT, "relation")
        colours = _palette_of(region, PICTURE_COLOURS)
        layers.append(_ming_layer(_with_lettering(region), region.area, relation, colours))
    settings = {key: _checked_text(style.get(key, ""), key) for key in CANVAS_KEYS}
    return json.dumps({"canvas_settings": settings, "layers": layers}, ensure_ascii=False, indent=2)


def _ming_layer(description: str, box: Box, relation: str, colours: list[str]) -> dict[str, Any]:
    left, top, right, bottom = thousandths(box)
    # Three digits, as the model saw them. Where the middle lies between two thousandths the lower one is written;
    # an odd width says so, and ming_box finds the box again.
    numbers = {"cx": (left + right) // 2, "cy": (top + bottom) // 2, "w": right - left, "h": bottom - top}
    coordinates = ", ".join(f"{key}: {value / GRID:.3f}" for key, value in numbers.items())
    return {
        "description": description,
        "coordinates": coordinates,
        "hierarchy_and_relation": relation,
        "color_specs": colours,
    }


def ming_box(coordinates: Any, where: str) -> Box:
    """The box of "cx: ..., cy: ..., w: ..., h: ...", cut where it reaches over the edge by rounding."""
    found = COORDINATES.fullmatch(coordinates) if isinstance(coordinates, str) and len(coordinates) <= 200 else None
    try:
        cx, cy, w, h = (float(digits) for digits in found.groups()) if found else ()
    except ValueError:
        raise BoxwrightError(
            f'{where}: coordinates must look like "cx: 0.500, cy: 0.250, w: 0.700, h: 0.160"; they are '
            f"{shown(coordinates)}."
        ) from None

    def span(middle: float, length: float) -> tuple[float, float]:
        low = middle * GRID - length * GRID / 2
        whole = round(length * GRID), round(middle * GRID)
        if abs(length * GRID - whole[0]) < 1e-6 and abs(middle * GRID - whole[1]) < 1e-6:
            low = whole[1] - whole[0] // 2
            return max(0, low), min(GRID, low + whole[0])
        return max(0.0, low), min(float(GRID), low + length * GRID)

    if not all(math.isfinite(each) for each in (cx, cy, w, h)) or w <= 0.0 or h <= 0.0:
        raise BoxwrightError(f"{where}: {shown(coordinates)} is no box; w and h must be above 0.")
    (left, right), (top, bottom) = span(cx, w), span(cy, h)
    low, high = min(cx - w / 2, cy - h / 2), max(cx + w / 2, cy + h / 2)
    if low < -OVERHANG or high > 1.0 + OVERHANG or left >= right or top >= bottom:
        raise BoxwrightError(f"{where}: {shown(coordinates)} reaches outside the picture, 0 to 1.")
    return on_the_grid(left, top, right, bottom)


def _read_ming(text: str) -> Document:
    start = text.find("{")  # a line on transparency may stand before
    data = load_json(text[max(start, 0) :], "text")
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise BoxwrightError("text is no Ming-Image prompt: it must be an object in which layers is a list.")
    if len(layers) > MAX_REGIONS + 1:
        check_count(len(layers), "The prompt holds")
    notes = _foreign_keys(data, ("canvas_settings", "layers"), "")
    if text[: max(start, 0)].strip():
        notes.append(f"Left out: {shortened(text[:start], 80)}")
    settings = data.get("canvas_settings") or {}
    if not isinstance(settings, dict):
        raise BoxwrightError(f"canvas_settings must be an object; it is {shown(settings)}.")
    notes += _foreign_keys(settings, CANVAS_KEYS, "canvas_settings")
    regions, background = [], ""
    for number, layer in enumerate(layers, 1):
        where = f"Layer {number} of the prompt"
        _check_keys(layer, ("description", "coordinates"), None, where)
        notes += _foreign_keys(
            layer, ("description", "coordinates", "hierarchy_and_relation", "color_specs"), where
        )
        box = ming_box(layer["coordinates"], where)
        description = checked_phrase(layer["description"], f"{where}: description")
        colours = _palette(layer.get("color_specs") or [], PICTURE_COLOURS, f"{where}: color_specs")
        if number == 1 and box == Box(0.0, 0.0, 1.0, 1.0) and not colours:
            background = description
            continue
        phrase, extra = _without_lettering(description)
        relation = _checked_text(layer.get("hierarchy_and_relation") or "", f"{where}: hierarchy_and_relation")
        if relation and relation != IN_FRONT:
            extra["relation"] = relation
        if colours:
            extra["palette"] = colours
        regions.append(Region(phrase, box, extra=extra))
    style = {key: _checked_text(settings[key], key) for key in CANVAS_KEYS if settings.get(key)}
    return Document(tuple(regions), background=background, style=style, notes=tuple(notes))


# Texts, colours, keys


def _compact(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _with_lettering(region: Region) -> str:
    """The words, and the lettering as words where the format has no field of its own for it."""
    text = region.extra.get("text")
    if not text:
        return region.phrase
    return f'{region.phrase} reading "{_checked_text(text, "text")}"'


def _without_lettering(phrase: str) -> tuple[str, dict[str, Any]]:
    found = LETTERING.fullmatch(phrase)
    return (found[1], {"text": found[2]}) if found and found[2] else (phrase, {})


def _palette_of(region: Region, limit: int) -> list[str]:
    return _palette(region.extra.get("palette") or [], limit, f'The palette of "{shortened(region.phrase, 40)}"')


def _palette(value: Any, limit: int, where: str) -> list[str]:
    """Colours #RRGGBB in capitals, at most `limit`."""
    colours = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(colours, (list, tuple)) or any(
        not isinstance(each, str) or not HEX.fullmatch(each) for each in colours
    ):
        raise BoxwrightError(f'{where} must be colours like "#E69F00"; it is {shown(value)}.')
    if len(colours) > limit:
        raise BoxwrightError(f"{where} has {len(colours)} colours; at most {limit} are allowed. Remove some.")
    return [each.upper() for each in colours]


def _checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BoxwrightError(f"{where} must be text; it is {shown(value)}.")
    if len(value) > MAX_TEXT_FIELD:
        raise BoxwrightError(
            f"{where} is {len(value)} characters long; at most {MAX_TEXT_FIELD} are read. Shorten it."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BoxwrightError(f"{where} holds half of a character pair; write it anew.")
    return value.strip()


def _checked_style(value: Any, key: str) -> Any:
    return value if key == "color_palette" else _checked_text(value or "", key)


def parse_style(text: str) -> dict[str, Any]:
    """`text` -> the style: lines like "lighting: soft daylight", or a JSON object. Raises BoxwrightError."""
    if len(text) > MAX_TEXT_FIELD:
        raise BoxwrightError(f"style is {len(text)} characters long; at most {MAX_TEXT_FIELD} are read. Shorten it.")
    known = (*STYLE_KEYS, *CANVAS_KEYS)
    if text.lstrip().startswith("{"):
        style = load_json(text, "style")
    else:
        lines = [line.partition(":") for line in text.splitlines() if line.strip()]
        style = {key.strip(): value.strip() for key, _, value in lines}
        if len(style) < len(lines):
            raise BoxwrightError("style names one key twice, or has a line without a key. Write each as key: words.")
    for key in style:
        if key not in known:
            raise BoxwrightError(f"style has {shown(key)}, which no format knows; known are {', '.join(known)}.")
    return {key: _checked_style(value, key) for key, value in style.items() if value}


def _check_keys(entry: Any, required: Sequence[str], allowed: Sequence[str] | None, where: str) -> None:
    if not isinstance(entry, dict):
        raise BoxwrightError(f"{where} must be an object; it is {shown(entry)}.")
    missing = [key for key in required if key not in entry]
    if missing:
        raise BoxwrightError(f"{where} lacks {', '.join(missing)}. Add what is missing.")
    foreign = [key for key in entry if allowed is not None and key not in allowed]
    if foreign:
        raise BoxwrightError(f"{where} has {shown(foreign[0])}, which the format does not know. Remove it.")


def _foreign_keys(data: dict[str, Any], known: Sequence[str], where: str) -> list[str]:
    foreign = [str(key) for key in data if key not in known]
    inside = f" of {where}" if where else ""
    return [f"Left out: {shortened(', '.join(foreign), 80)}{inside}."] if foreign else []


FORMATS = {
    form.name: form
    for form in (
        Format("FLUX.3", frozenset({"prompt", "source", "id", "from", "text"}), (), _write_flux3, _read_flux3),
        Format(
            "Ideogram 4",
            frozenset({"prompt", "background", "text", "palette"}),
            STYLE_KEYS,
            _write_ideogram,
            _read_ideogram,
        ),
        Format(
            "Ming-Image",
            frozenset({"background", "text", "palette", "relation"}),
            CANVAS_KEYS,
            _write_ming,
            _read_ming,
        ),
    )
}


def summary(document: Document, name: str) -> str:
    """What was read, in one line."""
    edit = "" if document.source is None else f", an edit of {counted(len(document.source), 'thing')} in the picture"
    return f"Read as {name}: {counted(len(document.regions), 'region')}{edit}."
