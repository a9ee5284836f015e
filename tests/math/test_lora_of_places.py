"""Where a region's LoRA counts, against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow
from pack.attention_patches.methods.region_lora import RegionLora

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
INK, OIL, DEFAULT = object(), object(), RegionLora()


def two(areas=(LEFT, RIGHT), strengths=None, **options):
    lay = layout(list(areas), OWNED, WORDS, strengths=strengths)
    return replace(lay, regions=tuple(replace(region, **options) for region in lay.regions))


def shares(lay, loras, method=DEFAULT, progress=0.0):
    """[units, h, w] at a 4 x 4 site."""
    (edit,) = method.edits(lay, loras)
    return edit.shares(replace(site(lay), progress=progress)).view(-1, 4, 4)


def test_each_lora_has_its_half():
    left = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    found = shares(two(), {0: (INK, 1.0), 1: (OIL, -0.5)})
    assert torch.equal(found, torch.stack([left, 1 - left]))
    (edit,) = RegionLora().edits(two(), {0: (INK, 1.0), 1: (OIL, -0.5)})
    assert edit.changes == (INK, OIL) and edit.strengths == (1.0, -0.5)


def test_one_file_at_one_strength_is_one_unit():
    (edit,) = RegionLora().edits(two(), {0: (INK, 0.7), 1: (INK, 0.7)})
    assert edit.changes == (INK,) and torch.equal(edit.shares(site(two())), torch.ones(1, 16))
    (apart,) = RegionLora().edits(two(), {0: (INK, 0.7), 1: (INK, 0.6)})
    assert apart.changes == (INK, INK) and apart.shares(site(two())).shape == (2, 16)


def test_a_region_without_a_lora_covers_those_behind_it():
    middle = Box(0.25, 0.0, 0.5, 1.0)
    row = lambda overlap: shares(two([LEFT, middle]), {0: (INK, 1.0)}, RegionLora(overlap))[0, 0]  # noqa: E731
    torch.testing.assert_close(row("order"), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(row("blend"), torch.tensor([1.0, 0.5, 0.0, 0.0]))


def test_strength_and_feather_of_a_region_count():
    lay = two([LEFT, RIGHT], [0.5, 0.0])
    torch.testing.assert_close(shares(lay, {0: (INK, 1.0)})[0, 0], torch.tensor([0.5, 0.5, 0, 0]))
    soft = shares(lay, {0: (INK, 1.0)}, RegionLora(feather=0.5))[0, 0]
    torch.testing.assert_close(soft, 0.5 * torch.tensor([1.0, 1.0, 0.5, 0.0]))


def test_own_words_count_as_the_region_does_and_only_in_its_time():
    lay = two(strengths=[0.5, 1.0])
    lay = replace(lay, regions=(lay.regions[0], replace(lay.regions[1], start=0.5)))
    (edit,) = RegionLora().edits(lay, {0: (INK, 2.0), 1: (OIL, 1.0)})
    early, late = (edit.words(replace(site(lay), progress=p)) for p in (0.0, 0.5))
    assert early[0].nonzero()[:, 0].tolist() == [2, 3] and early[0].max() == 0.5 and early[1].max() == 0
    assert late[1].nonzero()[:, 0].tolist() == [6, 7] and late[1].max() == 1


def test_regions_have_times_of_their_own():
    lay = replace(two(), regions=(two().regions[0], replace(two().regions[1], start=0.0, end=0.25)))
    method = RegionLora(window=StepWindow(0.5, 1.0))
    (edit,) = method.edits(lay, {0: (INK, 1.0), 1: (OIL, 1.0)})
    assert edit.window == StepWindow(0.0, 1.0)
    at = lambda p: shares(lay, {0: (INK, 1.0), 1: (OIL, 1.0)}, method, p).amax(dim=(1, 2)).tolist()  # noqa: E731
    assert [at(p) for p in (0.0, 0.3, 0.5)] == [[0, 1], [0, 0], [1, 0]]


def test_off_is_no_edit():
    for lay, loras in ((two(), {}), (two(), {0: (INK, 0.0)}), (two(strengths=[0.0, 1.0]), {0: (INK, 1.0)})):
        assert RegionLora().edits(lay, loras) == []


def test_a_feather_outside_0_to_1_is_refused():
    with pytest.raises(BoxwrightError, match="feather is 2"):
        RegionLora(feather=2.0)
