"""Arranged noise: blocks that like a phrase come into its box, and nothing is made that was not there."""

from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.seam import Start
from pack.attention_patches.core.types import Box, BoxwrightError, View
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.box_constraint import constrained_phrases

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
TOP, CORNER = Box(0.0, 0.0, 1.0, 0.5), Box(0.0, 0.0, 0.25, 0.25)
TWO = layout([LEFT, RIGHT], OWNED, WORDS)
SIZE = (8, 8)
DEFAULT = ArrangedNoise()


def noise_of(rows=1, size=SIZE, axes=(4,), seed=0):
    return torch.randn(rows, *axes, *size, generator=torch.Generator().manual_seed(seed))


def maps_of(rows=1, grid=(4, 4), seed=1):
    values = torch.rand(rows, 16, *grid, generator=torch.Generator().manual_seed(seed)) + 0.1
    return values / values.sum(dim=1, keepdim=True)


def start(placed, maps, size=SIZE, free=None, view=View()):
    return Start(((maps, site(placed, tuple(maps.shape[-2:]), view)),), size, free)


def arranged(placed, noise, maps, settings=DEFAULT, **options):
    (edit,) = settings.edits(placed)
    return edit.fn(noise, start(placed, maps, tuple(noise.shape[-2:]), **options))[0]


def sources(placed, maps, settings=DEFAULT, size=SIZE, **options):
    return settings.plan(constrained_phrases(placed), start(placed, maps, size, **options)).sources


def same_values(a, b):
    return torch.equal(a.flatten(-2).sort().values, b.flatten(-2).sort().values)


def inside(noise, box):
    height, width = noise.shape[-2:]
    y, x = round(box.y * height), round(box.x * width)
    return noise[..., y : y + round(box.height * height), x : x + round(box.width * width)]


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (16, 24)])
@pytest.mark.parametrize("axes", [(4,), (16, 1), (3, 5)], ids=["picture", "one frame", "film"])
def test_it_is_a_permutation_of_the_noise(size, axes):
    noise = noise_of(2, size, axes)
    out = arranged(TWO, noise, maps_of(2))
    assert same_values(out, noise) and not torch.equal(out, noise)


def test_strength_0_is_off():
    assert ArrangedNoise(strength=0.0).edits(TWO) == []
    assert ArrangedNoise().edits(layout([LEFT], [[2]], WORDS, strengths=[0.0])) == []


def test_the_blocks_in_which_a_phrase_is_seen_come_into_its_box():
    """Oracle: with one region the sum is the greatest when the box holds the blocks that attend most to its words."""
    placed, maps = layout([CORNER], OWNED[:1], WORDS), maps_of()
    order = sources(placed, maps)[0]
    liked = maps[0, OWNED[0]].mean(dim=0).flatten()
    assert liked[order[0]] == liked.max()


def test_each_phrase_gets_the_blocks_that_like_it_and_not_the_other():
    red = torch.zeros(1, 16, 4, 4) + 0.01
    red[0, OWNED[0], :, 2:] += 0.5  # each is where the other should be
    red[0, OWNED[1], :, :2] += 0.5
    noise = noise_of()
    out = arranged(TWO, noise, red)
    for box, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        assert same_values(inside(out, box), inside(noise, other))


def test_regions_in_another_order_or_with_a_neighbour_of_strength_0_change_nothing():
    boxes = [Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5)]
    maps, noise = maps_of(), noise_of()
    placed = layout(boxes, OWNED, WORDS)
    expected = arranged(placed, noise, maps)
    assert torch.equal(arranged(layout(boxes[::-1], OWNED[::-1], WORDS), noise, maps), expected)
    third = layout([*boxes, TOP], [*OWNED, [4]], WORDS, strengths=[1.0, 1.0, 0.0])
    assert torch.equal(arranged(third, noise, maps), expected)


def test_rows_of_a_batch_do_not_know_each_other():
    noise, maps = noise_of(3), maps_of(3)
    together = arranged(TWO, noise, maps)
    for i in range(3):
        assert torch.equal(together[i : i + 1], arranged(TWO, noise[i : i + 1], maps[i : i + 1]))
    assert torch.equal(together, arranged(TWO, noise, maps))


def test_only_blocks_that_are_drawn_anew_move():
    free = torch.zeros(1, 8, 8, dtype=torch.bool)
    free[..., 1:6] = True  # whole blocks from column 2 to 5
    noise = noise_of()
    out = arranged(TWO, noise, maps_of(), free=free)
    changed = (out != noise).any(dim=1)[0]
    assert changed.any() and not changed[:, :2].any() and not changed[:, 6:].any()
    assert same_values(out, noise)


