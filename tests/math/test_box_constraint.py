"""BoxDiff's losses against numbers worked out by hand, and what following each of them does to a blob."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from pack.attention_patches.box_constraint import (
    PRESETS,
    PUBLISHED,
    BoxConstraint,
    constrained_phrases,
    corner_loss,
    edge_cells,
    inner_loss,
    outer_loss,
    relevance,
    small_boxes,
    smoothed,
    top_mean,
)
from pack.attention_patches.types import Box, BoxwrightError

T = 16
ROLES = ("start", "word", "word", "end", "padding")


def cells(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in row] for row in rows])


BOX = cells("....", ".##.", ".##.", "....")


def layout(areas=(oracles.LEFT, oracles.RIGHT), owned=((2,), (4,)), strengths=None):
    return oracles.layout(list(areas), [list(columns) for columns in owned], list("abcde"), T, strengths)


# --- the parts ---


def test_relevance_is_a_softmax_of_100_times_the_map_without_the_start_token():
    maps = torch.tensor([0.5, 0.02, 0.01, 0.0, 0.03]).view(1, 5, 1, 1)
    e = [math.exp(100 * v) for v in (0.02, 0.01, 0.0, 0.03)]
    expected = torch.tensor([0.0, *(v / sum(e) for v in e)])
    torch.testing.assert_close(relevance(maps, ROLES).flatten(), expected)
    words = torch.tensor([0.0, e[0] / (e[0] + e[1]), e[1] / (e[0] + e[1]), 0.0, 0.0])
    torch.testing.assert_close(relevance(maps, ROLES, "words").flatten(), words)


def test_smoothing_has_the_published_weights_and_reflects():
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 1.0
    line = torch.tensor([0.2119, 0.5761, 0.2119])
    torch.testing.assert_close(smoothed(point, math.sqrt(0.5))[0, 1:4, 1:4], line[:, None] * line, atol=1e-4, rtol=0)
    torch.testing.assert_close(smoothed(torch.full((2, 3, 4), 0.3), math.sqrt(0.5)), torch.full((2, 3, 4), 0.3))
    corner = torch.zeros(1, 3, 3)
    corner[0, 0, 1] = 1.0  # row 0 is seen again as row -2, not as row -1
    torch.testing.assert_close(smoothed(corner, math.sqrt(0.5))[0, 0, 1], line[1] * line[1], atol=1e-4, rtol=0)
    assert torch.equal(smoothed(point, 0.0), point)


def test_top_mean_takes_a_fraction_of_the_cells_and_at_least_one():
    values = torch.arange(16.0).view(1, 4, 4)
    assert top_mean(values, BOX, 0.5).tolist() == [(10 + 9) / 2]
    assert top_mean(values, BOX, 0.2).tolist() == [10.0]  # 0.8 of a cell: the published code divides by zero
    assert top_mean(values, torch.zeros(4, 4, dtype=torch.bool), 0.5).tolist() == [0.0]
    two = torch.stack([values[0], -values[0]])
    assert top_mean(two, BOX, 1.0).tolist() == [7.5, -7.5]


def test_inner_and_outer_losses_by_hand():
    values = torch.zeros(1, 4, 4)
    values[0, 1, 1], values[0, 2, 2], values[0, 0, 3], values[0, 3, 0] = 0.8, 0.4, 0.6, 0.3
    assert inner_loss(values, BOX, 0.5).item() == pytest.approx(1 - 0.6)
    assert outer_loss(values, BOX, 2 / 12).item() == pytest.approx((0.6 + 0.3) / 2)


def test_corner_loss_by_hand():
    """Columns 1 and 2 of 6 are in the box; its right edge is column 3, where the projection should be 0."""
    box = torch.zeros(6, 6, dtype=torch.bool)
    box[1:3, 1:3] = True
    values = torch.zeros(1, 6, 6)
    values[0, 1, 1], values[0, 5, 4] = 0.7, 0.9
    # Edges 1 and 3 with one cell on either side: cells 0..4 along x and y; projections .7 at 1 and .9 at (4 | 5).
    across = (abs(0.0) + abs(0.7 - 1) + abs(0.0 - 1) + 0.0 + 0.9) / 6
    down = (0.0 + abs(0.7 - 1) + 1.0 + 0.0 + 0.0) / 6  # row 5 is not looked at
    assert corner_loss(values, box, 1).item() == pytest.approx(across + down)


def test_edge_cells_of_runs():
    wanted = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0, 1]).bool()
    assert edge_cells(wanted, 0).nonzero().flatten().tolist() == [2, 5, 9]
    assert edge_cells(wanted, 1).nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert edge_cells(torch.ones(4).bool(), 1).nonzero().flatten().tolist() == [0, 1, 3]


# --- the whole loss ---


def of_boxes(maps, areas, owned, settings=None, strengths=None):
    made = layout(areas, owned, strengths)
    settings = settings or BoxConstraint(smoothing=0.0)
    (guide,) = settings.guides(made)
    return guide.loss(maps, oracles.site(made, grid=tuple(maps.shape[-2:])))


def blob_maps(x: float, y: float, column: int, side=8, size=1.2, height=0.2, tokens=T) -> torch.Tensor:
    """Attention [1, T, side, side]: a Gaussian for one column, nothing else."""
    r = torch.arange(side) + 0.5
    blob = torch.exp(-((r[None, :] - x) ** 2 + (r[:, None] - y) ** 2) / (2 * size**2))
    maps = torch.zeros(1, tokens, side, side)
    maps[0, column] = height * blob
    return maps


def test_the_total_is_the_sum_of_the_weighted_parts_of_all_phrases():
    torch.manual_seed(0)
    settings = BoxConstraint(smoothing=0.0, inner=2.0, outer=3.0, corner=5.0)
    maps = torch.rand(2, T, 4, 4) * 0.05
    made = layout((Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5)))
    roles = made.prompt.tokens.roles
    expected = 0
    for column, box in ((2, cells("##..", "##..", "....", "....")), (4, cells("....", "....", "..##", "..##"))):
        s = relevance(maps, roles)[:, column]
        expected += 2 * inner_loss(s, box, 0.2) + 3 * outer_loss(s, box, 0.2) + 5 * corner_loss(s, box, 1)
    (guide,) = settings.guides(made)
    found = guide.loss(maps, oracles.site(made))
    torch.testing.assert_close(found.total, expected)
    assert found.per_phrase.shape == (2, 2) and found.phrases == tuple(r.phrase for r in made.regions)


def test_rows_do_not_see_each_other():
    torch.manual_seed(1)
    maps = (torch.rand(3, T, 4, 4) * 0.05).requires_grad_()
    total = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,))).total
    (gradient,) = torch.autograd.grad(total[1], maps)
    assert gradient[1].abs().max() > 0 and gradient[0].abs().max() == 0 == gradient[2].abs().max()


def test_a_phrase_of_several_tokens_counts_as_one():
    """Two tokens that share a cell between them own it as much as one that has it alone."""
    one, two = torch.zeros(1, T, 4, 4), torch.zeros(1, T, 4, 4)
    for maps in (one, two):
        maps[0, 6, :, 2:] = 10.0  # elsewhere the end token wins
    one[0, 2, :, :2] = 10.0
    two[0, 2, 0:2, :2], two[0, 3, 2:4, :2] = 10.0, 10.0
    a = of_boxes(one, (oracles.LEFT,), ((2,),)).total
    b = of_boxes(two, (oracles.LEFT,), ((2, 3),)).total
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert a.item() == pytest.approx(0.0, abs=1e-5)


def test_two_boxes_of_one_phrase_must_both_be_filled():
    areas = (Box(0, 0, 0.25, 1), Box(0.75, 0, 0.25, 1))
    maps = torch.zeros(1, T, 4, 4)
    maps[0, 6, :, 1:3] = 10.0  # between them the end token wins
    maps[0, 2, :, 0] = 10.0
    half = of_boxes(maps, areas, ((2,), (2,)))
    assert half.per_phrase.shape == (1, 1) and half.per_phrase.item() == pytest.approx(1.0, abs=0.1)
    maps[0, 2, :, 3] = 10.0
    full = of_boxes(maps, areas, ((2,), (2,)))
    assert full.per_phrase.item() == pytest.approx(0.0, abs=1e-5)
    assert full.total.item() == pytest.approx(0.0, abs=1e-4)


def test_a_painted_mask_is_a_region_too():
    mask = torch.zeros(40, 40)
    mask[:, :20] = 1.0
    maps = blob_maps(2.0, 4.0, 2)
    torch.testing.assert_close(of_boxes(maps, (mask,), ((2,),)).total, of_boxes(maps, (oracles.LEFT,), ((2,),)).total)


def test_a_box_smaller_than_a_cell_grows_to_one_and_is_named():
    tiny = Box(0.51, 0.51, 0.02, 0.02)
    assert small_boxes(layout((tiny, oracles.RIGHT)), (8, 8)) == [layout().regions[0].phrase]
    inside, outside = blob_maps(4.5, 4.5, 2, size=0.5), blob_maps(1.5, 4.5, 2, size=0.5)
    near, far = (of_boxes(maps, (tiny,), ((2,),)).total for maps in (inside, outside))
    assert bool(torch.isfinite(near)) and near < far


def test_strength_weighs_and_strength_0_leaves_a_phrase_alone():
    maps = torch.rand(1, T, 4, 4) * 0.05
    both = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,))).total
    left = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), strengths=[1.0, 0.0])
    right = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), strengths=[0.0, 1.0])
    half = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), strengths=[1.0, 0.5])
    torch.testing.assert_close(both, left.total + right.total)
    torch.testing.assert_close(half.total, left.total + 0.5 * right.total)
    assert left.phrases == (layout().regions[0].phrase,)
    assert BoxConstraint().guides(layout(strengths=[0.0, 0.0])) == []
    assert BoxConstraint(step_size=0.0).guides(layout()) == []


def test_a_region_with_its_own_window_counts_then_only():
    maps = torch.rand(1, T, 4, 4) * 0.05
    made = layout()
    late = replace(made, regions=(replace(made.regions[0], extra={"start": 0.3, "end": 0.7}), made.regions[1]))
    settings = BoxConstraint(smoothing=0.0)
    (guide,) = settings.guides(late)
    assert (guide.window.start, guide.window.end) == (0.0, 0.7)

    def at(progress):
        return guide.loss(maps, replace(oracles.site(late), progress=progress)).total

    left = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), strengths=[1.0, 0.0]).total
    right = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), strengths=[0.0, 1.0]).total
    torch.testing.assert_close(at(0.1), right)
    torch.testing.assert_close(at(0.4), left + right)
    torch.testing.assert_close(at(0.6), left)
    with pytest.raises(BoxwrightError, match='"b": The schedule window 0.6 to 0.5 is empty'):
        settings.guides(replace(made, regions=(replace(made.regions[0], extra={"start": 0.6}), made.regions[1])))


def test_end_and_padding_columns_that_a_region_owns_do_not_count():
    made = layout()
    made.columns[0, 6:8] = True
    assert made.prompt.tokens.roles[6:8] == ("end", "padding")
    assert [phrase.columns for phrase in constrained_phrases(made)] == [(2,), (4,)]


def test_attend_excite_asks_for_the_worst_phrase_anywhere():
    maps = torch.zeros(1, T, 4, 4)
    maps[0, 2, 3, 3] = 10.0
    settings = BoxConstraint(mode="attend_excite", smoothing=0.0)
    found = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), settings)
    assert found.per_phrase[0, 0].item() == pytest.approx(0.0, abs=1e-5)  # outside its box, and that is fine
    assert found.total.item() == pytest.approx(found.per_phrase[0, 1].item()) and found.total.item() > 0.9


# --- what each loss does on its own ---


def follow(settings: BoxConstraint, start, area, free=(1.0, 1.0, 1.0), steps=60, rate=0.4):
    """Gradient descent on the centre and width of a Gaussian blob of attention, [x, y, width], where they are free."""
    made = layout((area, oracles.RIGHT), ((2,), (4,)), [1.0, 0.0])
    (guide,) = settings.guides(made)
    place = torch.tensor(start, requires_grad=True)
    for _ in range(steps):
        r = torch.arange(16) + 0.5
        distance = (r[None, :] - place[0]) ** 2 + (r[:, None] - place[1]) ** 2
        blob = 0.08 * torch.exp(-distance / (2 * place[2] ** 2))
        maps = torch.zeros(1, T, 16, 16)
        maps = torch.cat([maps[:, :2], blob[None, None], maps[:, 3:]], dim=1)
        (gradient,) = torch.autograd.grad(guide.loss(maps, oracles.site(made, grid=(16, 16))).total.sum(), place)
        with torch.no_grad():
            gradient *= torch.tensor(free)
            place -= rate * gradient / gradient.norm().clamp_min(1e-6)
    return place.tolist()


ONLY = {"inner": 0.0, "outer": 0.0, "corner": 0.0}


def test_the_inner_loss_alone_moves_a_blob_into_the_box():
    x, y, _ = follow(BoxConstraint(**{**ONLY, "inner": 1.0}), [5.0, 5.0, 3.0], Box(0.5, 0.5, 0.4, 0.4))
    assert 8 < x < 14.4 and 8 < y < 14.4


def test_the_outer_loss_alone_moves_a_blob_out_of_the_rest():
    x, _, _ = follow(BoxConstraint(**{**ONLY, "outer": 1.0}), [6.5, 8.0, 2.0], Box(0.5, 0.0, 0.5, 1.0), (1.0, 1.0, 0.0))
    assert x > 9


def test_the_corner_loss_alone_brings_a_blob_to_the_size_of_the_box():
    box = Box(0.25, 0.25, 0.5, 0.5)
    wide, narrow = (follow(BoxConstraint(**{**ONLY, "corner": 1.0}), [8.0, 8.0, w], box)[2] for w in (5.0, 0.8))
    assert wide < 4.0 and narrow > 1.5


# --- settings ---


def test_the_step_size_falls_as_published():
    steps = [PUBLISHED.step_at(i / 50) for i in (0, 10, 20, 24)]
    assert steps == pytest.approx([20.0, 18.97, 17.89, 17.44], abs=0.01)
    assert BoxConstraint(step_end=1.0).step_at(0.7) == 20.0
    assert BoxConstraint(step_end=0.0).step_at(1.0) == 0.0


def test_the_published_settings():
    assert (PUBLISHED.top_fraction, PUBLISHED.corner_width) == (0.2, 1)
    assert (PUBLISHED.iterations, PUBLISHED.max_change) == (1, 0)
    assert (PUBLISHED.window.start, PUBLISHED.window.end, PUBLISHED.refine) == (0.0, 0.5, True)
    (guide,) = PUBLISHED.guides(layout())
    assert guide.targets == ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8)) and guide.refine_iterations == 20
    (fast,) = replace(PUBLISHED, mode="fast").guides(layout())
    assert fast.moves == "prediction" and fast.refine_iterations == 0 and fast.refine_loss is None


def test_presets_grow_stricter():
    gentle, standard, strict = (PRESETS[name] for name in ("gentle", "standard", "strict"))
    assert gentle.step_size * gentle.iterations < standard.step_size * standard.iterations
    assert standard.iterations < strict.iterations


@pytest.mark.parametrize(
    "name, value",
    [("step_size", -1.0), ("top_fraction", 0.0), ("iterations", 0), ("corner_width", -1), ("step_end", float("nan"))],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(BoxwrightError, match=name):
        BoxConstraint(**{name: value})
