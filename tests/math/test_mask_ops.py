"""Masks on the latent grid against brute force and identities."""

import pytest
import torch
from pack.attention_patches.core.masks import blurred, closed, dilated, largest_patch, on_latent
from pack.attention_patches.core.types import BoxwrightError


def random_masks(seed=0, size=(13, 17), share=0.15):
    return (torch.rand(2, *size, generator=torch.Generator().manual_seed(seed)) < share).float()


@pytest.mark.parametrize("radius", [0, 1, 2, 3.5])
def test_dilation_reaches_every_cell_within_the_radius(radius):
    masks = random_masks()
    cells = torch.stack(torch.meshgrid(torch.arange(13.0), torch.arange(17.0), indexing="ij"), -1).flatten(0, 1)
    near = torch.cdist(cells, cells) <= radius + 1e-6
    expected = torch.stack([(near & (mask.flatten() > 0)[None]).any(1).view(13, 17) for mask in masks]).float()
    assert torch.equal(dilated(masks, radius), expected)


def test_closing_fills_holes_and_keeps_the_rest():
    mask = torch.zeros(1, 12, 12)
    mask[0, :7, 2:9] = 1.0  # touches the upper edge
    holed = mask.clone()
    holed[0, 3, 5] = holed[0, 4, 5] = 0.0
    assert torch.equal(closed(holed, 1), mask)
    assert torch.equal(closed(mask, 2), mask)
    assert torch.equal(closed(holed, 0), holed)
    gap = mask.clone()
    gap[0, :, 10:12] = 1.0  # two patches, one column apart, in the whole height
    joined = closed(gap, 1)
    assert joined[0, 3, 9] == 1.0 and joined[0, 11, 9] == 0.0


def test_the_largest_patch_alone_stays():
    mask = torch.zeros(2, 9, 9)
    mask[:, 0:2, 0:2] = 1.0
    mask[0, 4:8, 4:8] = 1.0
    mask[0, 8, 8] = 1.0  # joined by a corner
    mask[1, 0, 8] = 1.0
    kept = largest_patch(mask)
    assert kept[0].sum() == 17 and kept[0, :2, :2].sum() == 0 and kept[0, 8, 8] == 1
    assert kept[1].sum() == 4 and kept[1, 0, 8] == 0
    assert torch.equal(largest_patch(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_long_winding_patch_is_one_patch():
    mask = torch.zeros(1, 9, 21)
    for row in range(0, 9, 2):
        mask[0, row, :] = 1.0
    for row in range(1, 9, 2):
        mask[0, row, 20 if row % 4 == 1 else 0] = 1.0
    assert torch.equal(largest_patch(mask), mask)


def test_blur_keeps_constants_and_the_mean_of_a_spot():
    assert torch.allclose(blurred(torch.full((1, 6, 7), 0.4), 2.0), torch.tensor(0.4))
    spot = torch.zeros(1, 21, 21)
    spot[0, 10, 10] = 1.0
    soft = blurred(spot, 1.5)
    offsets = torch.arange(21.0) - 10
    assert soft.sum() == pytest.approx(1.0, abs=1e-5)
    assert float((soft[0].sum(0) * offsets**2).sum()) == pytest.approx(1.5**2, rel=0.03)
    assert torch.equal(blurred(spot, 0), spot)


def test_masks_of_any_size_land_on_the_latent_by_area():
    mask = torch.zeros(37, 50)
    mask[:, 25:] = 1.0
    assert torch.allclose(on_latent(mask, (3, 4, 8, 10))[:, 0, :, 5:], torch.tensor(1.0))
    assert on_latent(mask, (3, 4, 8, 10))[:, :, :, :5].max() < 1e-6
    assert on_latent(mask, (2, 16, 1, 8, 10)).shape == (2, 1, 1, 8, 10)
    assert on_latent(torch.rand(5, 7), (1, 4, 5, 7)).shape == (1, 1, 5, 7)
    both = on_latent(torch.stack([mask, 1 - mask]), (2, 4, 8, 10))
    assert torch.allclose(both[0] + both[1], torch.tensor(1.0))


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.zeros(3, 8, 8), "shape .3, 8, 8. for 2 pictures"),
        (torch.zeros(1, 1, 8, 8), "shape"),
        (torch.full((8, 8), 1.5), "1.5; those of a mask are numbers from 0 to 1"),
        (torch.full((8, 8), float("nan")), "nan to nan; .*0 to 1"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(BoxwrightError, match=words):
        on_latent(mask, (2, 4, 8, 8))
