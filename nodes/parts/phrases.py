"""Lists of phrases and of "phrase: value" lines, as the user types them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...attention_patches.core.types import MAX_PHRASE, BoxwrightError, Region, StepWindow
from ...attention_patches.methods.reweight import HIGHEST, LOWEST

MAX_PHRASES = 64
MAX_WEIGHTS = 200
MAX_CHARACTERS = 20_000


def parse_phrases(text: str, name: str) -> tuple[str, ...]:
    """Phrases on lines or between commas, in order, each once. Empty ones are skipped. Raises BoxwrightError."""
    _check_length(text, name)
    phrases = tuple(dict.fromkeys(part.strip() for line in text.splitlines() for part in line.split(",")))
    phrases = tuple(phrase for phrase in phrases if phrase)
    if len(phrases) > MAX_PHRASES:
        raise BoxwrightError(f"{name} has {len(phrases)} phrases; at most {MAX_PHRASES} are taken. Shorten the list.")
    for phrase in phrases:
        if len(phrase) > MAX_PHRASE:
            raise BoxwrightError(f'{name}: "{phrase[:40]}..." is longer than {MAX_PHRASE} characters; shorten it.')
    return phrases


def parse_windows(text: str, name: str) -> tuple[tuple[str, StepWindow | None], ...]:
    """Lines "phrase: start end" -> ((phrase, window), ...); start = end: None, never. Raises BoxwrightError."""
    return tuple(_parse_window(number, line, name) for number, line in _lines(text, name, MAX_PHRASES))


def _parse_window(number: int, line: str, name: str) -> tuple[str, StepWindow | None]:
    phrase, colon, numbers = line.rpartition(":")
    try:
        start, end = (float(part) for part in numbers.split())
    except ValueError:
        colon = ""
    if not (colon and phrase.strip()):
        raise BoxwrightError(
            f'Line {number} of {name} is "{line.strip()[:60]}"; write a phrase of a target prompt, a colon and two '
            'numbers from 0 to 1, as "cat: 0 0.5".'
        )
    return phrase.strip(), window_or_none(start, end)


def window_or_none(start: float, end: float) -> StepWindow | None:
    """A window; None where it has no length. Raises BoxwrightError for start above end or outside 0 to 1."""
    return None if start == end and 0.0 <= start <= 1.0 else StepWindow(start, end)


def parse_weights(text: str) -> tuple[tuple[str, float], ...]:
    """Lines "phrase: factor" -> ((phrase, factor), ...). Empty lines are skipped. Raises BoxwrightError."""
    lines = _lines(text, "The list of weights", MAX_WEIGHTS)
    if not lines:
        raise BoxwrightError('There is no weight. Write one per line, as "striped: 2".')
    return tuple(_parse_weight(number, line) for number, line in lines)


def _parse_weight(number: int, line: str) -> tuple[str, float]:
    phrase, colon, factor = line.rpartition(":")
    phrase = phrase.strip()
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not (colon and phrase and math.isfinite(value)):
        raise BoxwrightError(
            f'Line {number} of the weights is "{line.strip()[:60]}"; write a phrase of the prompt, a colon and a '
            f'number from {LOWEST:g} to {HIGHEST:g}, as "striped: 2".'
        )
    return phrase, value


def _check_length(text: str, name: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise BoxwrightError(f"{name} has {len(text)} characters; at most {MAX_CHARACTERS} are read. Shorten it.")


def _lines(text: str, name: str, most: int) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers, from 1."""
    _check_length(text, name)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > most:
        raise BoxwrightError(f"{name} has {len(lines)} lines; at most {most} are read. Shorten it.")
    return lines


def texts_of(regions: Sequence[Region]) -> list[tuple[str, str]]:
    """The phrases and negative phrases of regions, each with a name for messages."""
    texts = [(f"Region {number}", region.phrase) for number, region in enumerate(regions, 1)]
    negatives = [(f"The negative of region {number}", region.negative) for number, region in enumerate(regions, 1)]
    return texts + negatives
