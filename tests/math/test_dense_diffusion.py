"""DenseDiffusion against the paper's formula written out token by token, and bounded attention against its rule."""

from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.seam import NEVER, AttentionEdit, ContextEdit
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion, fading, modulated, own_phrase

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
QUARTER = Box(0.5, 0.5, 0.5, 0.5)
ALONE = ["red", "heart", "blue", "star"]


def paper(scores, segments, words, weight, progress):
    """Equations 4 to 9 of arXiv 2308.12964, one number at a time; `words`: columns of each segment, None = self."""
    result = scores.clone()
    for h, rows in enumerate(scores):
        for q, row in enumerate(rows):
            own = next(s for s, cells in enumerate(segments) if q in cells)
            size = len(segments[own]) / len(rows)
            amount = weight * ((1000 - 1000 * progress) / 1000) ** 5 * (1 - size)
            for k, value in enumerate(row):
                positive = k in (segments if words is None else words)[own]
                change = row.max() - value if positive else -(value - row.min())
                result[h, q, k] = value + amount * change
    return result


def cells_of(lay, condition):
    return [i for i in range(16) if condition(i % 4, i // 4)]


@pytest.fixture
def case():
    """Left half: red heart. Right lower quarter: blue star. Right upper: the rest of the words."""
    lay = layout([LEFT, QUARTER], OWNED, WORDS)
    segments = [cells_of(lay, lambda x, y: x < 2), cells_of(lay, lambda x, y: x > 1 and y > 1)]
    segments.append([i for i in range(16) if not any(i in s for s in segments)])
    return lay, segments, [[2, 3], [6, 7], [1, 4, 5]]


def edits_of(method, lay):
    return {edit.kind: edit for edit in method.edits(lay) if isinstance(edit, AttentionEdit)}


@pytest.mark.parametrize("kind, weight", [("image_text", 1.0), ("image_image", 0.3)])
@pytest.mark.parametrize("progress", [0.0, 0.25])
def test_as_published(case, kind, weight, progress):
    lay, segments, words = case
    scores = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    expected = paper(scores[0].double(), segments, words if kind == "image_text" else None, weight, progress)
    edit = edits_of(DenseDiffusion(), lay)[kind]
    assert edit.stage == "scores" and (edit.window.start, edit.window.end) == (0.0, 0.3)
    found = edit.fn(scores.clone(), replace(site(lay), kind=kind, progress=progress))
    torch.testing.assert_close(found[0].double(), expected, atol=1e-5, rtol=1e-5)
    pieces = [
        edit.fn(scores[:, :, i : i + 3], replace(site(lay), kind=kind, progress=progress, queries=slice(i, i + 3)))
        for i in range(0, 15, 3)
    ]
    torch.testing.assert_close(torch.cat(pieces, 2), found[:, :, :15])


def test_the_weight_falls_with_the_fifth_power():
    assert [fading(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1 / 32, 0.0]
    assert fading(1 - 0.981) == pytest.approx(0.9085, abs=1e-4)  # timestep 981 of 1000


@pytest.mark.parametrize("weight", [0.4, 1.0, 2.0])
def test_rows_keep_their_range(case, weight):
    lay = case[0]
    scores = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 5
    method = DenseDiffusion(cross_weight=weight, self_weight=weight, area_adaptive=0.0)
    for kind, edit in edits_of(method, lay).items():
        out = edit.fn(scores.clone(), replace(site(lay), kind=kind))
        assert (out.amax(-1) <= scores.amax(-1) + 1e-5).all() and (out.amin(-1) >= scores.amin(-1) - 1e-5).all()
        assert not torch.allclose(out, scores)


def test_an_amount_of_0_is_identity_and_of_1_leaves_two_values():
    scores = torch.randn(1, 1, 4, 6)
    wanted = torch.rand(4, 6) > 0.5
    assert torch.equal(modulated(scores, wanted, torch.zeros(4, 1)), scores)
    both = modulated(scores, wanted, torch.ones(4, 1))[0, 0]
    expected = torch.where(wanted, scores[0, 0].amax(-1, keepdim=True), scores[0, 0].amin(-1, keepdim=True))
    torch.testing.assert_close(both, expected)


def test_weights_and_strength_of_0_are_off(case):
    lay = case[0]
    assert DenseDiffusion(strength=0.0).edits(lay) == []
    assert DenseDiffusion(cross_weight=0.0, self_weight=0.0).edits(lay) == []
    assert list(edits_of(DenseDiffusion(self_weight=0.0), lay)) == ["image_text"]


def test_a_weaker_region_is_changed_less_and_one_of_strength_0_is_background(case):
    lay = case[0]
    scores = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))

    def changed(strengths, kind="image_text"):
        mixed = replace(lay, regions=tuple(replace(r, strength=s) for r, s in zip(lay.regions, strengths)))
        edit = edits_of(DenseDiffusion(area_adaptive=0.0), mixed)[kind]
        return edit.fn(scores.clone(), replace(site(mixed), kind=kind)) - scores

    full, half, without = changed([1.0, 1.0]), changed([0.5, 1.0]), changed([0.0, 1.0])
    left = torch.arange(16) % 4 < 2
    torch.testing.assert_close(half[:, :, left], full[:, :, left] * 0.5)
    assert torch.equal(half[:, :, ~left], full[:, :, ~left])
    assert without[..., lay.columns[0]].abs().max() == 0  # its words are left alone everywhere
    assert (without[:, :, left][..., [1, 4, 5]] >= 0).all()  # its cells belong to the rest of the words


def test_without_words_of_its_own_the_background_only_hides_those_of_the_regions():
    lay = layout([LEFT, QUARTER], [[1, 2], [3, 4]], ALONE)
    scores = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    change = edits_of(DenseDiffusion(), lay)["image_text"].fn(scores.clone(), site(lay)) - scores
    rest = torch.tensor([i % 4 > 1 and i // 4 < 2 for i in range(16)])
    assert (change[:, :, rest][..., [1, 2, 3, 4]] <= 0).all()
    assert change[:, :, rest][..., [0, 5, 6, 15]].abs().max() == 0
    assert change[:, :, ~rest][..., [0, 5, 6, 15]].abs().max() > 0


@pytest.mark.parametrize("overlap, owners", [("order", [1]), ("blend", [0, 1])])
def test_cells_of_an_overlap(overlap, owners):
    lay = layout([Box(0, 0, 0.75, 1), Box(0.5, 0, 0.5, 1)], OWNED, WORDS)
    segments = DenseDiffusion(overlap=overlap).segments(site(lay)).view(3, 4, 4)[:, 0]
    assert segments[:, 2].nonzero()[:, 0].tolist() == owners
    assert segments[:, [0, 1, 3]].long().argmax(0).tolist() == [0, 0, 1]


def test_a_region_hidden_behind_another_keeps_its_cells():
    lay = layout([QUARTER, Box(0, 0, 1, 1)], OWNED, WORDS)
    assert DenseDiffusion().segments(site(lay)).sum(1).tolist() == [4, 16, 0]


def phrases_of(method, lay):
    return [edit for edit in method.edits(lay) if isinstance(edit, ContextEdit)]


def test_phrases_are_replaced_by_the_strength_and_in_the_window_of_their_region(case):
    lay = case[0]
    lay = replace(lay, regions=(replace(lay.regions[0], strength=0.5, end=0.1), lay.regions[1]))
    first, second = phrases_of(DenseDiffusion(strength=0.5), lay)
    assert (first.window.end, second.window.end) == (0.1, 0.3)
    prompt, alone = lay.prompt.embedding, lay.region_texts[0].embedding
    expected = 0.75 * prompt[0, OWNED[0]] + 0.25 * alone[0, 1:3]
    torch.testing.assert_close(first.fn(prompt, lay)[0, OWNED[0]], expected)
    assert torch.equal(first.fn(prompt, lay)[0, OWNED[1]], prompt[0, OWNED[1]])


def test_phrases_are_read_as_encoded_alone(case):
    lay = case[0]
    context = lay.prompt.embedding.repeat(2, 1, 1)
    for edit in phrases_of(DenseDiffusion(), lay):
        context = edit.fn(context, lay)
    for region, columns in enumerate(OWNED):
        assert torch.equal(context[1, columns], lay.region_texts[region].embedding[0, 1:3])
    others = [i for i in range(16) if i not in (2, 3, 6, 7)]
    assert torch.equal(context[:, others], lay.prompt.embedding[:, others].repeat(2, 1, 1))


def test_a_phrase_that_stands_twice_is_replaced_twice_and_one_cut_otherwise_stays():
    lay = layout([LEFT, RIGHT], [[2, 3, 6, 7], [4]], WORDS)
    lay = replace(lay, region_texts=(layout([LEFT], [[1, 2]], ["red", "heart"]).region_texts[0], lay.region_texts[0]))
    context = own_phrase(own_phrase(lay.prompt.embedding, lay, 0, 1.0), lay, 1, 1.0)
    assert torch.equal(context[0, [2, 3]], context[0, [6, 7]])
    assert torch.equal(context[0, [2, 3]], lay.region_texts[0].embedding[0, 1:3])
    assert torch.equal(context[0, 4], lay.prompt.embedding[0, 4])  # four words in one column


def test_settings_out_of_range_are_refused():
    with pytest.raises(BoxwrightError, match="cross_weight is 2.5; choose 0 to 2"):
        DenseDiffusion(cross_weight=2.5)


# --- bounded attention ---


def test_regions_do_not_see_each_other_and_everything_else_does():
    lay = layout([Box(0, 0, 0.5, 1), Box(0.25, 0, 0.5, 1)], OWNED, WORDS)  # columns 0 1 | 1 2, column 3 is background
    bias = BoundedAttention(resolutions="all").edits(lay)[0].fn(torch.zeros(1, 1, 16, 16), site(lay))[0, 0]
    x = torch.arange(16) % 4
    cut = {(0, 2), (2, 0)}  # 1 belongs to both
    for q in range(16):
        for k in range(16):
            assert bias[q, k] == (NEVER if (int(x[q]), int(x[k])) in cut else 0.0)


def test_bounds_act_on_both_halves_of_guidance_on_the_chosen_grids_and_in_their_window():
    lay = layout([LEFT, RIGHT], OWNED, WORDS)
    edits = BoundedAttention(StepWindow(0.0, 0.4)).edits(lay)
    assert [edit.rows for edit in edits] == ["layout", "negative"]
    assert all(edit.kind == "image_image" and edit.stage == "bias" and edit.window.end == 0.4 for edit in edits)
    assert [edits[0].where(site(lay, level=level, levels=4)) for level in range(4)] == [False, False, True, True]


def test_a_region_alone_has_nobody_to_be_kept_from():
    assert BoundedAttention().edits(layout([LEFT], [[2, 3]], WORDS)) == []
    assert BoundedAttention().edits(layout([LEFT, RIGHT], OWNED, WORDS, strengths=[1.0, 0.0])) == []


def test_a_region_outside_its_own_window_is_background():
    lay = layout([LEFT, RIGHT], OWNED, WORDS)
    late = replace(lay, regions=(replace(lay.regions[0], start=0.3), lay.regions[1]))
    edit = BoundedAttention().edits(late)[0]
    early = edit.fn(torch.zeros(1, 1, 16, 16), site(late))
    assert early.abs().max() == 0
    assert edit.fn(torch.zeros(1, 1, 16, 16), replace(site(late), progress=0.4)).min() == NEVER


def test_a_region_around_another_one_is_background():
    """Else a first region over the whole image would let everybody see everybody."""
    alone = layout([LEFT, RIGHT], OWNED, WORDS)
    whole = layout([Box(0, 0, 1, 1), LEFT, RIGHT], [[4], *OWNED], WORDS)
    bounds = [BoundedAttention(resolutions="all").apart(site(lay)) for lay in (alone, whole)]
    assert bounds[0].any() and torch.equal(*bounds)
    twins = layout([LEFT, LEFT, RIGHT], [[4], *OWNED], WORDS)
    assert torch.equal(BoundedAttention(resolutions="all").apart(site(twins)), bounds[0])
