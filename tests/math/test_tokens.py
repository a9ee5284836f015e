"""Phrases in a text, and tokens in a text: boundaries, folding, sharing out, alignment of any Unicode."""

import random

import pytest
from pack.attention_patches.core.tokens import (
    align_pieces,
    closest_match,
    find_occurrences,
    not_found,
    phrase_columns,
    region_columns,
)
from pack.attention_patches.core.types import BoxwrightError, PhraseNotFoundError, TokenMap

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three emoji joined into one picture
ALPHABETS = (
    "abc XYZ \t\n,.!?()_-0189",
    "éÉßŒıİﬁ²½Å",
    "e\u0301a\u0323\u0307n\u0303",
    "赤い猫カタ高。、",
    "한국어고양이",
    "שלום مرحبا",
    "แมวสีแดง हिन्दी",
    "\U0001f600\u200d\U0001f3fd\ufe0f" + FAMILY,
    "\u200b\u00ad\u2028\u3000\x01",
)


def texts(count, seed=0):
    """Random texts over mixed scripts, with runs of white space, marks without a letter and invisible characters."""
    rng = random.Random(seed)
    for _ in range(count):
        letters = "".join(rng.choices(ALPHABETS, k=rng.randint(1, 3)))
        yield "".join(rng.choices(letters + " ", k=rng.randint(0, 40)))