def test_strength_is_the_share_of_blocks_that_may_move():
    maps, stays = maps_of(), torch.arange(16)
    moves = [int((sources(TWO, maps, ArrangedNoise(strength=s))[0] != stays).sum()) for s in (0.02, 0.25, 0.5, 1.0)]
    assert moves[0] == 0 and moves == sorted(moves) and 0 < moves[1] <= 4 and moves[2] <= 8 < moves[3]


def test_a_box_smaller_than_a_block_has_the_block_that_it_touches_most():
    tiny = Box(0.3, 0.3, 0.04, 0.04)
    order = sources(layout([tiny], OWNED[:1], WORDS), maps_of())[0]
    liked = maps_of()[0, OWNED[0]].mean(dim=0).flatten()
    assert liked[order[5]] == liked.max()


def test_where_boxes_overlap_the_later_one_has_the_blocks():
    """Oracle: with rivals that count half, the corner's block is the one whose swap is worth most."""
    whole, maps = Box(0.0, 0.0, 1.0, 1.0), maps_of()
    order = sources(layout([whole, CORNER], OWNED, WORDS), maps)[0]
    red, blue = (maps[0, own].mean(dim=0).flatten() for own in OWNED)
    assert order[0] == (blue / blue.mean() - red / red.mean()).argmax()


def test_several_boxes_of_a_phrase_share_its_blocks():
    boxes = [Box(0.0, 0.0, 0.25, 0.25), Box(0.75, 0.75, 0.25, 0.25)]
    maps = maps_of()
    order = sources(layout(boxes, [OWNED[0], OWNED[0]], WORDS), maps)[0]
    liked = maps[0, OWNED[0]].mean(dim=0).flatten()
    assert set(order[[0, 15]].tolist()) == set(liked.topk(2).indices.tolist())


def test_a_painted_mask_is_a_region_too():
    mask = torch.zeros(16, 16)
    mask[:8, :] = 1.0
    maps, noise = maps_of(), noise_of()
    assert torch.equal(
        arranged(layout([mask], OWNED[:1], WORDS), noise, maps), arranged(layout([TOP], OWNED[:1], WORDS), noise, maps)
    )


def test_a_region_whose_time_comes_later_is_left_out():
    late = replace(TWO, regions=(TWO.regions[0], replace(TWO.regions[1], start=0.2)))
    alone = replace(TWO, regions=(TWO.regions[0], replace(TWO.regions[1], strength=0.0)))
    noise, maps = noise_of(), maps_of()
    assert torch.equal(arranged(late, noise, maps), arranged(alone, noise, maps))
    none = replace(TWO, regions=tuple(replace(r, start=0.2) for r in TWO.regions))
    (edit,) = ArrangedNoise().edits(none)
    out, line = edit.fn(noise, start(none, maps))
    assert torch.equal(out, noise) and "no region is at work" in line


def test_even_attention_moves_nothing():
    noise = noise_of()
    assert torch.equal(arranged(TWO, noise, torch.full((1, 16, 4, 4), 1 / 16)), noise)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_attention_that_overflows_is_refused(wrong):
    """One picture of a batch, one word: nothing can be said of where the others would go without it."""
    maps = maps_of(2)
    maps[1, OWNED[0][0], 0, 0] = wrong
    with pytest.raises(BoxwrightError, match="NaN or infinite.*--fp32-unet"):
        arranged(TWO, noise_of(2), maps)


def test_a_crop_says_nothing_of_the_rest():
    """The model saw the right half only: blocks of the left half are neither liked nor disliked."""
    half = View(x=0.5, width=0.5)
    red = torch.zeros(1, 16, 4, 2) + 0.01
    red[0, OWNED[0]] += torch.tensor([0.9, 0.0])  # the left column of what it saw
    order = sources(layout([RIGHT], OWNED[:1], WORDS), red, view=half)[0].view(4, 4)
    inside = set(order[:, 2:].flatten().tolist())
    assert {2, 6, 10, 14} < inside and not {3, 7, 11, 15} & inside


def test_too_many_blocks_become_fewer_and_that_is_said(monkeypatch):
    monkeypatch.setattr("pack.attention_patches.methods.arranged_noise.MAX_WORK", 20)
    (edit,) = ArrangedNoise(block=1).edits(TWO)
    line = edit.fn(noise_of(), start(TWO, maps_of()))[1]
    assert "blocks of 1 would be too many" in line and "4 blocks of 4 latent cells" in line


@pytest.mark.parametrize("wrong", [{"strength": 1.5}, {"strength": float("nan")}, {"block": 65}, {"rivalry": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BoxwrightError, match=f"{next(iter(wrong))} .*choose 0 to"):
        ArrangedNoise(**wrong)
