"""A prompt and its regions -> the conditioning, and the layout that says which columns of it each region owns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.marks import escaped, is_balanced, without_orders
from ...core.regions import regions_digest
from ...core.tokens import find_occurrences, not_found, region_columns
from ...core.types import MAX_PHRASE, BoxwrightError, EncodedText, Layout, Region
from .conditioning import MAX_PROMPT, check_text, column_streams, encode_with
from .reader import PromptReader

LAYOUT_KEY = "boxwright_layout"  # in every entry of the conditioning: the key of the layout it was encoded with


@dataclass(frozen=True)
class ReadPhrase:
    """A region's phrase."""

    prompt: str  # what is encoded for it
    text: str  # what the encoder reads of that: emphasis marks and escapes removed


def encode_layout(
    clip: Any, prompt: str, regions: Sequence[Region], append_missing: bool, encoders: Mapping[int, Any] | None = None
) -> tuple[list, Layout]:
    """The conditioning of the prompt and the layout that belongs to it, tied together by the layout's key.

    Phrases are read as prompts of their own, emphasis and all, and found in the prompt without it. A phrase that the
    prompt lacks is appended to it, or raises PhraseNotFoundError if `append_missing` is false. `encoders`: number of a
    region, from 0 -> a CLIP of the same kind that encodes its own texts (one with the text part of its LoRA).
    """
    regions = tuple(regions)
    reader = PromptReader(clip)
    plain, phrases, missing = compare(reader, prompt, [region.phrase for region in regions])
    if missing and not append_missing:
        raise not_found(plain, missing[0].text, "change the region's phrase, or switch append_missing on")
    encoded, conditioning, key = encode_with(reader, with_phrases(prompt, missing))
    columns = region_columns(encoded.tokens, [phrase.text for phrase in phrases])
    readers = {number: PromptReader(encoder) for number, encoder in (encoders or {}).items()}
    known: dict[tuple[int, str], EncodedText] = {}

    def alone(number: int, text: str) -> EncodedText:
        own = readers.get(number, reader)
        if (id(own), text) not in known:
            known[id(own), text] = encode_with(own, text)[0]
        return known[id(own), text]

    texts = tuple(alone(number, phrase.prompt) for number, phrase in enumerate(phrases))
    negatives = [without_orders(region.negative)[0] for region in regions]
    against = tuple(alone(number, text) if text else None for number, text in enumerate(negatives))
    key = hashlib.sha256(f"{key}{regions_digest(regions)}".encode()).hexdigest()
    positive = [[c, {**d, LAYOUT_KEY: key}] for c, d in conditioning]
    return positive, Layout(encoded, regions, columns, texts, key, against if any(against) else ())


def missing_phrases(clip: Any, prompt: str, regions: Sequence[Region]) -> list[str]:
    """The phrases that `encode_layout` appends to the prompt: those that it lacks, in order, each once."""
    return [phrase.prompt for phrase in compare(PromptReader(clip), prompt, [region.phrase for region in regions])[2]]


def compare(
    reader: PromptReader, prompt: str, phrases: Sequence[str]
) -> tuple[str, list[ReadPhrase], list[ReadPhrase]]:
    """The prompt as the encoder reads it, the phrases, and those it lacks; none of these is part of one before it."""
    check_phrases(phrases)
    check_text(prompt, "prompt", MAX_PROMPT)
    key = column_streams(reader)[0][0]
    so_far = reader.read(prompt, key).text
    plain, read, missing = so_far, [], []
    for number, phrase in enumerate(phrases, 1):
        found = read_phrase(reader, key, so_far, phrase, number)
        read.append(found)
        if not find_occurrences(so_far, found.text):
            missing.append(found)
            so_far = f"{so_far}, {found.text}"
    return plain, read, missing


def read_phrase(reader: PromptReader, key: str, prompt: str, phrase: str, number: int) -> ReadPhrase:
    """The phrase of region `number` as the encoder reads it; literally where that stands in the prompt as it was read.

    Raises BoxwrightError for a phrase of which the encoder reads nothing, or with an embedding that does not exist.
    """
    asked = without_orders(phrase.strip())[0]
    if find_occurrences(prompt, asked):
        return ReadPhrase(escaped(asked), asked)
    text = reader.read(asked, key).text.strip()
    if reader.absent:
        raise BoxwrightError(
            f'The phrase of region {number}, "{phrase}", names the embedding "{reader.absent[0]}", and there is none, '
            "so that the text encoder would leave it out. Put its file into models/embeddings, or change the phrase."
        )
    if not text:
        raise BoxwrightError(
            f'The text encoder finds no words in the phrase of region {number}, "{phrase}"; say what belongs there.'
        )
    return ReadPhrase(asked, text)


def with_phrases(prompt: str, phrases: Sequence[ReadPhrase]) -> str:
    """The prompt with the phrases appended after commas; emphasis as written, where no parenthesis stands alone."""
    start = prompt.rstrip().removesuffix(",") if phrases else prompt
    whole = all(is_balanced(text) for text in (prompt, *(phrase.prompt for phrase in phrases)))
    added = [phrase.prompt if whole else escaped(phrase.text) for phrase in phrases]
    return ", ".join([*([start] if start or not phrases else []), *added])


def check_phrases(phrases: Sequence[str]) -> None:
    """Refuses a region without a phrase, naming its number."""
    for number, phrase in enumerate(phrases, 1):
        if not without_orders(phrase)[0].strip():
            raise BoxwrightError(f"Region {number} has no phrase; say what belongs there.")
        check_text(phrase, f"phrase of region {number}", MAX_PHRASE)
