"""The couple's weights against numbers worked out by hand, and against what must not matter."""

from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.seam import TextMix
from pack.attention_patches.core.types import Box, BoxwrightError, Region, StepWindow, View
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
MIDDLE = Box(0.25, 0.0, 0.5, 1.0)
NO_BASE = RegionPrompt(base_ratio=0.0, confine_end=0.0)


def two(areas=(LEFT, RIGHT), strengths=None, **options):
    lay = layout(list(areas), OWNED, WORDS, strengths=strengths)
    return replace(lay, regions=tuple(replace(region, **options) for region in lay.regions))


def rows(method, lay, **where):
    """Weights [R + 1, h, w] at a 4 x 4 site."""
    place = site(lay, **where)
    return method.weights(place).view(len(lay.regions) + 1, *place.grid)


def test_halves_are_read_by_their_halves_alone():
    weights = rows(NO_BASE, two())
    left = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    assert torch.equal(weights[0], left) and torch.equal(weights[1], 1 - left)
    assert weights[2].abs().max() == 0


def test_a_cell_that_is_covered_in_part_reads_in_part():
    weights = rows(NO_BASE, two([Box(0.0, 0.0, 0.3, 1.0), RIGHT]))
    torch.testing.assert_close(weights[0, 0], torch.tensor([1.0, 0.2, 0.0, 0.0]))
    torch.testing.assert_close(weights[2, 0], torch.tensor([0.0, 0.8, 0.0, 0.0]))


def test_painted_masks_are_taken_as_they_are():
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows(NO_BASE, two([mask, Box(0, 0, 0.1, 0.1)], [1.0, 0.0]))[0], mask)


def test_the_base_ratio_is_the_prompts_share_inside():
    whole, mixed = rows(NO_BASE, two([LEFT, MIDDLE])), rows(RegionPrompt(base_ratio=0.3), two([LEFT, MIDDLE]))
    torch.testing.assert_close(mixed, 0.7 * whole)


def test_in_overlaps_later_regions_lie_on_top():
    """The middle box covers the second cell of the left one: alpha compositing."""
    weights = rows(NO_BASE, two([LEFT, MIDDLE], [1.0, 0.6]))[:, 0]
    expected = torch.tensor([[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 0.6, 0.0], [0.0, 0.0, 0.4, 1.0]])
    torch.testing.assert_close(weights, expected)


def test_blending_shares_by_strength():
    """What the two leave is the base's; above the whole they share in proportion."""
    weights = rows(RegionPrompt(base_ratio=0.0, overlap="blend"), two([LEFT, LEFT], [0.6, 0.3]))[:, 0, 0]
    torch.testing.assert_close(weights, torch.tensor([0.6, 0.3, 0.1]))
    weights = rows(RegionPrompt(base_ratio=0.0, overlap="blend"), two([LEFT, LEFT], [1.0, 0.5]))[:, 0, 0]
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3, 0.0]))


def test_masks_that_complete_each_other_blend_into_each_other():
    """A soft border between two regions lets nothing of the base through."""
    ramp = torch.linspace(0.0, 1.0, 4).repeat(4, 1)
    weights = rows(RegionPrompt(base_ratio=0.0, overlap="blend"), two([ramp, 1.0 - ramp]))
    torch.testing.assert_close(weights, torch.stack([ramp, 1.0 - ramp, torch.zeros(4, 4)]))


@pytest.mark.parametrize("overlap", ["order", "blend"])
def test_weights_are_convex_whatever_the_layout(overlap):
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        x, y, s = torch.rand(3, generator=g).tolist()
        lay = two([Box(x * 0.5, y * 0.5, 0.4, 0.3), torch.rand(5, 7, generator=g)], [s, 1.0], feather=x)
        weights = RegionPrompt(base_ratio=y, overlap=overlap).weights(site(lay))
        assert weights.min() >= 0 and weights.sum(0).max() <= 1 + 1e-6
        torch.testing.assert_close(weights.sum(0), torch.full((16,), 1 - y))


def test_the_order_of_regions_matters_in_the_overlap_only():
    lay = two([LEFT, MIDDLE])
    turned = replace(lay, regions=lay.regions[::-1])
    for overlap, same in (("order", [0, 2, 3]), ("blend", [0, 1, 2, 3])):
        method = RegionPrompt(base_ratio=0.2, overlap=overlap)
        a, b = rows(method, lay)[[0, 1, 2]], rows(method, turned)[[1, 0, 2]]
        torch.testing.assert_close(a[..., same], b[..., same])
        assert torch.allclose(a, b) == (overlap == "blend")


def test_feather_is_a_ramp_outside_and_a_regions_own_comes_first():
    ramp = torch.tensor([1.0, 1.0, 0.5, 0.0])
    torch.testing.assert_close(rows(replace(NO_BASE, feather=0.5), two([LEFT, RIGHT], [1.0, 0.0]))[0, 0], ramp)
    torch.testing.assert_close(rows(NO_BASE, two([LEFT, RIGHT], [1.0, 0.0], feather=0.5))[0, 0], ramp)


