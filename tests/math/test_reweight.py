"""Reweighting against the paper's formula, and its settings against identities."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.grids import coverage
from pack.attention_patches.core.types import BoxwrightError, PhraseNotFoundError, StepWindow
from pack.attention_patches.methods.reweight import Reweight

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]


@pytest.fixture
def two():
    return layout([LEFT, RIGHT], [[2, 3], [6, 7]], WORDS)


@pytest.fixture
def probs():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)


def apply(method, lay, probs, **where):
    (edit,) = method.edits(lay)
    if edit.stage == "probs":
        return edit.fn(probs, site(lay, **where))
    bias = edit.fn(torch.zeros(1, 1, probs.shape[-2], probs.shape[-1]), site(lay, **where))
    return (probs.log() + bias).softmax(-1)


@pytest.mark.parametrize("factor", [-5.0, 0.0, 0.5, 3.0, 10.0])
def test_as_published(two, probs, factor):
    out = apply(Reweight((("red", factor),)), two, probs)
    expected = probs.clone()
    expected[..., 2] *= factor  # no renormalising
    torch.testing.assert_close(out, expected)


def test_two_edits_in_one_run_keep_factors_of_their_own(two, probs):
    memo, factors = {}, (2.0, 3.0)
    edits = [Reweight((("red", factor),), region=1).edits(two)[0] for factor in factors]
    for edit, factor in zip(edits, factors, strict=True):
        for queries in (slice(0, 16), slice(4, 9)):
            out = edit.fn(probs[:, :, queries], replace(site(two, queries=queries), memo=memo))
            expected = probs[:, :, queries].clone()
            expected[..., 2] *= 1.0 + (factor - 1.0) * coverage(LEFT, (4, 4)).flatten()[queries]
            torch.testing.assert_close(out, expected)


def test_every_token_of_a_phrase_and_every_occurrence(two, probs):
    out = apply(Reweight((("red heart", 2.0), ("a", 3.0))), two, probs)
    factors = torch.ones(16)
    factors[[2, 3]], factors[[1, 5]] = 2.0, 3.0
    torch.testing.assert_close(out, probs * factors)


def test_a_word_named_twice_is_multiplied_twice(two, probs):
    out = apply(Reweight((("red heart", 2.0), ("red", 3.0))), two, probs)
    torch.testing.assert_close(out[..., 2], probs[..., 2] * 6)


def test_factor_1_is_off(two):
    assert Reweight((("red", 1.0),)).edits(two) == []
    assert Reweight((("red", 1.0),), renormalize=True).edits(two) == []


def test_renormalised_rows_sum_to_one_and_keep_the_ratios_of_the_others(two, probs):
    out = apply(Reweight((("red", 4.0),), renormalize=True), two, probs)
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 3, 16))
    by_hand = probs.clone()
    by_hand[..., 2] *= 4
    torch.testing.assert_close(out, by_hand / by_hand.sum(-1, keepdim=True))
    removed = apply(Reweight((("red", 0.0),), renormalize=True), two, probs)
    assert removed[..., 2].max() == 0


def test_in_one_region_only(two, probs):
    out = apply(Reweight((("red", 4.0),), region=2), two, probs)
    right = torch.arange(16) % 4 >= 2
    torch.testing.assert_close(out[..., right, 2], probs[..., right, 2] * 4)
    assert torch.equal(out[..., ~right, :], probs[..., ~right, :])


def test_a_chunk_of_queries_gets_its_own_part_of_the_region(two, probs):
    whole = apply(Reweight((("red", 4.0),), region=1), two, probs)
    part = apply(Reweight((("red", 4.0),), region=1), two, probs[..., 5:9, :], queries=slice(5, 9))
    torch.testing.assert_close(part, whole[..., 5:9, :])


def test_stages_and_windows(two):
    window = StepWindow(0.2, 0.7)
    (plain,) = Reweight((("red", 2.0),), window).edits(two)
    (renormalised,) = Reweight((("red", 2.0),), window, renormalize=True).edits(two)
    assert (plain.stage, renormalised.stage) == ("probs", "bias")
    assert plain.window == renormalised.window == window


@pytest.mark.parametrize("factor", [-5.1, 10.1, math.nan, math.inf])
def test_factors_out_of_range_are_refused(two, factor):
    with pytest.raises(BoxwrightError, match='of "red" is outside -5 to 10'):
        Reweight((("red", factor),)).edits(two)


def test_other_bad_settings_are_refused(two):
    with pytest.raises(PhraseNotFoundError, match="green"):
        Reweight((("green", 2.0),)).edits(two)
    with pytest.raises(BoxwrightError, match="Region 3 does not exist: the layout has 2"):
        Reweight((("red", 2.0),), region=3).edits(two)
    with pytest.raises(BoxwrightError, match="cannot be renormalized"):
        Reweight((("red", -1.0),), renormalize=True).edits(two)
