"""Rectified attention against the paper's formula written out, and its settings against identities."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, attention, layout, site
from pack.attention_patches.core.seam import NEVER, AttentionEdit, ContextEdit
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow
from pack.attention_patches.methods.rectified_attention import PUBLISHED, at_resolution, share_end_tokens

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]


def published_but(**settings):
    return replace(PUBLISHED, **settings)


@pytest.fixture
def two():
    return layout([LEFT, RIGHT], OWNED, WORDS)


def bias_of(method, lay, **where):
    place = site(lay, **where)
    edit = next(e for e in method.edits(lay) if isinstance(e, AttentionEdit))
    assert edit.stage == "bias"
    count = place.grid[0] * place.grid[1]
    return edit.fn(torch.zeros(1, 1, count, len(lay.prompt.tokens)), place)[0, 0]


def paper(scores, lay, inside):
    """Equation of arXiv 2303.14412: scores of a class's words become minus the largest float outside its mask."""
    scores = scores.clone()
    for columns, mask in zip(lay.columns, inside, strict=True):
        for column in columns.nonzero()[:, 0].tolist():
            scores[~mask, column] = -torch.finfo(scores.dtype).max
    return scores


def test_as_published(two):
    g = torch.Generator().manual_seed(0)
    scores, values = torch.randn(16, 16, generator=g) * 3, torch.randn(16, 8, generator=g)
    x = torch.arange(4).repeat(4)
    expected = attention(paper(scores, two, [x < 2, x >= 2]), values)
    torch.testing.assert_close(attention(scores + bias_of(PUBLISHED, two), values), expected)


def test_outside_a_region_its_words_have_exactly_no_weight(two):
    scores = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)) * 10
    probs = (scores + bias_of(PUBLISHED, two)).softmax(-1)
    left = torch.arange(16) % 4 < 2
    assert probs[~left][:, two.columns[0]].max() == 0 and probs[left][:, two.columns[1]].max() == 0
    torch.testing.assert_close(probs.sum(-1), torch.ones(16))
    assert probs[left][:, two.columns[0]].min() > 0


def test_strength_0_is_off_and_full_image_is_no_region(two):
    assert published_but(strength=0.0).edits(two) == []
    everywhere = layout([Box(0, 0, 1, 1)] * 2, OWNED, WORDS)
    assert bias_of(PUBLISHED, everywhere).abs().max() == 0
    off = layout([LEFT, RIGHT], OWNED, WORDS, strengths=[0.0, 0.0])
    assert bias_of(PUBLISHED, off).abs().max() == 0


@pytest.mark.parametrize("end_tokens", ["visible", "hidden", "own"])
def test_regions_of_strength_0_bind_nothing(end_tokens):
    off = layout([LEFT, RIGHT], OWNED, WORDS, strengths=[0.0, 0.0])
    method = published_but(end_tokens=end_tokens)
    assert bias_of(method, off).abs().max() == 0
    for edit in method.edits(off)[1:]:
        assert torch.equal(edit.fn(off.prompt.embedding, off), off.prompt.embedding)


def test_own_end_tokens_are_kept_apart_at_every_grid_and_words_at_the_chosen_ones(two):
    """The context that holds them is the same for all grids."""
    bias = bias_of(published_but(end_tokens="own", resolutions="fine"), two, level=1, levels=2)
    assert bias[:, :8].abs().max() == 0
    assert torch.equal(bias[:, 8:], bias_of(published_but(end_tokens="own"), two)[:, 8:])


def test_strength_keeps_its_share_of_the_odds(two):
    scores = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    probs = (scores + bias_of(published_but(strength=0.8), two)).softmax(-1)
    plain = scores.softmax(-1)
    outside = torch.arange(16) % 4 >= 2
    odds, before = (p[outside][:, 2] / p[outside][:, 0] for p in (probs, plain))  # against the start token
    torch.testing.assert_close(odds / before, torch.full((8,), 0.2))


