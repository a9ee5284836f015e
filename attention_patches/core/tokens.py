"""Which characters of a prompt each token stands for, and where a phrase is in it. Pure text work, no host."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .marks import without_emphasis
from .types import BoxwrightError, PhraseNotFoundError, TokenMap

Span = tuple[int, int]
Piece = str | bytes | None  # a token as the tokenizer spells it; bytes: part of a UTF-8 text; None: <unk>

# Scripts written without spaces (or, Korean, with particles glued on): every character may begin or end a word.
UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
ZERO_WIDTH_JOINER = "\u200d"
UNKNOWN = "\0"  # stands for <unk> among the characters of the pieces; never a character of a folded text
RESYNC_PROOF = 3  # characters that must agree where text and pieces meet again after a difference
RESYNC_STEPS = sorted(((a, b) for a in range(9) for b in range(9) if a + b), key=sum)  # and how far that is looked for
UNKNOWN_PROOFS = (12, 6, 3, 1)  # the same after <unk>, longest first: <unk> may stand for any length of text


@lru_cache(maxsize=8)  # one prompt is searched for every phrase
def fold(text: str) -> tuple[str, tuple[int, ...]]:
    """The text without case, width and accent-composition differences, and the index each folded character came from.

    Runs of white space become one space. The result may be longer or shorter than the text.
    """
    folded: list[str] = []
    origins: list[int] = []
    for index, character in enumerate(text):
        if character.isspace():
            units = "" if folded and folded[-1] == " " else " "
        else:
            units = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
            units = units.replace(UNKNOWN, "").replace(" ", "")  # some marks decompose to a space and an accent
        folded.extend(units)
        origins.extend([index] * len(units))
    return "".join(folded), tuple(origins)


# --- phrases in a text ------------------------------------------------------------------------------------------------


def find_occurrences(text: str, phrase: str) -> list[Span]:
    """Every place in `text` where `phrase` stands as whole words: character spans, in order, not overlapping.

    Case, width, accent composition and the kind and length of white space do not count.
    """
    haystack, origins = fold(text)
    needle = fold(phrase.strip())[0]
    found: list[Span] = []
    start = haystack.find(needle) if needle else -1
    while start >= 0:
        end = start + len(needle)
        if is_border(haystack, origins, start) and is_border(haystack, origins, end):
            found.append((origins[start], origins[end - 1] + 1))
            start = haystack.find(needle, end)
        else:
            start = haystack.find(needle, start + 1)
    return found


def is_border(folded: str, origins: Sequence[int], position: int) -> bool:
    """Whether a word may begin or end between the folded characters `position - 1` and `position`."""
    if position in (0, len(folded)) or " " in folded[position - 1 : position + 1]:
        return True
    left, right = folded[position - 1], folded[position]
    if origins[position - 1] == origins[position]:
        return False
    if unicodedata.category(right).startswith("M") or ZERO_WIDTH_JOINER in (left, right):
        return False  # an accent belongs to the letter before it, a joined emoji is one picture
    return not (belongs_to_word(left) and belongs_to_word(right))


def belongs_to_word(character: str) -> bool:
    """Whether the character glues to its neighbours: a letter, digit, accent or "_" of a script that uses spaces."""
    if unicodedata.category(character)[0] not in "LNM" and character != "_":
        return False
    return not unicodedata.name(character, "").startswith(UNSPACED_SCRIPTS)


def phrase_columns(tokens: TokenMap, phrase: str) -> Tensor:
    """The text columns of every occurrence of the phrase, bool [T]; all false where there is none.

    A phrase that is not in the text as it stands is looked for without marks of emphasis, which the text lost, too.
    """
    occurrences = find_occurrences(tokens.text, phrase) or find_occurrences(tokens.text, without_emphasis(phrase))
    return span_columns(tokens, occurrences)


def span_columns(tokens: TokenMap, spans: Sequence[Span]) -> Tensor:
    """The text columns whose characters overlap any of the spans, bool [T]."""
    return torch.tensor(
        [own is not None and any(max(own[0], a) < min(own[1], b) for a, b in spans) for own in tokens.spans],
        dtype=torch.bool,
    )


def region_columns(tokens: TokenMap, phrases: Sequence[str]) -> Tensor:
    """The text columns each region owns, bool [R, T]. `phrases` as the encoder reads them.

    Regions that share a phrase share its occurrences out in order if there are as many of them as regions; otherwise
    each gets all. Raises PhraseNotFoundError for a phrase that the prompt lacks.
    """
    names = [fold(phrase.strip())[0] for phrase in phrases]
    rows = []
    for number, (phrase, name) in enumerate(zip(phrases, names, strict=True)):
        occurrences = find_occurrences(tokens.text, phrase)
        if not occurrences:
            raise not_found(tokens.text, phrase, "change the region's phrase")
        if len(occurrences) == names.count(name):
            occurrences = [occurrences[names[:number].count(name)]]
        row = span_columns(tokens, occurrences)
        if not row.any():
            raise BoxwrightError(
                f'"{phrase}" is in the prompt, but the text encoder cut it off; move it nearer to the start, or '
                "shorten the prompt."
            )
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros(0, len(tokens), dtype=torch.bool)


def not_found(text: str, phrase: str, other: str) -> PhraseNotFoundError:
    """The error for a phrase that the prompt lacks; `other`: what else there is to do."""
    return missing([text], phrase, "the prompt", f"Write the phrase into the prompt word for word, or {other}.")


def missing(texts: Iterable[str], phrase: str, where: str, remedy: str) -> PhraseNotFoundError:
    """The error for a phrase that none of the texts has, with the words of the first that has some like it."""
    match = next(filter(None, (closest_match(text, phrase) for text in texts)), None)
    hint = f' The closest words are "{match}".' if match else ""
    return PhraseNotFoundError(f'"{phrase}" is not in {where}.{hint} {remedy}')


def closest_match(text: str, phrase: str) -> str | None:
    """The run of words in the text most like the phrase; None if nothing is like it."""
    words = text.split()
    wanted = len(phrase.split())
    runs = {}
    for length in range(max(1, wanted - 1), wanted + 2):
        for first in range(len(words) - length + 1):
            run = " ".join(words[first : first + length]).strip(".,;:!?()[]{}\"'")
            runs[run.casefold()] = run
    close = difflib.get_close_matches(" ".join(phrase.split()).casefold(), runs, n=1, cutoff=0.6)
    return runs[close[0]] if close else None


# --- tokens in a text -------------------------------------------------------------------------------------------------


def align_pieces(text: str, pieces: Sequence[Piece]) -> list[Span]:
    """The characters of `text` that each token stands for: one span per piece, starts and ends never going back.

    `pieces` are the tokens' spellings in order: spaces where the tokenizer marks them, no other marks. Tokens that are
    parts of one character share its span; <unk> takes the characters up to the next token; characters that the
    tokenizer drops go to the token before them; a token of white space or of nothing gets what lies between its
    neighbours (an empty span if that is nothing). Never raises on any text.
    """
    heard, origins = without_spaces(*fold(text))
    said, owners = spoken(pieces)
    first = [len(text)] * len(pieces)
    last = [-1] * len(pieces)
    for (i, j), (next_i, next_j) in pairwise(agreements(heard, said)):
        if next_j > j:
            owning = sorted({piece for unit in owners[j:next_j] for piece in unit})
        else:
            owning = list(owners[max(j - 1, 0)]) if owners else []  # dropped by the tokenizer
        for characters, speakers in word_by_word(origins[i:next_i], owning) if next_i > i else ():
            for piece in speakers:
                first[piece] = min(first[piece], characters[0])
                last[piece] = max(last[piece], characters[-1])
    return fill_spaces([None if b < 0 else (a, b + 1) for a, b in zip(first, last, strict=True)], len(text))


def word_by_word(characters: list[int], pieces: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Several characters and pieces that belong together as a whole, taken apart at white space where both have it."""
    words, speakers = unbroken(characters), unbroken(pieces)
    if len(words) == len(speakers):
        return list(zip(words, speakers, strict=True))
    return [(list(characters), list(pieces))]


