"""BoxDiff's losses against numbers worked out by hand, and what following each of them does to a blob."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, View
from pack.attention_patches.methods.box_constraint import (
    PRESETS,
    PUBLISHED,
    BoxConstraint,
    by_hand,
    constrained_phrases,
    preset,
    rivals,
    small_boxes,
)
from pack.attention_patches.methods.box_losses import (
    Sight,
    best_mean,
    corner_loss,
    distance,
    edge_cells,
    inner_loss,
    outer_loss,
    phrase_cells,
    sight,
    slope,
    smoothed,
)

T = 16
ROLES = ("start", "word", "word", "end", "padding")


def cells(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in row] for row in rows])


BOX = cells("....", ".##.", ".##.", "....")


def layout(areas=(oracles.LEFT, oracles.RIGHT), owned=((2,), (4,)), strengths=None):
    return oracles.layout(list(areas), [list(columns) for columns in owned], list("abcde"), T, strengths)


ONLY = {"inner": 0.0, "outer": 0.0, "corner": 0.0}
SHARE = BoxConstraint(smoothing=0.0, leak=0.0)  # distances as published


def shares(maps, own, competition="all", deviation=0.0, leak=0.0, roles=ROLES) -> Sight:
    tokens = replace(layout().prompt.tokens, roles=roles)
    return sight(maps, torch.tensor(own), torch.tensor(rivals(tokens, own, competition)), deviation, leak)


def published(values) -> Sight:
    return Sight(values, 1.0 - values, values, values * (1.0 - values))


def numbers(box) -> torch.Tensor:
    return box.flatten().nonzero()[:, 0]


def edges_of(box, width):
    return phrase_cells([(box, 1.0)], tuple(box.shape), width, "cpu").edges


# --- the parts ---


def test_the_share_is_a_softmax_of_100_times_the_map_without_the_start_token():
    maps = torch.tensor([0.5, 0.02, 0.01, 0.0, 0.03]).view(1, 5, 1, 1)
    e = [math.exp(100 * v) for v in (0.02, 0.01, 0.0, 0.03)]
    for own, expected in (([1], e[0]), ([2], e[1]), ([1, 2], e[0] + e[1])):
        assert shares(maps, own).share.item() == pytest.approx(expected / sum(e), rel=1e-5)
    assert shares(maps, [1], "words").share.item() == pytest.approx(e[0] / (e[0] + e[1]), rel=1e-5)
    assert shares(maps, [1, 2], "words").share.item() == pytest.approx((e[0] + e[1]) / sum(e), rel=1e-5), "no rival"


def test_words_alone_compete_where_the_encoder_fills_up_with_another_token():
    """SD 2.x; SD 1.x fills up with the end token. What competes is what the layout says of its encoder."""
    tokens = layout().prompt.tokens
    everything = [i for i, role in enumerate(tokens.roles) if role != "start" and i != 2]
    words = [i for i, role in enumerate(tokens.roles) if role == "word" and i != 2]
    assert rivals(tokens, [2], "auto") == everything == rivals(tokens, [2], "all")
    assert rivals(replace(tokens, filled_with_end=False), [2], "auto") == words == rivals(tokens, [2], "words")
    assert rivals(replace(tokens, filled_with_end=False), [2], "all") == everything
    assert BoxConstraint().competition == PUBLISHED.competition == "auto"


def test_distances_are_the_published_ones_and_a_pull_that_is_left_where_those_level_off():
    lead = torch.linspace(-90, 90, 181, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(distance(lead, 0.0), 1 - lead.sigmoid())
    torch.testing.assert_close(distance(lead, 0.1), 1 - lead.sigmoid() - 0.1 * lead.sigmoid().log())
    (slopes,) = torch.autograd.grad(distance(lead, 0.1).sum(), lead)
    assert slopes[0].item() == pytest.approx(-0.1) and slopes[90].item() == pytest.approx(-0.25 - 0.05)
    assert slopes[-1].item() == pytest.approx(0.0)
    torch.testing.assert_close(slope(lead.detach(), 0.1), -slopes)
    seen = shares(torch.rand(2, 5, 4, 4) * 0.03, [1, 2], deviation=0.7)
    torch.testing.assert_close(seen.absent, 1 - seen.share)
    torch.testing.assert_close(seen.present, seen.share)


@pytest.mark.parametrize("mode", ["boxdiff", "attend_excite"])
@pytest.mark.parametrize("leak, expected", [(0.0, [True, False]), (0.02, [False, False])])
def test_a_phrase_that_nothing_leads_to_its_place_is_named(mode, leak, expected):
    """A rival far ahead everywhere: the other phrase still has somewhere to go."""
    maps = torch.zeros(1, T, 16, 16)
    maps[:, 4], maps[:, 5] = 0.2, 0.2
    settings = BoxConstraint(mode=mode, leak=leak)
    found = of_boxes(maps.clone(), (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), settings)
    assert found.blind.tolist() == [expected] and float(found.per_phrase[0, 0]) > 0.99
    reached = maps.clone()
    reached[:, 2] = 0.6
    assert not bool(of_boxes(reached, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), settings).blind[0, 0])


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


@pytest.mark.parametrize("part, side", [("inner", slice(0, 4)), ("outer", slice(4, 8)), ("corner", slice(0, 8))])
def test_a_phrase_that_is_far_from_its_box_is_still_pulled(part, side):
    """Where one token leads by a fifth of the attention or more, the published loss has no gradient to speak of."""
    maps = torch.full((1, T, 8, 8), 0.01)
    maps[:, 3, :, :4] = maps[:, 2, :, 4:] = 0.95  # a rival owns the box, and the phrase what lies outside

    def gradient(leak):
        leaf = maps.clone().requires_grad_()
        total = of_boxes(leaf, (oracles.LEFT,), ((2,),), BoxConstraint(leak=leak, **{**ONLY, part: 1.0})).total
        return torch.autograd.grad(total.sum(), leaf)[0]

    assert gradient(0.0).abs().max() < 1e-20, "the fault itself: else this test proves nothing"
    pulled = gradient(BoxConstraint().leak)[0, 2, :, side]
    assert pulled.abs().max() > 0.01
    if part != "corner":
        assert bool((pulled <= 0).all() if part == "inner" else (pulled >= 0).all())


def test_every_phrase_is_pulled_when_one_of_them_is_at_its_place():
    maps = torch.full((1, T, 8, 8), 0.01)
    maps[:, 4] = 0.9
    leaf = maps.requires_grad_()
    total = of_boxes(leaf, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), BoxConstraint()).total
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    assert gradient[0, 2, :, :4].min() < -0.01


def test_best_mean_takes_a_fraction_of_the_cells_and_at_least_one():
    values = torch.arange(16.0).view(1, 4, 4)
    box = numbers(BOX)
    assert best_mean(values, box, 0.5).tolist() == [(10 + 9) / 2]
    assert best_mean(values, box, 0.5, largest=False).tolist() == [(5 + 6) / 2]
    assert best_mean(values, box, 0.2).tolist() == [10.0]  # 0.8 of a cell: the published code divides by zero
    assert best_mean(values, box[:0], 0.5).tolist() == [0.0]
    two = torch.stack([values[0], -values[0]])
    assert best_mean(two, box, 1.0).tolist() == [7.5, -7.5]


def test_inner_and_outer_losses_by_hand():
    values = torch.zeros(1, 4, 4)
    values[0, 1, 1], values[0, 2, 2], values[0, 0, 3], values[0, 3, 0] = 0.8, 0.4, 0.6, 0.3
    assert inner_loss(published(values), numbers(BOX), 0.5).item() == pytest.approx(1 - 0.6)
    assert outer_loss(published(values), numbers(~BOX), 2 / 12).item() == pytest.approx((0.6 + 0.3) / 2)


def test_corner_loss_by_hand():
    """Columns 1 and 2 of 6 are in the box; its right edge is column 3, where the projection should be 0."""
    box = torch.zeros(6, 6, dtype=torch.bool)
    box[1:3, 1:3] = True
    values = torch.zeros(1, 6, 6)
    values[0, 1, 1], values[0, 5, 4] = 0.7, 0.9
    # Edges 1 and 3 with one cell on either side: cells 0..4 along x and y; projections .7 at 1 and .9 at (4 | 5).
    across = (abs(0.0) + abs(0.7 - 1) + abs(0.0 - 1) + 0.0 + 0.9) / 6
    down = (0.0 + abs(0.7 - 1) + 1.0 + 0.0 + 0.0) / 6  # row 5 is not looked at
    assert corner_loss(published(values), edges_of(box, 1)).item() == pytest.approx(across + down)


def test_edge_cells_of_runs():
    wanted = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0, 1]).bool()
    assert edge_cells(wanted, 0).nonzero().flatten().tolist() == [2, 5, 9]
    assert edge_cells(wanted, 1).nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert edge_cells(torch.ones(4).bool(), 1).nonzero().flatten().tolist() == [0, 1, 3]


# --- the whole loss ---


def of_boxes(maps, areas, owned, settings=None, strengths=None):
    made = layout(areas, owned, strengths)
    settings = settings or SHARE
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
    settings = replace(SHARE, inner=2.0, outer=3.0, corner=5.0)
    maps = torch.rand(2, T, 4, 4) * 0.05
    made = layout((Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5)))
    roles = made.prompt.tokens.roles
    expected = 0
    for column, box in ((2, cells("##..", "##..", "....", "....")), (4, cells("....", "....", "..##", "..##"))):
        s = shares(maps, [column], roles=roles)
        inner, outer = inner_loss(s, numbers(box), 0.2), outer_loss(s, numbers(~box), 0.2)
        expected += 2 * inner + 3 * outer + 5 * corner_loss(s, edges_of(box, 1))
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


def test_a_box_is_small_by_the_cells_of_the_crop_it_is_in():
    tiny = Box(0.51, 0.51, 0.06, 0.06)
    lay, phrase = layout((tiny, oracles.RIGHT)), layout().regions[0].phrase
    assert small_boxes(lay, (8, 8)) == small_boxes(lay, (8, 8), View(0.4, 0.4, 0.6, 0.6)) == [phrase]
    assert small_boxes(lay, (8, 8), View(0.5, 0.5, 0.25, 0.25)) == []  # it fills a cell there
    assert small_boxes(lay, (8, 8), View(0.0, 0.0, 0.25, 0.25)) == []  # none of it is there, nothing grew

    (guide,) = BoxConstraint().guides(lay)
    maps = blob_maps(4.5, 4.5, 2, size=0.5)
    notes = [guide.loss(maps, oracles.site(lay, (8, 8), view)).notes for view in (View(), View(0.5, 0.5, 0.25, 0.25))]
    assert [len(each) for each in notes] == [1, 0]


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
    late = replace(made, regions=(replace(made.regions[0], start=0.3, end=0.7), made.regions[1]))
    settings = SHARE
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
        settings.guides(replace(made, regions=(replace(made.regions[0], start=0.6), made.regions[1])))


def test_end_and_padding_columns_that_a_region_owns_do_not_count():
    made = layout()
    made.columns[0, 6:8] = True
    assert made.prompt.tokens.roles[6:8] == ("end", "padding")
    assert [phrase.columns for phrase in constrained_phrases(made)] == [(2,), (4,)]


def test_articles_of_a_phrase_do_not_count_unless_it_is_nothing_else():
    """Where an encoder reads from left to right, an article stands for what is before it."""
    made = oracles.layout([oracles.LEFT, oracles.RIGHT], [[1, 2], [4, 5]], ["a", "b", "c", "The", "e"], T)
    assert [phrase.columns for phrase in constrained_phrases(made)] == [(2,), (5,)]
    alone = oracles.layout([oracles.LEFT, oracles.RIGHT], [[1], [4]], ["a", "b", "c", "The", "e"], T)
    assert [phrase.columns for phrase in constrained_phrases(alone)] == [(1,), (4,)]


@pytest.mark.parametrize(
    "words, spans, kept",
    [
        (["an", "an", "vil"], [(0, 2), (3, 5), (5, 8)], (2, 3)),  # "an anvil", its second word in two pieces
        (["letter", "A"], [(0, 6), (7, 8)], (1, 2)),
        (["a", "the", "sis"], [(0, 1), (2, 5), (5, 8)], (2, 3)),
    ],
)
def test_pieces_of_words_and_names_are_no_articles(words, spans, kept):
    text = "".join(word if i and spans[i][0] == spans[i - 1][1] else f" {word}" for i, word in enumerate(words)).strip()
    made = oracles.layout([oracles.LEFT], [list(range(1, len(words) + 1))], ["w"] * len(words), T)
    others = made.prompt.tokens.spans[len(words) + 1 :]
    tokens = replace(made.prompt.tokens, text=text, spans=(None, *spans, *others))
    made = replace(made, prompt=replace(made.prompt, tokens=tokens))
    assert [phrase.columns for phrase in constrained_phrases(made)] == [kept]


def test_attend_excite_asks_for_the_worst_phrase_anywhere():
    maps = torch.zeros(1, T, 4, 4)
    maps[0, 2, 3, 3] = 10.0
    settings = replace(SHARE, mode="attend_excite")
    found = of_boxes(maps, (oracles.LEFT, oracles.RIGHT), ((2,), (4,)), settings)
    assert found.per_phrase[0, 0].item() == pytest.approx(0.0, abs=1e-5)  # outside its box, and that is fine
    assert found.total.item() == pytest.approx(found.per_phrase[0, 1].item()) and found.total.item() > 0.9


# --- what each loss does on its own ---


@pytest.fixture(params=[0.0, BoxConstraint().leak], ids=["published", "ours"])
def only(request):
    """No loss at all."""
    return {**ONLY, "leak": request.param}


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


def test_the_inner_loss_alone_moves_a_blob_into_the_box(only):
    x, y, _ = follow(BoxConstraint(**{**only, "inner": 1.0}), [5.0, 5.0, 3.0], Box(0.5, 0.5, 0.4, 0.4))
    assert 8 < x < 14.4 and 8 < y < 14.4


def test_the_outer_loss_alone_moves_a_blob_out_of_the_rest(only):
    x, _, _ = follow(BoxConstraint(**{**only, "outer": 1.0}), [6.5, 8.0, 2.0], Box(0.5, 0.0, 0.5, 1.0), (1.0, 1.0, 0.0))
    assert x > 9


def test_the_corner_loss_alone_brings_a_blob_to_the_size_of_the_box(only):
    box = Box(0.25, 0.25, 0.5, 0.5)
    wide, narrow = (follow(BoxConstraint(**{**only, "corner": 1.0}), [8.0, 8.0, w], box)[2] for w in (5.0, 0.8))
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
    assert (PUBLISHED.leak, PUBLISHED.two_grid_weight) == (0.0, 100.0)  # the weight: BoxDiff's port to SDXL
    (fast,) = replace(PUBLISHED, mode="fast").guides(layout())
    assert fast.moves == "prediction" and fast.refine_iterations == 0 and fast.refine_loss is None


def test_the_loss_is_weighed_on_models_with_two_grids_of_text_attention():
    maps, made = torch.rand(1, T, 4, 4) * 0.05, layout()
    four, two = (oracles.site(made, levels=levels) for levels in (4, 2))
    for settings, factor in ((PUBLISHED, 100.0), (PRESETS["standard"], 1.0)):
        (guide,) = settings.guides(made)
        torch.testing.assert_close(guide.loss(maps, two).total, factor * guide.loss(maps, four).total)


def test_no_preset_of_the_fast_mode_claims_to_be_published():
    assert preset("published", "boxdiff") == PUBLISHED
    with pytest.raises(BoxwrightError, match='"published".*no paper'):
        preset("published", "fast")
    with pytest.raises(BoxwrightError, match='"fill".*moves of the latent'):
        preset("fill", "fast")
    with pytest.raises(BoxwrightError, match='"fill".*no boxes'):
        preset("fill", "attend_excite")


def test_the_geometry_of_a_grid_is_worked_out_once_for_a_run(monkeypatch):
    """On a GPU every look at a tensor waits for the device."""
    from pack.attention_patches.methods import box_constraint

    made, asked = layout(), []
    (guide,) = BoxConstraint().guides(made)
    original = box_constraint.coverage
    monkeypatch.setattr(box_constraint, "coverage", lambda *a: asked.append(a) or original(*a))
    site, maps = oracles.site(made), torch.rand(1, T, 4, 4)
    first = guide.loss(maps, site)
    count = len(asked)
    assert count > 0 and torch.equal(guide.loss(maps, site).total, first.total) and len(asked) == count
    guide.loss(maps, oracles.site(made))  # another run
    assert len(asked) == 2 * count


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


def test_settings_by_hand_are_those_of_the_preset_with_the_same_numbers():
    assert by_hand(BoxConstraint(step_size=100.0, max_change=1.5), "fast") == preset("standard", "fast")
    assert by_hand(BoxConstraint(max_change=0.12), "boxdiff") == preset("standard", "boxdiff")
    assert preset("published", "attend_excite").two_grid_weight == 1.0  # the weight is BoxDiff's


def test_a_shape_counts_by_its_cells_and_not_by_the_box_around_it():
    """A blob in the corner of the box is at its place there, and not in the ellipse inside the box."""
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64] * 2, indexing="ij")
    ellipse = ((((x - 0.5) / 0.375) ** 2 + ((y - 0.5) / 0.375) ** 2) <= 1.0).float()
    box = Box(0.125, 0.125, 0.75, 0.75)
    corner, middle = blob_maps(1.5, 1.5, 2, size=0.5), blob_maps(3.5, 3.5, 2, size=0.5)
    inner = BoxConstraint(**ONLY | {"inner": 1.0, "top_fraction": 0.01})
    outer = BoxConstraint(**ONLY | {"outer": 1.0, "top_fraction": 0.02})
    for settings in (inner, outer):
        at = {
            (name, kind): float(of_boxes(maps, (area,), ((2,),), settings).total)
            for name, maps in (("corner", corner), ("middle", middle))
            for kind, area in (("ellipse", ellipse), ("box", box))
        }
        assert at["corner", "ellipse"] > 1.3 * at["middle", "ellipse"], at
        assert at["corner", "box"] < 0.9 * at["corner", "ellipse"], at
