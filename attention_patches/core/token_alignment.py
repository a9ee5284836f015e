"""Which words of an edited prompt are those of the source prompt (Prompt-to-Prompt, arXiv 2208.01626, section 3.2).

Prompts are compared word by word, then each word's tokens are mapped. As the paper's implementation, this is a global
alignment after Needleman and Wunsch (1970) with match 1, gap 0 and no mismatches. Departures: among equally good
alignments the one with the fewest separate differences wins, so that a change stays in one piece; words that are not
plain (start, end) take part too; padding stands for padding of the same place, so a shorter target does not inherit a
source word there; after a swap of words of different lengths the rest of the prompt is shifted, not misaligned.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .tokens import Span, belongs_to_word, fold
from .types import BoxwrightError, TokenMap

MAX_WORDS = 1500  # per prompt: the alignment takes time and memory of their product
MAX_SHOWN = 60  # characters of a run of words in reports

Mode = Literal["auto", "replace", "refine"]
Change = Literal["same", "replaced", "removed", "added"]


@dataclass(frozen=True)
class Word:
    """A word of a prompt, a punctuation mark beside it, or one special token."""

    name: str  # folded text; "<start>" and the like for special tokens
    columns: tuple[int, ...]  # its text columns, ascending

    @property
    def special(self) -> bool:
        """Whether it stands for no word: start, end, template."""
        return self.name.startswith("<") and self.name.endswith(">")


@dataclass(frozen=True)
class Difference:
    """A stretch of the two prompts that are the same, or that differ."""

    change: Change
    source: tuple[Word, ...]
    target: tuple[Word, ...]


@dataclass(frozen=True)
class TokenAlignment:
    """edited attention = source attention @ weights, for the columns that are shared."""

    weights: Tensor  # float32 [T_source, T_target]; columns that are not shared are 0
    shared: Tensor  # bool [T_target]; False = a new word: it keeps its own attention
    differences: tuple[Difference, ...]

    def repeated(self, source: int, target: int) -> TokenAlignment:
        """The same for prompts whose columns stand `source` and `target` times side by side.

        Attention to repeated columns is shared out among them: it is summed over those of the source and divided
        evenly over those of the target.
        """
        weights = self.weights.repeat(source, target) / target
        return TokenAlignment(weights, self.shared.repeat(target), self.differences)


# --- words ------------------------------------------------------------------------------------------------------------


def text_words(text: str) -> list[Span]:
    """The words of a text as character spans: what white space separates, punctuation at its ends apart.

    Inner punctuation ("t-shirt", "it's") belongs to the word. In scripts without spaces every character is a word.
    """
    spans: list[Span] = []
    start = 0
    for position in range(1, len(text) + 1):
        if position == len(text) or text[position].isspace() or text[start].isspace():
            if not text[start].isspace():
                spans.extend(_chunk_words(text, start, position))
            start = position
    return spans


def _chunk_words(text: str, start: int, end: int) -> list[Span]:
    """The words of one stretch without white space."""
    first, last = start, end
    while first < last and _is_mark(text[first]):
        first += 1
    while last > first and _is_mark(text[last - 1]):
        last -= 1
    middle: list[Span] = []
    for position in range(first, last):
        if middle and not _word_begins(text[position - 1], text[position]):
            middle[-1] = (middle[-1][0], position + 1)
        else:
            middle.append((position, position + 1))
    before = [(i, i + 1) for i in range(start, first)]
    after = [(i, i + 1) for i in range(last, end)]
    return [*before, *middle, *after]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PSC" and character != "_"


def _word_begins(left: str, right: str) -> bool:
    """Whether two neighbours, neither of them white space, belong to different words: scripts without spaces."""
    if unicodedata.category(right)[0] not in "LN" or unicodedata.category(left)[0] not in "LNM":
        return False  # accents, and punctuation inside a word
    return not (belongs_to_word(left) and belongs_to_word(right))


def words_of(tokens: TokenMap) -> list[Word]:
    """The words of an encoded prompt with their columns, in order; padding is left out.

    A token that covers several words counts for the first of them; a word without a token of its own is left out.
    """
    places = text_words(tokens.text)
    words: list[Word] = []
    current: Span | None = None
    for column, (span, role) in enumerate(zip(tokens.spans, tokens.roles, strict=True)):
        if role == "padding":
            current = None
            continue
        if span is None:
            words.append(Word(f"<{role}>", (column,)))
            current = None
            continue
        place = next((p for p in places if max(p[0], span[0]) < min(p[1], span[1])), span)
        if place == current:
            words[-1] = Word(words[-1].name, (*words[-1].columns, column))
        else:
            words.append(Word(fold(tokens.text[place[0] : place[1]])[0].strip(), (column,)))
        current = place
    return words


# --- alignment --------------------------------------------------------------------------------------------------------


def align(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs (i, j) of equal words: the most of them in order, in the fewest separate differences. Deterministic.

    A difference is an unbroken stretch of words, in either text, between matches. Raises BoxwrightError for texts of
    more than MAX_WORDS words.
    """
    for name, words in (("source", source), ("target", target)):
        if len(words) > MAX_WORDS:
            raise BoxwrightError(f"The {name} prompt has {len(words)} words; at most {MAX_WORDS} are compared.")
    n, m = len(source), len(target)
    # Scores (matches, -differences) of aligning source[i:] with target[j:], by whether the step before was a gap.
    after_match = [[(0, 0)] * (m + 1) for _ in range(n + 1)]
    after_gap = [[(0, 0)] * (m + 1) for _ in range(n + 1)]
    for i in range(n, -1, -1):
        for j in range(m, -1, -1):
            if i == n and j == m:
                continue
            gaps = [after_gap[i + 1][j]] if i < n else []
            gaps += [after_gap[i][j + 1]] if j < m else []
            gap = max(gaps)
            matched = None
            if i < n and j < m and source[i] == target[j]:
                matches, negative = after_match[i + 1][j + 1]
                matched = (matches + 1, negative)
            opened = (gap[0], gap[1] - 1)
            after_gap[i][j] = gap if matched is None else max(gap, matched)
            after_match[i][j] = opened if matched is None else max(opened, matched)
    pairs: list[tuple[int, int]] = []
    i = j = 0
    in_gap = False
    while i < n and j < m:
        best = after_gap[i][j] if in_gap else after_match[i][j]
        if source[i] == target[j]:
            matches, negative = after_match[i + 1][j + 1]
            if best == (matches + 1, negative):
                pairs.append((i, j))
                i, j, in_gap = i + 1, j + 1, False
                continue
        cost = 0 if in_gap else 1
        down = after_gap[i + 1][j]
        if best == (down[0], down[1] - cost):
            i += 1
        else:
            j += 1
        in_gap = True
    return pairs