def unbroken(indices: Sequence[int]) -> list[list[int]]:
    """The runs in ascending numbers, repeats allowed: what is left out is white space."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index <= runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def without_spaces(folded: str, origins: Sequence[int]) -> tuple[str, list[int]]:
    """A folded text and its origins, less the white space."""
    kept = [index for index, character in enumerate(folded) if character != " "]
    return "".join(folded[index] for index in kept), [origins[index] for index in kept]


def spoken(pieces: Sequence[Piece]) -> tuple[str, list[tuple[int, ...]]]:
    """What the tokens spell together, folded, without spaces; and, per character, the pieces it came from.

    Bytes of neighbouring tokens are joined before they are read: one character may be spread over several.
    """
    said: list[str] = []
    owners: list[tuple[int, ...]] = []
    for piece_of_byte, raw in known_runs(pieces):
        if raw is None:
            said.append(UNKNOWN)
            owners.append((piece_of_byte[0],))
            continue
        decoded = raw.decode("utf-8", errors="surrogateescape")  # one character for each byte that is no UTF-8
        position, characters = 0, []
        for character in decoded:
            size = len(character.encode("utf-8", errors="surrogateescape"))
            characters.append(tuple(dict.fromkeys(piece_of_byte[position : position + size])))
            position += size
        folded, origins = without_spaces(*fold(decoded))
        said.append(folded)
        owners.extend(characters[origin] for origin in origins)
    return "".join(said), owners


def known_runs(pieces: Sequence[Piece]) -> Iterator[tuple[list[int], bytes | None]]:
    """The UTF-8 of every run of known tokens with the piece of each byte; an unknown token alone with None."""
    run: list[int] = []
    raw = b""
    for number, piece in enumerate(pieces):
        if piece is None:
            if raw:
                yield run, raw
            yield [number], None
            run, raw = [], b""
        else:
            spelled = piece if isinstance(piece, bytes) else piece.encode("utf-8")
            run.extend([number] * len(spelled))
            raw += spelled
    if raw:
        yield run, raw


def agreements(heard: str, said: str) -> Iterator[Span]:
    """Pairs (i, j): heard[:i] and said[:j] stand for the same text. From (0, 0) to both ends, never going back."""
    i = j = 0
    yield i, j
    while i < len(heard) and j < len(said):
        if said[j] == UNKNOWN:
            step = step_over_unknown(heard, said, i, j)
        elif heard[i] == said[j]:
            step = (1, 1)
        else:
            step = step_over_difference(heard, said, i, j)
        i, j = i + step[0], j + step[1]
        yield i, j
    if (i, j) != (len(heard), len(said)):
        yield len(heard), len(said)


def step_over_unknown(heard: str, said: str, i: int, j: int) -> Span:
    """How many characters of each text a run of unknown tokens takes: up to where what follows it is found."""
    after = j
    while after < len(said) and said[after] == UNKNOWN:
        after += 1
    following = said[after:].split(UNKNOWN, 1)[0] if after < len(said) else ""
    for proof in UNKNOWN_PROOFS if following else ():
        place = heard.find(following[:proof], i + 1)
        if place >= 0:
            return place - i, after - j
    return (1 if following else len(heard) - i), after - j


def step_over_difference(heard: str, said: str, i: int, j: int) -> Span:
    """The fewest characters to leave out of each text until they agree again."""
    for skip, silent in RESYNC_STEPS:
        length = 1 if skip == silent == 1 else RESYNC_PROOF  # one character for another is the commonest difference
        proof = said[j + silent : j + silent + length].split(UNKNOWN)[0]
        if proof and heard.startswith(proof, i + skip):
            return skip, silent
    return 1, 1


def fill_spaces(spans: list[Span | None], length: int) -> list[Span]:
    """Gives tokens without characters what lies between their neighbours' spans, or what these share."""
    following = [length] * (len(spans) + 1)
    for index in range(len(spans) - 1, -1, -1):
        span = spans[index]
        following[index] = span[0] if span else following[index + 1]
    filled: list[Span] = []
    end = 0
    for span, start in zip(spans, following[:-1], strict=True):
        filled.append(span or (min(end, start), max(end, start)))
        end = span[1] if span else end
    return filled