def test_a_regions_own_strength_multiplies(two):
    mixed = layout([LEFT, RIGHT], OWNED, WORDS, strengths=[0.5, 1.0])
    bias = bias_of(published_but(strength=0.8), mixed)
    assert bias[3, 2] == pytest.approx(math.log(1 - 0.4))
    assert bias[0, 6] == pytest.approx(math.log(1 - 0.8))


def own(lay, **options):
    """The layout with options of its first region."""
    return replace(lay, regions=(replace(lay.regions[0], **options), *lay.regions[1:]))


def test_a_region_with_its_own_window_is_bound_then_only(two):
    method = published_but(window=StepWindow(0.0, 0.5))
    late = own(two, start=0.4, end=0.8)
    (edit,) = method.edits(late)
    assert (edit.window.start, edit.window.end) == (0.0, 0.8)

    def at(progress):
        place = replace(site(late), progress=progress)
        return edit.fn(torch.zeros(1, 1, 16, 16), place)[0, 0]

    without = {
        r: replace(two, regions=tuple(replace(region, strength=float(i != r)) for i, region in enumerate(two.regions)))
        for r in (0, 1)
    }
    assert torch.equal(at(0.1), bias_of(PUBLISHED, without[0]))
    assert torch.equal(at(0.45), bias_of(PUBLISHED, two))
    assert torch.equal(at(0.6), bias_of(PUBLISHED, without[1]))


def test_a_regions_own_feather_replaces_the_nodes(two):
    hard = bias_of(published_but(feather=0.5), own(two, feather=0.0))
    assert torch.equal(hard[:, two.columns[0]], bias_of(PUBLISHED, two)[:, two.columns[0]])
    soft = bias_of(published_but(feather=0.5), two)
    assert torch.equal(hard[:, two.columns[1]], soft[:, two.columns[1]]) and not torch.equal(hard, soft)


def test_a_word_of_two_regions_is_seen_in_both():
    shared = layout([Box(0, 0, 0.25, 1), Box(0.75, 0, 0.25, 1)], [[2, 3], [2, 3]], WORDS)
    seen = bias_of(PUBLISHED, shared)[:4, 2] == 0
    assert seen.tolist() == [True, False, False, True]


def test_nobodys_words_start_and_end_tokens_are_seen_everywhere(two):
    bias = bias_of(PUBLISHED, two)
    assert bias[:, ~two.columns.any(0)].abs().max() == 0


def test_hidden_end_tokens(two):
    bias = bias_of(published_but(end_tokens="hidden"), two)
    assert (bias[:, 8:] == NEVER).all() and bias[:, 0].abs().max() == 0
    half = bias_of(published_but(strength=0.5, end_tokens="hidden"), two)
    torch.testing.assert_close(half[:, 8:], torch.full((16, 8), math.log(0.5)))


def test_own_end_tokens_are_shared_out_and_keep_their_weight_together():
    lay = layout([Box(0, 0, 0.25, 1), Box(0.75, 0, 0.25, 1)], OWNED, WORDS)
    shares = share_end_tokens(lay)
    assert shares.sum(0).tolist() == [0] * 8 + [1] * 8  # every end and padding column has one owner
    assert shares.sum(1).tolist() == [3, 3, 2]
    bias = bias_of(published_but(end_tokens="own"), lay)
    # With equal scores, the end tokens a query sees weigh together what all eight weighed before.
    weight = bias.exp()[:, 8:].sum(-1)
    torch.testing.assert_close(weight, torch.full((16,), 8.0))
    seen = [set((bias[column, 8:] > NEVER / 2).nonzero()[:, 0].tolist()) for column in range(4)]
    assert seen[0] == set(shares[0, 8:].nonzero()[:, 0].tolist())
    assert seen[3] == set(shares[1, 8:].nonzero()[:, 0].tolist())
    assert seen[1] == seen[2] == set(shares[2, 8:].nonzero()[:, 0].tolist())


