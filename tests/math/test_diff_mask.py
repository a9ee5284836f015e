"""DiffEdit's mask from synthetic differences whose mask is known."""

import math

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.samplers.diff_mask import DiffMask

SIZE = (20, 28)
PLAIN = DiffMask(blur=0.0, close=0)


def disc(y, x, radius):
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float()


def iou(a, b):
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


def found(settings, truths, floor=0.2, draws=10, seed=0):
    """The mask from draws whose difference is 1 inside, `floor` outside, with heavy noise on both."""
    torch.manual_seed(seed)
    truths = torch.stack(truths)
    total = torch.zeros_like(truths)
    for _ in range(draws):
        strength = floor + (1 - floor) * truths[:, None]
        total += settings.of_draw(torch.zeros(len(truths), 4, *SIZE), torch.randn(len(truths), 4, *SIZE) * strength)
    heat = settings.heat(total / draws)
    assert heat.amin((1, 2)).eq(0).all() and heat.amax((1, 2)).eq(1).all()
    return settings.mask(heat)


@pytest.mark.parametrize("settings", [DiffMask(), DiffMask(method="otsu"), DiffMask(blur=1.0, threshold=0.4)])
def test_a_known_mask_comes_out(settings):
    truths = [disc(8, 9, 5), disc(12, 20, 4)]
    for mask, truth in zip(found(settings, truths), truths):
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert iou(mask, truth) > 0.85


def test_more_draws_find_it_better():
    truth = disc(10, 13, 6)
    one, ten = (iou(found(PLAIN, [truth], draws=draws)[0], truth) for draws in (1, 10))
    assert ten > one + 0.1


def test_pictures_of_a_batch_do_not_influence_each_other():
    source, target = torch.randn(3, 4, *SIZE), torch.randn(3, 4, *SIZE)
    target[2] *= 50
    settings = DiffMask(method="otsu")
    maps = settings.of_draw(source, target)
    heat = settings.heat(maps)
    for row in range(3):
        alone = settings.of_draw(source[row : row + 1], target[row : row + 1])
        assert torch.equal(alone[0], maps[row])
        torch.testing.assert_close(settings.heat(alone)[0], heat[row])
        assert torch.equal(settings.mask(heat[row : row + 1])[0], settings.mask(heat)[row])


def test_the_difference_is_the_mean_over_channels_whatever_the_parameterisation():
    source, target = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    settings = DiffMask(clip=1.0)
    maps = settings.of_draw(source, target)
    torch.testing.assert_close(maps, (source - target).abs().mean(1))
    scaled = settings.of_draw(-source / 1.6, -target / 1.6)  # predicted noise at sigma 1.6
    torch.testing.assert_close(settings.heat(scaled), settings.heat(maps))
    torch.testing.assert_close(settings.of_draw(source[:, :, None], target[:, :, None]), maps)


def test_one_bright_spot_does_not_hide_the_rest():
    truth = disc(9, 9, 5)
    difference = truth[None, None].clone()
    difference[0, 0, 15, 25] = 20.0
    clipped, free = (
        s.mask(s.heat(s.of_draw(torch.zeros_like(difference), difference)))[0]
        for s in (DiffMask(clip=0.99, blur=0, close=0), DiffMask(clip=1.0, blur=0, close=0))
    )
    assert iou(clipped, truth) > 0.95 and free.sum() == 1


def test_thresholds_and_cleaning():
    heat = torch.zeros(1, *SIZE)
    heat[0, 5:10, 5:10], heat[0, 15:17, 20:22] = 1.0, 0.6
    heat[0, 7, 7] = 0.1
    plain = PLAIN.mask(heat)
    assert plain.sum() == 24 + 4
    assert DiffMask(blur=0, close=0, threshold=0.8).mask(heat).sum() == 24
    assert DiffMask(blur=0, close=1).mask(heat).sum() == 25 + 4
    assert DiffMask(blur=0, close=1, keep_largest=True).mask(heat).sum() == 25
    assert DiffMask(blur=0, close=1, keep_largest=True, dilate=1).mask(heat).sum() == 25 + 20
    assert DiffMask(threshold=1.0).mask(heat).sum() == 0


def test_flat_heat_is_no_mask():
    assert DiffMask().heat(torch.full((1, 4, 4), 0.3)).abs().max() == 0


@pytest.mark.parametrize("high, low, share", [(0.9, 0.1, 0.2), (0.7, 0.2, 0.5), (0.45, 0.05, 0.1)])
def test_otsu_separates_two_groups_wherever_they_lie(high, low, share):
    torch.manual_seed(0)
    upper = torch.rand(2, *SIZE) < share
    heat = torch.where(upper, high, low) + 0.02 * torch.randn(2, *SIZE)
    heat[1] *= 0.5
    assert torch.equal(DiffMask(method="otsu", close=0).mask(heat) > 0, upper)


@pytest.mark.parametrize("setting", [
    {"draws": 0}, {"draws": 65}, {"noise_level": 0.0}, {"noise_level": 1.0}, {"clip": 0.4}, {"clip": math.nan},
    {"blur": -1.0}, {"blur": 17.0}, {"threshold": 1.5}, {"close": -1}, {"close": 65}, {"dilate": 65},
    {"method": "median"},
])  # fmt: skip
def test_settings_out_of_range_are_refused(setting):
    ((name, _),) = setting.items()
    with pytest.raises(BoxwrightError, match=f"{'threshold method' if name == 'method' else name}.*choose"):
        DiffMask(**setting)