def token_alignment(source: TokenMap, target: TokenMap, mode: Mode = "auto") -> TokenAlignment:
    """How the attention of the source's columns becomes that of the target's.

    A word that both prompts have: its tokens one to one; where their number differs, every target token gets an even
    share of the source tokens' sum. Words that differ between two common ones, by `mode`:
      "auto"     as many words in the target as in the source: they are replaced, one word by one word (the target word
                 takes over the source word's attention); otherwise as "refine"
      "replace"  always replaced; raises BoxwrightError where their numbers differ
      "refine"   words of the target are new: they keep their own attention
    """
    left, right = words_of(source), words_of(target)
    pairs = align([word.name for word in left], [word.name for word in right])
    weights = torch.zeros(len(source), len(target))
    differences: list[Difference] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(left), len(right))]:
        removed, added = tuple(left[i:next_i]), tuple(right[j:next_j])
        differences.extend(_difference(removed, added, mode))
        if next_i < len(left):
            _append_same(differences, left[next_i], right[next_j])
        i, j = next_i + 1, next_j + 1
    for difference in differences:
        if difference.change in ("same", "replaced"):
            for old, new in zip(difference.source, difference.target, strict=True):
                _map_word(weights, old, new)
    shared = weights.any(dim=0)
    for column in range(min(len(source), len(target))):
        if source.roles[column] == target.roles[column] == "padding":
            weights[column, column] = 1.0
            shared[column] = True
    return TokenAlignment(weights, shared, tuple(differences))


def _difference(removed: tuple[Word, ...], added: tuple[Word, ...], mode: Mode) -> list[Difference]:
    plain = not any(word.special for word in (*removed, *added))
    if mode != "refine" and plain and removed and len(removed) == len(added):
        return [Difference("replaced", removed, added)]
    if mode == "replace" and (removed or added):
        raise BoxwrightError(
            f'"{_said(removed)}" ({len(removed)} words) cannot be replaced by "{_said(added)}" ({len(added)} words): '
            "that takes as many words on both sides. Use the same number of words, or choose auto or refine."
        )
    found = [Difference("removed", removed, ())] if removed else []
    return [*found, Difference("added", (), added)] if added else found


def _append_same(differences: list[Difference], old: Word, new: Word) -> None:
    if differences and differences[-1].change == "same":
        last = differences.pop()
        differences.append(Difference("same", (*last.source, old), (*last.target, new)))
    else:
        differences.append(Difference("same", (old,), (new,)))


def _map_word(weights: Tensor, old: Word, new: Word) -> None:
    """Tokens one to one; where the numbers differ, every new token gets an even share of the old ones' sum."""
    if len(old.columns) == len(new.columns):
        weights[list(old.columns), list(new.columns)] = 1.0
    else:
        weights[torch.tensor(old.columns)[:, None], torch.tensor(new.columns)[None, :]] = 1.0 / len(new.columns)


# --- words for people -------------------------------------------------------------------------------------------------


def alignment_report(alignment: TokenAlignment) -> str:
    """The differences in order, one line each; runs of common words are shortened."""
    lines = []
    for difference in alignment.differences:
        if all(word.special for word in (*difference.source, *difference.target)):
            continue
        old, new = _said(difference.source), _said(difference.target)
        lines.append(
            {
                "same": f"  = {old}",
                "replaced": f"  ~ {old} -> {new} (replaced: takes over its attention{_counts(difference)})",
                "removed": f"  - {old} (removed)",
                "added": f"  + {new} (new: keeps its own attention)",
            }[difference.change]
        )
    return "\n".join(lines)


def _counts(difference: Difference) -> str:
    old, new = (sum(len(word.columns) for word in side) for side in (difference.source, difference.target))
    return "" if old == new else f", {old} to {new} tokens"


def _said(words: Sequence[Word]) -> str:
    text = " ".join(word.name for word in words if not word.special)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2 - 2]} ... {text[-MAX_SHOWN // 2 + 2 :]}"
