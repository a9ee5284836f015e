"""What a loss on pictures sees, how far it moves them, and the losses that need no model."""

import pytest
import torch
from pack.attention_patches.core.pictures import (
    MOST,
    Part,
    PictureGuide,
    move_limit,
    part_share,
    schedule_weight,
    window_of_part,
)
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow
from pack.attention_patches.samplers.color_loss import ColorLoss, added

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def picture(size=(6, 10), batch=2):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


# --- what a loss sees ---


def test_a_loss_sees_the_rectangle_around_a_box():
    seen = window_of_part(picture(), part_share(Part(Box(0.2, 0.5, 0.5, 0.5)), (6, 10)))
    torch.testing.assert_close(seen, picture()[:, :, 3:, 2:7])


def test_a_mean_over_what_is_seen_of_a_painted_area_is_one_over_the_area():
    mask = torch.zeros(6, 10)
    mask[1, 2], mask[4, 7], mask[2, 5] = 1.0, 0.5, 0.25
    share = part_share(Part(mask), (6, 10))
    seen = window_of_part(picture(), share)
    assert seen.shape == (2, 3, 4, 6)
    weighted = (picture() * mask).sum(dim=(2, 3)) / mask.sum()
    torch.testing.assert_close(seen.mean(dim=(2, 3)), weighted)


def test_nothing_outside_a_painted_area_is_judged():
    mask = torch.zeros(6, 10)
    mask[1:3, 2:4], mask[2, 2] = 1.0, 0.0
    share, other = part_share(Part(mask), (6, 10)), picture()
    other[:, :, mask == 0] = 0.5
    assert torch.equal(window_of_part(picture(), share), window_of_part(other, share))


def test_a_part_without_a_pixel_is_refused():
    with pytest.raises(BoxwrightError, match="no pixel"):
        window_of_part(picture(), torch.zeros(6, 10))


# --- how far it moves ---


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.85])
def test_both_modes_move_a_gaussian_by_as_much(flow, sigma):
    """Oracle: data of deviation 1, whose clean prediction E[picture | latent] is linear in the latent."""
    signal = 1.0 - sigma if flow else 1.0
    slope = signal / (signal**2 + sigma**2)  # J
    through = schedule_weight(sigma, flow, "through model") * slope
    assert through == pytest.approx(schedule_weight(sigma, flow, "direct"))


def test_a_move_follows_from_bayes():
    """Oracle: a Gaussian of deviation 1, and a loss (c - D)^2 / 2 as minus a log-likelihood of the latent."""
    sigma, x, wanted = 0.7, torch.tensor(0.4, requires_grad=True), 2.0
    clean = x / (1 + sigma**2)
    prior = -(x**2) / (2 * (1 + sigma**2))
    likelihood = -((clean - wanted) ** 2) / 2
    (score,) = torch.autograd.grad(prior + likelihood, x, retain_graph=True)
    posterior = x + sigma**2 * score  # Tweedie's formula, with the condition
    (gradient,) = torch.autograd.grad(-likelihood, x)
    moved = clean - schedule_weight(sigma, False, "through model") * gradient
    torch.testing.assert_close(moved, posterior)


def test_moves_shrink_with_the_noise():
    limits = [move_limit(0.5, sigma, False) for sigma in (100.0, 1.0, 0.1)]
    assert limits[0] == pytest.approx(0.5, abs=1e-4) and limits[1] == pytest.approx(0.5 / 2**0.5)
    assert limits[2] == pytest.approx(0.05, rel=0.01)
    assert move_limit(0.0, 1.0, True) == MOST  # a flow's first step


def test_parts_have_their_own_time_and_strength():
    parts = (Part(Box(0, 0, 1, 1), 1.0, StepWindow(0.0, 0.4)), Part(Box(0, 0, 1, 1), 0.0), Part(Box(0, 0, 1, 1)))
    guide = PictureGuide(ColorLoss((RED,)), parts, window=StepWindow(0.2, 0.8))
    assert [guide.at(progress) for progress in (0.1, 0.3, 0.5, 0.8)] == [(), (parts[0], parts[2]), (parts[2],), ()]


@pytest.mark.parametrize("numbers", [{"strength": -1.0}, {"strength": 1e9}, {"max_change": 5.0}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(BoxwrightError, match=next(iter(numbers))):
        PictureGuide(ColorLoss((RED,)), **numbers)


# --- losses ---


def test_the_mean_colour_is_what_counts_or_every_pixel():
    half = torch.zeros(1, 3, 4, 4)
    half[:, 0, :2] = 1.0  # red above, black below
    assert float(ColorLoss(((0.5, 0.0, 0.0),))(half)) == pytest.approx(0.0)
    assert float(ColorLoss(((0.5, 0.0, 0.0),), "every pixel")(half)) == pytest.approx(0.25)
    assert float(ColorLoss((RED,))(half)) == pytest.approx(0.25)
    assert ColorLoss((RED,))(picture()).shape == (2,)


def test_of_a_palette_the_nearest_colour_counts():
    half = torch.zeros(1, 3, 4, 4)
    half[:, 0, :2], half[:, 2, 2:] = 1.0, 1.0  # red above, blue below
    assert float(ColorLoss((BLUE, RED, GREEN), "every pixel")(half)) == pytest.approx(0.0, abs=1e-6)
    assert float(ColorLoss((BLUE, GREEN), "every pixel")(half)) == pytest.approx(1.0, rel=1e-3)  # red: 2 from either


def test_a_grey_pixel_goes_to_the_nearest_colour_of_a_palette():
    pixel = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(ColorLoss((RED, BLUE), "every pixel")(pixel).sum(), pixel)
    alone = 2 * (pixel.detach() - torch.tensor(RED).view(1, 3, 1, 1))
    torch.testing.assert_close(gradient, alone, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("colors", [(), (RED,) * 17, ((1.5, 0.0, 0.0),)])
def test_colours_that_are_none_are_refused(colors):
    with pytest.raises(BoxwrightError, match="colour"):
        ColorLoss(colors)


def test_losses_add_with_their_weights():
    red, blue = ColorLoss((RED,)), ColorLoss((BLUE,))
    whole = added(red, 0.5, [added(blue, -2.0)])
    torch.testing.assert_close(whole(picture()), 0.5 * red(picture()) - 2.0 * blue(picture()))
    assert whole.models == ()
