"""Areas as coverage of a token grid."""

import pytest
import torch
from pack.attention_patches.core.grids import coverage, feathered, laid_over, visible_cells
from pack.attention_patches.core.types import Box, View


def sampled(box: Box, grid, view=View(), fine=400) -> torch.Tensor:
    """Coverage by counting points: an oracle that shares nothing with the exact formula."""
    h, w = grid
    y = view.y + view.height * (torch.arange(h * fine, dtype=torch.float64) + 0.5) / (h * fine)
    x = view.x + view.width * (torch.arange(w * fine, dtype=torch.float64) + 0.5) / (w * fine)
    down = ((y >= box.y) & (y < box.y + box.height)).double().view(h, fine).mean(1)
    across = ((x >= box.x) & (x < box.x + box.width)).double().view(w, fine).mean(1)
    in_down = ((y >= 0) & (y < 1)).double().view(h, fine).mean(1)
    in_across = ((x >= 0) & (x < 1)).double().view(w, fine).mean(1)
    return (down[:, None] * across / (in_down[:, None] * in_across).clamp_min(1e-9)).float()


@pytest.mark.parametrize("seed", range(30))
def test_a_box_covers_what_counting_points_says(seed):
    g = torch.Generator().manual_seed(seed)
    r = torch.rand(8, generator=g)
    box = Box(float(r[0] * 0.8), float(r[1] * 0.8), float(0.02 + r[2] * 0.18), float(0.02 + r[3] * 0.18))
    grid = (int(torch.randint(1, 20, (1,), generator=g)), int(torch.randint(1, 20, (1,), generator=g)))
    view = View(float(r[4] * 0.4), float(r[5] * 0.4), float(0.3 + r[6] * 0.8), float(0.3 + r[7] * 0.8))
    torch.testing.assert_close(coverage(box, grid, view), sampled(box, grid, view), atol=6e-3, rtol=0)


def test_the_whole_image_covers_every_cell_even_where_the_model_pads():
    assert torch.equal(coverage(Box(0, 0, 1, 1), (9, 15)), torch.ones(9, 15))
    padded = View(0.0, 0.0, 15 * 4 / 57, 9 * 4 / 33)  # a latent of 33 x 57 on a grid of 4 x 4 cells
    torch.testing.assert_close(coverage(Box(0, 0, 1, 1), (9, 15), padded), torch.ones(9, 15))


def test_a_painted_box_covers_like_the_box():
    mask = torch.zeros(60, 80)
    mask[12:36, 20:60] = 1.0
    box = Box(20 / 80, 12 / 60, 40 / 80, 24 / 60)
    for grid in [(8, 8), (16, 24), (7, 11), (60, 80), (120, 160)]:
        torch.testing.assert_close(coverage(mask, grid), coverage(box, grid), atol=1e-6, rtol=0)
    view = View(0.25, 0.1, 0.6, 0.7)
    torch.testing.assert_close(coverage(mask, (9, 5), view), coverage(box, (9, 5), view), atol=1e-6, rtol=0)


def test_soft_edges_are_averaged_and_the_total_is_kept():
    mask = torch.rand(37, 53, generator=torch.Generator().manual_seed(1))
    for grid in [(5, 7), (37, 53), (74, 106)]:
        assert coverage(mask, grid).mean() == pytest.approx(float(mask.mean()), abs=1e-5)


def test_crops_of_a_grid_are_the_crop_of_the_whole():
    box = Box(0.21, 0.37, 0.33, 0.4)
    whole = coverage(box, (16, 24))
    crop = coverage(box, (8, 12), View(12 / 24, 4 / 16, 12 / 24, 8 / 16))
    torch.testing.assert_close(crop, whole[4:12, 12:24], atol=1e-6, rtol=0)


def test_visible_cells_keep_the_best_where_none_is_half_covered():
    share = coverage(Box(0.51, 0.51, 0.05, 0.04), (4, 4))
    assert share.max() < 0.5
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[2, 2] = True
    assert torch.equal(visible_cells(share), expected)
    assert torch.equal(visible_cells(coverage(Box(0, 0, 0.5, 1), (4, 4))), torch.arange(4).expand(4, 4) < 2)
    assert not visible_cells(torch.zeros(3, 3)).any()


def test_feather_ramps_outside_and_keeps_the_inside():
    share = torch.zeros(1, 9)
    share[0, 3:5] = 1.0
    ramp = feathered(share, 4 / 9)
    torch.testing.assert_close(ramp[0], torch.tensor([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0.0]))
    assert torch.equal(feathered(share, 0.0), share)
    both = feathered(torch.nn.functional.pad(share, (0, 0, 2, 2)), 4 / 9, View(height=10 / 9))  # 2 cells down, 4 across
    torch.testing.assert_close(both[1], (ramp[0] - 0.5).clamp_min(0))


PARTS = [View(), View(0.25, 0.5, 0.75, 0.5), View(width=17 / 16, height=33 / 32)]


@pytest.mark.parametrize("view", PARTS)
@pytest.mark.parametrize("grid", [(3, 5), (8, 8), (16, 4)])
def test_values_laid_over_another_grid_are_averages_by_area(view, grid):
    """Oracle: both grids cut into points of one fine grid; a box's coverage laid over is the coverage itself."""
    values = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
    means, under = laid_over(values, view, grid)
    fine = 480
    y, x = ((torch.arange(side * fine, dtype=torch.float64) + 0.5) / (side * fine) for side in grid)
    row, column = ((y - view.y) / view.height * 4).floor().long(), ((x - view.x) / view.width * 8).floor().long()
    inside = ((row >= 0) & (row < 4))[:, None] & ((column >= 0) & (column < 8))
    points = values.double()[:, row.clamp(0, 3)][:, :, column.clamp(0, 7)] * inside
    sums, counts = (
        each.unflatten(-1, (grid[1], fine)).unflatten(-3, (grid[0], fine)).sum((-3, -1))
        for each in (points, inside[None].double())
    )
    torch.testing.assert_close(under, counts[0] / fine**2, atol=0.005, rtol=0)
    torch.testing.assert_close(means, sums / counts.clamp_min(1), atol=0.01, rtol=0)


def test_laying_over_the_same_grid_changes_nothing():
    values = torch.rand(3, 6, 7)
    means, under = laid_over(values, View(0.1, 0.2, 0.5, 0.5), (6, 7), View(0.1, 0.2, 0.5, 0.5))
    torch.testing.assert_close(means, values.double())
    torch.testing.assert_close(under, torch.ones(6, 7, dtype=torch.float64))
