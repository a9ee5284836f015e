"""Alignment against brute force and by hand, and the columns' mapping."""

import random
from functools import lru_cache

import pytest
import torch
from pack.attention_patches.core import token_alignment
from pack.attention_patches.core.token_alignment import align, alignment_report, text_words, words_of
from pack.attention_patches.core.types import BoxwrightError, TokenMap


def tokens(words, length=12, chunks=1):
    """A prompt; "cat|fish" is one word of two tokens. Chunks are filled evenly, each with start, end and padding."""
    text = " ".join(word.replace("|", "") for word in words)
    spans, roles, place = [], [], 0
    per_chunk = -(-len(words) // chunks)
    for chunk in range(chunks):
        own_spans, own_roles = [None], ["start"]
        for word in words[chunk * per_chunk : (chunk + 1) * per_chunk]:
            for piece in word.split("|"):
                own_spans.append((place, place + len(piece)))
                own_roles.append("word")
                place += len(piece)
            place += 1
        rest = length - len(own_spans)
        spans += [*own_spans, *[None] * rest]
        roles += [*own_roles, "end", *["padding"] * (rest - 1)]
    return TokenMap(text, tuple(spans), tuple(roles))


def alignment(source, target, mode="auto", **sizes):
    return token_alignment.token_alignment(tokens(source.split(), **sizes), tokens(target.split(), **sizes), mode)


def origins(found):
    """Target column -> {source column: weight}, for the shared ones."""
    table = {}
    for column in range(found.weights.shape[1]):
        rows = found.weights[:, column].nonzero()[:, 0].tolist()
        assert bool(rows) == bool(found.shared[column])
        if rows:
            table[column] = {row: float(found.weights[row, column]) for row in rows}
    return table


# --- words ---


@pytest.mark.parametrize(
    "text, words",
    [
        ("a cat, it's on (the) mat.", ["a", "cat", ",", "it's", "on", "(", "the", ")", "mat", "."]),
        ("t-shirt  &\tjeans!!", ["t-shirt", "&", "jeans", "!", "!"]),
        ("一只猫 sits", ["一", "只", "猫", "sits"]),
        ("naïve cafe\u0301", ["naïve", "cafe\u0301"]),
        ("  ", []),
        ("snow_man", ["snow_man"]),
    ],
)
def test_words_of_a_text(text, words):
    assert [text[a:b] for a, b in text_words(text)] == words


def test_tokens_of_a_word_are_one_word_and_case_does_not_count():
    found = words_of(tokens(["A", "Cat|Fish", "a"]))
    assert [(word.name, word.columns) for word in found] == [
        ("<start>", (0,)),
        ("a", (1,)),
        ("catfish", (2, 3)),
        ("a", (4,)),
        ("<end>", (5,)),
    ]


def test_tokens_that_are_parts_of_one_character_are_one_word():
    spans = (None, (0, 1), *[(2, 3)] * 3, None)
    found = words_of(TokenMap("x \U0001f431", spans, ("start", *["word"] * 4, "end")))
    assert found[2].columns == (2, 3, 4)


# --- alignment ---


def best_by_brute_force(source, target):
    """(matches, -differences) of the best alignment, by trying all."""

    @lru_cache(None)
    def best(i, j, in_gap):
        options = []
        if i == len(source) and j == len(target):
            return (0, 0)
        cost = 0 if in_gap else 1
        if i < len(source):
            m, d = best(i + 1, j, True)
            options.append((m, d - cost))
        if j < len(target):
            m, d = best(i, j + 1, True)
            options.append((m, d - cost))
        if i < len(source) and j < len(target) and source[i] == target[j]:
            m, d = best(i + 1, j + 1, False)
            options.append((m + 1, d))
        return max(options)

    return best(0, 0, False)


def differences_of(pairs, n, m):
    count, i, j = 0, 0, 0
    for next_i, next_j in [*pairs, (n, m)]:
        count += next_i > i or next_j > j
        i, j = next_i + 1, next_j + 1
    return count


@pytest.mark.parametrize("seed", range(40))
def test_alignment_is_the_best_of_all(seed):
    rng = random.Random(seed)
    source = tuple(rng.choices("abc", k=rng.randrange(9)))
    target = tuple(rng.choices("abcd", k=rng.randrange(9)))
    pairs = align(source, target)
    assert all(source[i] == target[j] for i, j in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in zip(pairs, pairs[1:]))
    assert (len(pairs), -differences_of(pairs, len(source), len(target))) == best_by_brute_force(source, target)
    assert align(source, target) == pairs


def test_alignment_by_hand():
    assert align("abcd", "axcd") == [(0, 0), (2, 2), (3, 3)]
    assert align("", "ab") == align("ab", "") == align("ab", "cd") == []
    assert align("abab", "ab") in ([(0, 0), (1, 1)], [(2, 0), (3, 1)])  # in one piece
    assert align(["a", "cat", "and", "a", "cat"], ["a", "cat", "and", "a", "dog"]) == [(i, i) for i in range(4)]


def test_too_long_prompts_are_refused():
    with pytest.raises(BoxwrightError, match="target prompt has 1501 words"):
        align(["a"], ["a"] * 1501)


# --- mapping ---


def test_the_same_prompt_is_the_identity():
    found = alignment("a red cat|fish", "a red cat|fish")
    assert torch.equal(found.weights, torch.eye(12)) and bool(found.shared.all())
    assert [difference.change for difference in found.differences] == ["same"]


def test_a_swap_of_one_token_for_one():
    found = alignment("a red cat", "a blue cat")
    assert torch.equal(found.weights, torch.eye(12)) and bool(found.shared.all())


def test_a_swap_of_one_token_for_three_shifts_the_rest():
    found = alignment("a cat sits", "a chin|chil|la sits")
    assert origins(found) == {
        0: {0: 1.0}, 1: {1: 1.0}, 2: {2: pytest.approx(1 / 3)}, 3: {2: pytest.approx(1 / 3)},
        4: {2: pytest.approx(1 / 3)}, 5: {3: 1.0}, 6: {4: 1.0}, **{k: {k: 1.0} for k in range(7, 12)},
    }  # fmt: skip
    torch.testing.assert_close(found.weights[2].sum(), torch.tensor(1.0))  # no attention is lost


def test_a_swap_of_three_tokens_for_one_and_for_two():
    found = origins(alignment("a chin|chil|la sits", "a cat sits"))
    assert found[2] == {2: 1.0, 3: 1.0, 4: 1.0} and found[3] == {5: 1.0} and found[4] == {6: 1.0}
    assert 5 not in found and 6 not in found  # padding where the source has a word: its own attention
    found = origins(alignment("a chin|chil|la sits", "a dog|gy sits"))
    assert found[2] == found[3] == {2: 0.5, 3: 0.5, 4: 0.5}


def test_inserted_words_keep_their_own_attention():
    found = alignment("a cat sits", "a very big cat sits")
    table = origins(found)
    assert 2 not in table and 3 not in table
    assert table[4] == {2: 1.0} and table[5] == {3: 1.0} and table[6] == {4: 1.0}  # the end token with the rest
    assert table[7] == {7: 1.0}
    assert [d.change for d in found.differences] == ["same", "added", "same"]


def test_removed_words_leave_their_attention_to_nobody():
    found = alignment("a very big cat sits", "a cat sits")
    table = origins(found)
    assert table[2] == {4: 1.0} and table[3] == {5: 1.0} and table[4] == {6: 1.0}
    assert 5 not in table and 6 not in table and table[7] == {7: 1.0}


def test_as_many_words_are_replaced_others_are_new():
    assert [d.change for d in alignment("a red cat", "a big dog").differences] == ["same", "replaced", "same"]
    other = alignment("a red cat", "a big green dog")
    assert [d.change for d in other.differences] == ["same", "removed", "added", "same"]
    assert not other.shared[2:5].any()


def test_modes():
    refine = alignment("a red cat", "a blue cat", "refine")
    assert not refine.shared[2] and refine.shared[3]
    replace = alignment("a red cat", "a blue cat", "replace")
    assert torch.equal(replace.weights, torch.eye(12))
    with pytest.raises(BoxwrightError, match=r'"cat" \(1 words\) cannot be replaced by "big dog" \(2 words\)'):
        alignment("a cat", "a big dog", "replace")
    with pytest.raises(BoxwrightError, match="cannot be replaced"):
        alignment("a cat", "a cat sits", "replace")


def test_repeated_words():
    found = origins(alignment("a cat and a cat", "a cat and a big cat"))
    assert found[4] == {4: 1.0} and 5 not in found and found[6] == {5: 1.0}


def test_punctuation_and_non_ascii():
    found = alignment("a cat| , sitting", "a chien| , sitting")
    assert [d.change for d in found.differences] == ["same", "replaced", "same"]
    found = alignment("katze schläft", "katze schlaft")
    assert [d.change for d in found.differences] == ["same", "replaced", "same"]
    # a comma glued to the word is a word of its own
    source = TokenMap("cat, x", (None, (0, 3), (3, 4), (5, 6), None), ("start", *["word"] * 3, "end"))
    target = TokenMap("dog, x", (None, (0, 3), (3, 4), (5, 6), None), ("start", *["word"] * 3, "end"))
    assert torch.equal(token_alignment.token_alignment(source, target).weights, torch.eye(5))


def test_prompts_of_two_chunks():
    words = "a b c d e f"
    found = alignment(words, words.replace("e", "x"), chunks=2, length=8)
    assert torch.equal(found.weights, torch.eye(16)) and bool(found.shared.all())
    shifted = origins(alignment("a b c d e f", "a n b c d e f", chunks=2, length=8))
    # a n b c | d e f after a b c | d e f: the end and start of the chunks move with the words
    assert shifted[1] == {1: 1.0} and 2 not in shifted and shifted[3] == {2: 1.0} and shifted[4] == {3: 1.0}
    assert shifted[5] == {4: 1.0} and shifted[8] == {8: 1.0} and shifted[9] == {9: 1.0}


def test_one_chunk_against_two():
    source, target = tokens(["a", "b"], 6), tokens(["a", "b", "c", "d"], 6, chunks=2)
    found = token_alignment.token_alignment(source, target)
    assert found.weights.shape == (6, 12)
    table = origins(found)
    assert table == {column: {column: 1.0} for column in range(6)}  # the second chunk is new


def test_repeated_columns_share_the_attention():
    """A short prompt beside a long one is repeated; attention to equal columns is split evenly, and sums stay."""
    found = alignment("a cat sits", "a chin|chil|la sits")
    twice = found.repeated(2, 1)
    probs = torch.rand(5, 12)
    split = torch.cat([probs / 2, probs / 2], dim=1)
    torch.testing.assert_close(split @ twice.weights, probs @ found.weights)
    other = found.repeated(1, 2)
    torch.testing.assert_close(probs @ other.weights, torch.cat([probs @ found.weights / 2] * 2, dim=1))
    assert other.shared.tolist() == found.shared.tolist() * 2


def test_report():
    report = alignment_report(alignment("a cat sits", "a chin|chil|la sits here"))
    assert report.splitlines() == [
        "  = a",
        "  ~ cat -> chinchilla (replaced: takes over its attention, 1 to 3 tokens)",
        "  = sits",
        "  + here (new: keeps its own attention)",
    ]
    long = " ".join(f"w{i}" for i in range(100))
    assert max(map(len, alignment_report(alignment(long, long, length=120)).splitlines())) < 80