def test_own_end_tokens_hold_the_regions_own_encoding():
    lay = layout([LEFT, RIGHT], OWNED, WORDS)
    edit = next(e for e in published_but(end_tokens="own").edits(lay) if isinstance(e, ContextEdit))
    context = lay.prompt.embedding.expand(2, -1, -1)
    out = edit.fn(context, lay)
    shares = share_end_tokens(lay)
    for text, own in zip(lay.region_texts, shares[:-1], strict=True):
        first, *others = own.nonzero()[:, 0].tolist()
        assert torch.equal(out[:, first], text.embedding[:, 3].expand(2, -1))  # its end token: start, two words, end
        for column in others:
            assert torch.equal(out[:, column], text.embedding[:, column].expand(2, -1))
    untouched = ~shares[:-1].any(0)
    assert torch.equal(out[:, untouched], context[:, untouched])
    half = published_but(strength=0.5, end_tokens="own").edits(lay)[1].fn(context, lay)
    torch.testing.assert_close(half, (context + out) / 2)


def test_own_end_tokens_need_one_for_each():
    full = layout([LEFT, RIGHT], OWNED, WORDS, length=10)  # one end token and one padding for three owners
    with pytest.raises(BoxwrightError, match="leaves 2 end or padding tokens, but 2 regions"):
        published_but(end_tokens="own").edits(full)


def test_a_box_smaller_than_a_cell_keeps_one():
    tiny = layout([Box(0.55, 0.3, 0.02, 0.02)], [[2, 3]], WORDS)
    bias = bias_of(PUBLISHED, tiny).view(4, 4, -1)
    seen = (bias[..., 2] == 0).nonzero().tolist()
    assert seen == [[1, 2]]


def test_painted_masks_keep_soft_edges():
    mask = torch.zeros(4, 4)
    mask[:, 0], mask[:, 1] = 1.0, 0.25
    bias = bias_of(PUBLISHED, layout([mask], [[2]], WORDS)).view(4, 4, -1)
    assert bias[0, :, 2].tolist() == pytest.approx([0.0, math.log(0.25), NEVER, NEVER])
    faint = bias_of(PUBLISHED, layout([mask * 0.1], [[2]], WORDS)).view(4, 4, -1)
    assert faint[0, 0, 2] == 0  # the best covered cell sees its word however faint the mask


def test_feather_is_a_fraction_of_the_image_also_in_a_crop():
    lay = layout([Box(0, 0, 0.25, 1)], [[2]], WORDS)
    bias = bias_of(published_but(feather=0.5), lay, grid=(1, 8))[:, 2].exp()
    torch.testing.assert_close(bias, torch.tensor([1, 1, 0.75, 0.5, 0.25, 0, 0, 0.0]))


def test_resolutions():
    levels = {name: [at_resolution(site(None, level=i, levels=3), name) for i in range(3)] for name in NAMES}
    assert levels == {
        "all": [True, True, True],
        "fine": [True, True, False],
        "coarse": [False, True, True],
        "all but coarsest": [True, True, False],
    }
    assert all(at_resolution(site(None, level=0, levels=1), name) for name in NAMES)
    two = layout([LEFT, RIGHT], OWNED, WORDS)
    assert bias_of(published_but(resolutions="fine"), two, level=1, levels=2).abs().max() == 0


NAMES = ["all", "fine", "coarse", "all but coarsest"]


def test_windows_go_to_every_edit(two):
    window = StepWindow(0.1, 0.4)
    assert {e.window for e in published_but(window=window, end_tokens="own").edits(two)} == {window}


@pytest.mark.parametrize("settings", [{"strength": 1.1}, {"strength": -0.1}, {"strength": math.nan}, {"feather": 2.0}])
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(BoxwrightError, match="outside 0 to 1"):
        published_but(**settings)


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)])
def test_empty_windows_are_refused(window):
    with pytest.raises(BoxwrightError, match="choose start below end"):
        StepWindow(*window)


def test_windows_are_half_open():
    window = StepWindow(0.25, 0.5)
    assert [window.contains(p) for p in (0.2499, 0.25, 0.4999, 0.5)] == [False, True, True, False]
