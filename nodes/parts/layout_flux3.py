"""FLUX.3: a caption that names <obj_1> ..., one space, and a table of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ...attention_patches.core.types import BoxwrightError, Region
from .checks import check_count, checked_phrase, shortened, shown
from .layout_document import (
    Document,
    Format,
    check_keys,
    compact,
    from_bbox,
    thousandths,
    to_bbox,
    with_lettering,
    without_lettering,
)
from .regions_json import load_json

ID = re.compile(r"[a-z][a-z0-9]*_[0-9]+")
CITATION = re.compile(r"<([a-z][a-z0-9]*(?:_[a-z0-9]+)*_[0-9]+)>")
REFERENCE = re.compile(r"ref_image_[0-9]")
FIRST_REFERENCE = "ref_image_0"
MAX_CANDIDATES = 8  # places in a text, from its end, where a table may begin
TABLE = re.compile(r"\[\s*\{")


def _write_flux3(document: Document, size: tuple[int, int] | None) -> str:
    if document.source is None:
        ids = _ids([region.extra.get("id") for region in document.regions])
        rows: list[dict[str, Any]] = [
            {"id": name, "bbox": to_bbox(region.area), "desc": with_lettering(region)}
            for name, region in zip(ids, document.regions, strict=True)
        ]
        wanted = [(name, region.phrase, "") for name, region in zip(ids, document.regions, strict=True)]
        return f"{_cited(document.prompt, wanted)} {compact(rows)}"
    moves = _moves(document.source, document.regions)
    ids = _ids([thing.extra.get("id") or (old and old.extra.get("id")) for thing, old, _ in moves])
    rows, wanted = [], []
    for name, (thing, old, new) in zip(ids, moves, strict=True):
        src, tgt = (None if each is None else to_bbox(each.area) for each in (old, new))
        origin = None if old is None else _reference(old)
        rows.append({"id": name, "from": origin, "src_bbox": src, "tgt_bbox": tgt, "desc": with_lettering(thing)})
        verb = "Add" if src is None else "Remove" if tgt is None else "" if src == tgt else "Move"
        wanted.append((name, thing.phrase, verb))
    return f"{_cited(document.prompt, wanted, edit=True)} {compact(rows)}"


def _reference(region: Region) -> str:
    origin = region.extra.get("from") or FIRST_REFERENCE
    if not isinstance(origin, str) or not REFERENCE.fullmatch(origin):
        raise BoxwrightError(
            f'"from" of "{shortened(region.phrase, 40)}" must be ref_image_0 to ref_image_9; it is {shown(origin)}.'
        )
    return origin


def _moves(source: Sequence[Region], target: Sequence[Region]) -> list[tuple[Region, Region | None, Region | None]]:
    """(itself, where it stands, where it shall stand) of each thing: the targets in order, then what has none.

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
    return [(new, pairs.get(index), new) for index, new in enumerate(target)] + [(old, old, None) for old in left]


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
        check_keys(row, keys, keys, where)
        name = row["id"]
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise BoxwrightError(f'{where}: the id must look like "heart_1"; it is {shown(name)}.')
        if name in names:
            raise BoxwrightError(f"{where}: the id {name} stands twice; each row needs its own.")
        names.append(name)
        phrase, extra = without_lettering(checked_phrase(row["desc"], f"{where}: desc"))
        extra["id"] = name
        if not edit[0]:
            regions.append(Region(phrase, from_bbox(row["bbox"], f"{where}: bbox"), extra=extra))
            continue
        origin, src, tgt = row["from"], row["src_bbox"], row["tgt_bbox"]
        if (origin is None) != (src is None) or (src is None and tgt is None):
            raise BoxwrightError(
                f"{where}: from and src_bbox belong together, both given (something of the picture) or both null "
                "(something new, which needs a tgt_bbox)."
            )
        if tgt is not None:
            regions.append(Region(phrase, from_bbox(tgt, f"{where}: tgt_bbox"), extra=dict(extra)))
        if src is not None:
            old = Region(phrase, from_bbox(src, f"{where}: src_bbox"), extra=extra | {"from": origin})
            source.append(replace(old, extra=extra) if _reference(old) == FIRST_REFERENCE else old)
    _check_citations(caption, names)
    named = Document(tuple(regions), tuple(source) if edit[0] else None, caption)
    plain = Document(_without_ids(regions), _without_ids(source) if edit[0] else None, uncited(caption))
    # Ids and marks are kept only where writing the layout again would not bring them back.
    return plain if _write_flux3(plain, None) == _write_flux3(named, None) else named


def split_flux3(text: str, name: str = "text", but: str = "") -> tuple[str, list[Any]]:
    """The caption and the rows of a FLUX.3 prompt. `but`: what the text holds neither, as "no JSON and ". Raises
    BoxwrightError."""
    problem = BoxwrightError(
        f'{name} holds {but}no FLUX.3 table: behind the caption must stand a list like [{{"id": "obj_1", "bbox": [top, '
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


FLUX3 = Format("FLUX.3", frozenset({"prompt", "source", "id", "from", "text"}), (), _write_flux3, _read_flux3)