def cut(text, rng):
    """The text cut at random places."""
    places = sorted({0, len(text), *(rng.randrange(len(text) + 1) for _ in range(len(text) // 2))})
    return [text[a:b] for a, b in zip(places, places[1:])]


def word_map(text):
    """A TokenMap with one column per word, between a start and an end column."""
    spans, position = [], 0
    for word in text.split():
        position = text.index(word, position)
        spans.append((position, position + len(word)))
        position += len(word)
    return TokenMap(text, (None, *spans, None), ("start", *["word"] * len(spans), "end"))


def found(text, phrase):
    return [text[a:b] for a, b in find_occurrences(text, phrase)]


# --- phrases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, phrase, count",
    [
        ("a scar, a CAR, a car", "car", 2),
        ("cars car_2 2car", "car", 0),
        ("car's car-like (car)", "car", 3),
        ("a red \n\t cat", "red cat", 1),
        ("a redcat", "red cat", 0),
        ("a red cat", " red  cat ", 1),
        ("a red cat", "", 0),
        ("a red cat", " \t", 0),
        ("", "cat", 0),
        ("ab, ab, ab", "ab, ab", 1),  # not overlapping
        ("赤い猫と猫", "猫", 2),  # a script without spaces
        ("赤い猫cat犬", "cat", 1),  # next to one
        ("고양이가 있다", "고양이", 1),  # a particle is glued on
        ("แมวสีแดง", "แมว", 1),
        ("Straße STRASSE", "strasse", 2),
        ("ﬁre", "fire", 1),
        ("ﬁre", "f", 0),  # half of a character
        ("ﬁ re", "i re", 0),
        ("½ cup", "1", 0),
        ("café", "cafe", 0),
        ("café cafe\u0301", "Cafe\u0301", 2),  # composed and decomposed
        ("cafe\u0301", "cafe", 0),
        (f"x {FAMILY} y", "\U0001f468", 0),  # one of a joined picture
        (f"x {FAMILY} y", FAMILY, 1),
        ("ＲＥＤ cat", "red cat", 1),  # full width
        ("(red) [x] a.b*c", "a.b*c", 1),  # nothing is a pattern
        ("don't", "don", 1),
    ],
)
def test_occurrences_are_whole_words(text, phrase, count):
    assert len(find_occurrences(text, phrase)) == count


def test_occurrence_spans_are_those_of_the_text_itself():
    text = "Two CAFÉS:  a café\u3000noir and cafe\u0301 noir."
    assert found(text, "Café noir") == ["café\u3000noir", "cafe\u0301 noir"]
    assert found("x İstanbul y", "i\u0307stanbul") == ["İstanbul"]  # one character folds to two


def test_any_text_contains_itself_and_every_span_reads_like_the_phrase():
    for text in texts(300, seed=1):
        assert len(find_occurrences(text, text)) == bool(text.strip()), repr(text)
        for word in text.split():
            for a, b in find_occurrences(text, word):
                assert 0 <= a < b <= len(text), repr(text)
                assert find_occurrences(text[a:b], word) == [(0, b - a)], repr(text)


def test_columns_of_a_phrase_are_all_columns_that_overlap_it():
    tokens = TokenMap("a redcat, cat", ((0, 1), (2, 5), (5, 8), (8, 9), (10, 13), None), ("word",) * 5 + ("end",))
    assert phrase_columns(tokens, "redcat").tolist() == [False, True, True, False, False, False]
    assert phrase_columns(tokens, "cat").tolist() == [False, False, False, False, True, False]
    assert not phrase_columns(tokens, "dog").any()
    assert phrase_columns(tokens, "(redcat:1.3)").tolist() == phrase_columns(tokens, "redcat").tolist()
    marked = word_map("a (red) (redcat:1.3)")  # an encoder without emphasis reads the marks
    assert phrase_columns(marked, "(redcat:1.3)").tolist() == [False, False, False, True, False]
    wide = TokenMap("red cat", ((0, 5), (5, 7)), ("word", "word"))
    assert phrase_columns(wide, "cat").tolist() == [True, True]  # a token that is half in
    empty = TokenMap("red cat", ((0, 0), (0, 3), (3, 3), (4, 7)), ("word",) * 4)
    assert phrase_columns(empty, "red").tolist() == [False, True, False, False]


def test_regions_that_share_a_phrase_share_its_occurrences_in_order():
    tokens = word_map("cat dog Cat")
    assert region_columns(tokens, ["cat", "dog", " CAT"]).int().tolist() == [
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
    ]


@pytest.mark.parametrize("text, regions", [("cat cat cat", 2), ("cat", 3), ("cat cat", 1)])
def test_regions_get_every_occurrence_when_the_counts_differ(text, regions):
    columns = region_columns(word_map(text), ["cat"] * regions)
    assert columns.shape == (regions, len(text.split()) + 2)
    assert (columns.sum(dim=1) == len(text.split())).all()


def test_no_regions_is_an_empty_table():
    assert region_columns(word_map("a cat"), []).shape == (0, 4)


def test_absent_phrase_is_named_with_the_closest_words_and_the_remedy():
    with pytest.raises(PhraseNotFoundError) as raised:
        region_columns(word_map("a red car and a blue dog."), ["blue dog", "red cat"])
    assert all(part in str(raised.value) for part in ('"red cat"', '"red car"', "change the region's phrase"))
    assert "append_missing" not in str(raised.value)  # by then it is on


def test_absent_phrase_like_nothing_gets_no_suggestion():
    assert "closest" not in str(not_found("a red car", "xyzzy", "leave it out"))
    assert closest_match("", "red") is None


@pytest.mark.parametrize(
    "text, phrase, match",
    [
        ("a red car and a blue dog", "blue dogs", "blue dog"),
        ("a Red Car, parked", "redcar", "Red Car"),
        ("two big dogs", "two very big dogs", "two big dogs"),
        ("a (green) apple", "green aple", "green) apple"),
    ],
)
def test_closest_match_is_a_run_of_words_of_the_text(text, phrase, match):
    assert closest_match(text, phrase) == match


def test_phrase_that_the_encoder_cut_off_is_an_error():
    tokens = TokenMap("a cat and a dog", ((0, 1), (2, 5)), ("word", "word"))
    with pytest.raises(BoxwrightError, match='"dog".*cut it off'):
        region_columns(tokens, ["dog"])


# --- alignment --------------------------------------------------------------------------------------------------------


def spelled(text, pieces):
    return [text[a:b] for a, b in align_pieces(text, pieces)]


def test_pieces_get_their_characters_without_the_space_before():
    assert spelled("A Red,  cat", ["a", " r", "ed", ",", " ", " cat"]) == ["A", "R", "ed", ",", "  ", "cat"]


def test_parts_of_one_character_share_it():
    text = "ok \U0001f600!"
    raw = "\U0001f600".encode()
    assert spelled(text, ["ok", b" " + raw[:2], raw[2:3], raw[3:] + b"!"]) == [
        "ok",
        "\U0001f600",
        "\U0001f600",
        "\U0001f600!",
    ]


def test_unknown_token_takes_what_lies_before_the_next_piece():
    assert spelled("a 猫猫 b", ["a", " ", None, " b"]) == ["a", " ", "猫猫", "b"]
    assert spelled("猫 a", [None, "a"]) == ["猫", "a"]
    assert spelled("a 猫", ["a", None]) == ["a", "猫"]
    assert spelled("猫a犬b", [None, "a", None, "b"]) == ["猫", "a", "犬", "b"]
    assert spelled("a 猫 犬猫 b", ["a", " ", None, " ", None, " b"]) == ["a", " ", "猫", " ", "犬猫", "b"]
    assert spelled("猫 犬", [None, None]) == ["猫 犬", "猫 犬"]  # which is which cannot be told


def test_what_the_tokenizer_drops_goes_to_the_token_before_it():
    assert spelled("a\u200bb", ["a", "b"]) == ["a\u200b", "b"]
    assert spelled("\u200bab", ["a", "b"]) == ["\u200ba", "b"]
    assert spelled("ab\u200b", ["a", "b"]) == ["a", "b\u200b"]
    assert spelled("a\u0323bc x", ["a", "bc", None]) == ["a\u0323", "bc", "x"]
    assert spelled("cafés no", ["cafes", "no"]) == ["cafés", "no"]  # a tokenizer that strips accents


def test_what_the_tokenizer_changes_keeps_its_place():
    assert spelled("a ‘x’ b", ["a", "'", "x", "'", "b"]) == ["a", "‘", "x", "’", "b"]
    assert spelled("wait… no", ["wait", "...", "no"]) == ["wait", "…", "no"]
    assert spelled("½ cup", ["1", "/", "2", "cup"]) == ["½", "½", "½", "cup"]


def test_tokens_of_nothing_have_empty_spans():
    assert align_pieces("", [" ", None, "x"]) == [(0, 0)] * 3
    assert align_pieces("ab", []) == []
    assert align_pieces("a b", ["", "a", "", "b", ""]) == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 3)]


def test_text_cut_anywhere_is_put_together_again():
    """Cutting is its own oracle: where each piece came from is known."""
    rng = random.Random(0)
    for text in texts(300):
        pieces = cut(text, rng)
        position = 0
        for piece, span in zip(pieces, align_pieces(text, pieces), strict=True):
            own = piece.strip()
            start = position + piece.index(own)
            assert span == (start, start + len(own)) or not own, (text, pieces)
            position += len(piece)


def test_bytes_cut_anywhere_cover_every_character_in_order():
    rng = random.Random(1)
    for text in texts(300, seed=2):
        raw = text.encode()
        places = sorted({0, len(raw), *(rng.randrange(len(raw) + 1) for _ in range(len(raw)))})
        pieces = [raw[a:b] for a, b in zip(places, places[1:])]
        check_spans(text, align_pieces(text, pieces))


def test_altered_pieces_never_fail_and_never_go_back():
    """Whatever a tokenizer does: pieces unknown, lost, invented, broken bytes."""
    rng = random.Random(2)
    for text in texts(1000, seed=3):
        pieces = cut(text, rng)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(pieces) + 1)
            other = rng.choice([[None], [], ["qqq"], [b"\xff\x80"], [None, "a", ""]])
            pieces[place : place + rng.randint(0, 2)] = other
        spans = align_pieces(text, pieces)
        assert len(spans) == len(pieces)
        check_spans(text, spans, every=False)


def check_spans(text, spans, every=True):
    """Inside the text, never going back, and (if `every`) over every character that is not white space."""
    assert all(0 <= a <= b <= len(text) for a, b in spans), repr(text)
    assert spans == sorted(spans) and [b for _, b in spans] == sorted(b for _, b in spans)
    covered = {index for a, b in spans for index in range(a, b)}
    if every:
        assert all(index in covered or text[index].isspace() for index in range(len(text))), repr(text)


def test_long_text_with_many_unknown_tokens_is_quick():
    text = "a 猫 b " * 14_000
    spans = align_pieces(text, [piece for _ in range(14_000) for piece in (" a", " ", None, " b")])
    assert text[slice(*spans[-2])] == "猫" and spans[-1] == (len(text) - 2, len(text) - 1)