def test_windows_say_when_and_a_regions_own_comes_first():
    lay = two()
    lay = replace(lay, regions=(replace(lay.regions[0], start=0.6, end=0.8), lay.regions[1]))
    (mix,) = RegionPrompt(confine_end=0.0, window=StepWindow(0.0, 0.5)).edits(lay)
    assert (mix.window.start, mix.window.end) == (0.0, 0.8)
    for progress, read in ((0.1, [False, True]), (0.55, [False, False]), (0.7, [True, False])):
        weights = mix.weigh(replace(site(lay), progress=progress))
        assert [bool(row.any()) for row in weights] == read


def test_a_crop_of_the_image_sees_its_part():
    weights = rows(NO_BASE, two(), view=View(0.5, 0.0, 0.5, 1.0))
    assert weights[0].abs().max() == 0 and torch.equal(weights[1], torch.ones(4, 4))


def test_strength_0_and_base_ratio_1_are_off():
    assert RegionPrompt(strength=0.0).edits(two()) == []
    assert RegionPrompt(base_ratio=1.0).edits(two()) == []
    assert RegionPrompt().edits(two(strengths=[0.0, 0.0])) == []


def test_regions_read_their_phrases_or_other_texts_and_the_rest_a_background():
    lay = two(strengths=[1.0, 0.0])
    (mix,) = NO_BASE.edits(lay)
    assert [t is lay.region_texts[0].embedding for t in mix.texts] == [True] and mix.rows == "layout"
    others, rest = [torch.zeros(1, 5, 4), torch.ones(1, 9, 4)], torch.ones(1, 7, 4)
    (mix,) = NO_BASE.edits(lay, others, rest)
    assert mix.texts == (others[0], rest)
    expected = rows(NO_BASE, lay)[[0, 2]].flatten(1)
    assert torch.equal(mix.weigh(site(lay)), expected) and expected[1].sum() == 8


def test_confined_words_are_those_of_rectified_attention():
    lay = two()
    edit, mix = RegionPrompt(strength=0.7, confine_end=1.0, window=StepWindow(0.0, 0.5), feather=0.5).edits(lay)
    (expected,) = RectifiedAttention(0.7, StepWindow(0.0, 0.5), 0.5).edits(lay)
    assert isinstance(mix, TextMix) and edit.window == expected.window
    zeros = torch.zeros(1, 1, 16, 16)
    assert torch.equal(edit.fn(zeros, site(lay)), expected.fn(zeros, site(lay)))
    assert expected.fn(zeros, site(lay)).min() < 0


def test_words_are_confined_at_the_start_of_the_window():
    def confined(lay, **settings):
        return [edit.window for edit in RegionPrompt(**settings).edits(lay) if not isinstance(edit, TextMix)]

    lay = two()
    assert confined(lay) == [StepWindow(0.0, 0.4)]
    assert confined(lay, window=StepWindow(0.1, 0.2)) == [StepWindow(0.1, 0.2)]
    assert confined(lay, window=StepWindow(0.5, 1.0)) == confined(lay, confine_end=0.0) == []
    assert confined(two(start=0.2, end=0.9)) == [StepWindow(0.2, 0.4)]  # regions' own windows


def test_the_backgrounds_time_is_the_methods():
    """Whatever windows the regions have."""
    lay = two(start=0.2, end=0.5)
    (mix,) = NO_BASE.edits(lay, background=torch.ones(1, 7, 4))
    assert mix.window == StepWindow(0.0, 1.0)
    assert mix.weigh(replace(site(lay), progress=0.8)).sum(1).tolist() == [0.0, 0.0, 16.0]


def test_negatives_are_read_in_the_negatives_rows_where_their_region_is():
    lay = two([LEFT, MIDDLE])
    against = lay.region_texts[1]
    opposed = replace(lay, region_negatives=(None, against))
    mixes = RegionPrompt(base_ratio=0.25, confine_end=0.0).edits(opposed)
    assert [mix.rows for mix in mixes] == ["layout", "negative"]
    assert mixes[1].texts == (against.embedding,)
    torch.testing.assert_close(mixes[1].weigh(site(lay)).view(4, 4)[0], torch.tensor([0.0, 0.75, 0.75, 0.0]))


@pytest.mark.parametrize("name", ["strength", "base_ratio", "confine_end", "feather"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(BoxwrightError, match=f"{name} is 1.5; choose 0 to 1"):
        RegionPrompt(**{name: 1.5})


def test_a_region_whose_window_is_empty_is_refused():
    lay = two()
    lay = replace(lay, regions=(Region("red heart", LEFT, start=0.9), lay.regions[1]))
    with pytest.raises(BoxwrightError, match='Region "red heart".*0.9 to 0.5'):
        RegionPrompt(window=StepWindow(0.0, 0.5)).edits(lay)
