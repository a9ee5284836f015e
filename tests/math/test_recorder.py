"""The recorder's sums and means against direct ones, its budget, Otsu's threshold against every threshold."""

from dataclasses import replace

import pytest
import torch
from oracles import encoded, layout, site
from pack.attention_patches.core.masks import mask_of, otsu_threshold, resized, stretched
from pack.attention_patches.core.types import BoxwrightError, PhraseNotFoundError, StepWindow, TokenMap, View
from pack.attention_patches.methods.recorder import MAX_RUNS, GraphPlace, Recording, Records

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
FINE, COARSE = (4, 6), (2, 3)
SCHEDULE = (0.0, 0.25, 0.5, 0.75)


@pytest.fixture
def two():
    return layout([], [], WORDS)


def recording_of(two, rows=2, schedule=SCHEDULE, **settings):
    records = Records(two.prompt.tokens, Recording(resolutions="all", **settings))
    return records.begin(schedule, rows, (FINE, COARSE))


def probabilities(grid, seed, rows=2, heads=3):
    shape = rows, heads, grid[0] * grid[1], 16
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def show(record, two, probs, grid, progress=0.0, pieces=1, view=View()):
    count = grid[0] * grid[1]
    step = count // pieces
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        where = replace(site(two, grid, view, queries=part, level=grid == COARSE, levels=2), progress=progress)
        record.read(probs[:, :, part], where)


def over(record):
    """The record when its run is over."""
    record.close()
    return record


def test_a_phrase_is_the_sum_of_its_tokens_the_mean_of_heads_layers_and_steps(two):
    record = recording_of(two)
    seen = [probabilities(FINE, seed) for seed in range(4)]
    for number, probs in enumerate(seen):  # two layers, two steps
        show(record, two, probs, FINE, progress=SCHEDULE[number // 2])
    expected = torch.stack(seen).mean(dim=(0, 2))[..., [2, 3]].sum(-1).unflatten(-1, FINE)
    torch.testing.assert_close(over(record).map_of("red heart"), expected, rtol=2e-3, atol=1e-5)


def test_words_and_rest_sum_to_one_at_every_cell(two):
    record = recording_of(two, moments=2)
    for number in range(6):
        show(record, two, probabilities(FINE, number), FINE, SCHEDULE[number % 4])
        show(record, two, probabilities(COARSE, 10 + number), COARSE, SCHEDULE[number % 4])
    for moment, grid in [(None, None), (0, None), (1, FINE), (None, COARSE)]:
        total = sum(record.map_of(word, moment, grid) for word in set(WORDS)) + record.rest(moment, grid)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)


def test_only_the_phrases_asked_for_are_kept_and_the_others_are_in_the_rest(two):
    record = recording_of(two, phrases=("star",))
    probs = probabilities(FINE, 0)
    show(record, two, probs, FINE)
    assert over(record).columns == (7,)
    records = Records(two.prompt.tokens, Recording(("star",)))
    assert records.has("star") and not records.has("red") and not records.has("moon")
    everything = record.map_of("star") + record.rest()
    torch.testing.assert_close(everything, torch.ones_like(everything), rtol=0, atol=2e-3)
    with pytest.raises(PhraseNotFoundError, match='"red" was not recorded'):
        record.map_of("red")
    with pytest.raises(PhraseNotFoundError, match='closest words are "star"'):
        record.map_of("stars")
    with pytest.raises(PhraseNotFoundError, match="moon"):
        recording_of(two, phrases=("moon",))


def test_pieces_of_queries_add_up(two):
    whole, cut = recording_of(two), recording_of(two)
    probs = probabilities(FINE, 0)
    show(whole, two, probs, FINE)
    show(cut, two, probs, FINE, pieces=5)
    torch.testing.assert_close(over(cut).map_of("blue"), over(whole).map_of("blue"))


def test_moments_share_the_steps_out_evenly(two):
    record = recording_of(two, moments=2, schedule=(0.0, 0.1, 0.2, 0.9))
    seen = [probabilities(FINE, seed) for seed in range(4)]
    for probs, progress in zip(seen, (0.0, 0.1, 0.2, 0.9), strict=True):
        show(record, two, probs, FINE, progress)
    assert over(record).moments == (0, 1)
    for moment, steps in ((0, seen[:2]), (1, seen[2:])):
        expected = torch.stack(steps).mean(dim=(0, 2))[..., 6].unflatten(-1, FINE)
        torch.testing.assert_close(record.map_of("blue", moment), expected, rtol=2e-3, atol=1e-5)


def test_samplers_that_go_back_in_time_add_to_the_moment_they_come_back_to(two):
    record = recording_of(two, moments=4)
    seen = [probabilities(FINE, seed) for seed in range(3)]
    for probs, progress in zip(seen, (0.0, 0.3, 0.05), strict=True):  # 0.05 lies in the first step
        show(record, two, probs, FINE, progress)
    expected = ((seen[0] + seen[2]) / 2).mean(1)[..., 6].unflatten(-1, FINE)
    torch.testing.assert_close(over(record).map_of("blue", 0), expected, rtol=2e-3, atol=1e-5)


def test_more_moments_than_steps_are_one_for_each_step(two):
    record = recording_of(two, moments=64)
    for progress in SCHEDULE:
        show(record, two, probabilities(FINE, 0), FINE, progress)
    assert over(record).moments == (0, 1, 2, 3)


def test_grids_are_averaged_at_the_finest(two):
    record = recording_of(two)
    fine, coarse = probabilities(FINE, 0), probabilities(COARSE, 1)
    show(record, two, coarse, COARSE)
    show(record, two, fine, FINE)
    assert over(record).grids == (FINE, COARSE)
    expected = (record.map_of("blue", grid=FINE) + resized(record.map_of("blue", grid=COARSE), FINE)) / 2
    torch.testing.assert_close(record.map_of("blue"), expected)
    assert record.map_of("blue").shape == (2, *FINE)


def test_every_run_has_a_record_of_its_own_which_no_later_run_changes(two):
    records = Records(two.prompt.tokens, Recording(resolutions="all"))
    with pytest.raises(BoxwrightError, match="record is empty: no picture"):
        records.latest  # noqa: B018
    first = records.begin(SCHEDULE, 2, (FINE, COARSE))
    show(first, two, probabilities(FINE, 0), FINE)
    records.keep(first, None)
    before = first.map_of("blue")
    second = records.begin(SCHEDULE, 1, (FINE, COARSE))
    again = probabilities(FINE, 1, rows=1)
    show(second, two, again, FINE)
    records.keep(second, None)
    expected = again.mean(1)[..., 6].unflatten(-1, FINE)
    torch.testing.assert_close(records.latest.map_of("blue"), expected, rtol=2e-3, atol=1e-5)
    assert torch.equal(first.map_of("blue"), before)


def test_what_was_made_in_inference_mode_may_be_added_to_outside_it(two):
    """Box Constraint's fast preset runs some steps with gradients and the others without."""
    record, whole = recording_of(two), recording_of(two)
    with torch.inference_mode():
        show(record, two, probabilities(FINE, 0), FINE)
    show(record, two, probabilities(FINE, 1).requires_grad_(True).detach(), FINE)
    with torch.inference_mode():
        show(record, two, probabilities(FINE, 2), FINE)
    for seed in range(3):
        show(whole, two, probabilities(FINE, seed), FINE)
    assert torch.equal(over(record).map_of("blue"), over(whole).map_of("blue"))


# --- which record ---


def at(node, before=(), around=(), index=0, execution=None):
    return GraphPlace(node, frozenset(around), frozenset(before), index, execution or node)


def runs_of(two, *places, **settings):
    """Records with a run at each place."""
    records, made = Records(two.prompt.tokens, Recording(resolutions="all", **settings)), []
    for place in places:
        made.append(records.begin(SCHEDULE, 2, (FINE, COARSE)))
        show(made[-1], two, probabilities(FINE, len(made)), FINE)
        records.keep(made[-1], place)
    return records, made


def test_pictures_get_the_record_of_the_node_that_drew_them(two):
    records, (a, b) = runs_of(two, at("a"), at("b"))
    assert records.of({"decode", "a"}) is a and records.of({"decode", "b"}) is b
    with pytest.raises(BoxwrightError, match="None of this recorder's runs drew these pictures"):
        records.of({"decode", "c"})
    with pytest.raises(BoxwrightError, match="come from 2 runs"):
        records.of({"batch", "a", "b"})


def test_a_second_pass_over_a_picture_is_what_drew_it(two):
    records, (first, second) = runs_of(two, at("a"), at("b", before={"a", "upscale"}))
    assert records.of({"decode", "b", "upscale", "a"}) is second
    assert records.of({"decode", "a"}) is first


def test_a_node_that_runs_again_replaces_what_it_made(two):
    records, (_, other, again) = runs_of(two, at("a", execution=1), at("b"), at("a", execution=2))
    assert records.of({"a"}) is again and records.of({"b"}) is other


def test_a_node_that_runs_a_sampler_twice_is_refused(two):
    records, _ = runs_of(two, at("a", execution=1), at("a", execution=1))
    with pytest.raises(BoxwrightError, match="come from 2 runs.*A node that runs a sampler several times"):
        records.of({"a"})


def test_lists_go_side_by_side_and_the_last_is_repeated(two):
    """As the host hands lists of unequal lengths to a node."""
    records, made = runs_of(two, *(at("a", index=index, execution=1) for index in range(3)))
    assert [records.of({"a"}, index) for index in range(5)] == [*made, made[2], made[2]]


def test_samplers_in_nodes_that_were_expanded_are_found_by_those(two):
    records, (a, b) = runs_of(two, at("a", around={"outer"}), at("b", before={"a"}, around={"outer"}))
    assert records.of({"outer"}) is b and records.of({"a"}) is a


def test_without_a_graph_only_a_single_run_is_certain(two):
    records, made = runs_of(two, None)
    assert records.of(None) is made[0]
    records, _ = runs_of(two, None, None)
    with pytest.raises(BoxwrightError, match="has drawn 2 times"):
        records.of(None)


def test_all_runs_together_keep_to_the_budget(two):
    """Every run needs room for its float32 sums beside the float16 means of those before: here for two of them."""
    values = 2 * 8 * (4 * 6 + 2 * 3)
    fine_alone = 2 * 2 * 8 * 4 * 6  # what a run of this test has in the end
    records, made = runs_of(two, *map(at, "abcd"), budget=6 * values + 2 * fine_alone)
    assert [record for _, record in records._kept] == made[1:]
    assert records.of({"d"}) is made[3]
    with pytest.raises(BoxwrightError, match=r"None of this recorder's runs .*3 are kept of 4: at most 256"):
        records.of({"a"})


def test_there_are_at_most_so_many(two):
    records = Records(two.prompt.tokens, Recording())
    for number in range(MAX_RUNS + 3):
        records.keep(records.begin((), 1, (COARSE,)), at(str(number)))
    assert len(records._kept) == MAX_RUNS and records.made == MAX_RUNS + 3
    with pytest.raises(BoxwrightError, match="256 are kept of 259"):
        records.of({"0"})


def test_memory_stays_within_what_is_announced(two):
    record = recording_of(two, moments=4)
    for progress in SCHEDULE:
        for grid in (FINE, COARSE):
            show(record, two, probabilities(grid, 0), grid, progress)
            held = sum(t.numel() * t.element_size() for t, _ in (*record._means.values(), *record._sums.values()))
            assert held <= Records(two.prompt.tokens, Recording()).bytes_for(2, (FINE, COARSE), 4)
    assert all(mean.dtype == torch.float16 for mean, _ in record._means.values())


def test_too_much_is_refused_before_it_is_taken(two):
    records = Records(two.prompt.tokens, Recording(resolutions="all", moments=4, budget=2000))
    with pytest.raises(BoxwrightError, match=r"budget is .* 2 pictures, 7 tokens, grids 6x4, 3x2, 4 moments"):
        records.begin(SCHEDULE, 2, (FINE, COARSE))
    for number in (0, 65):
        with pytest.raises(BoxwrightError, match="moments"):
            Records(two.prompt.tokens, Recording(moments=number))


def test_the_default_budget_holds_four_pictures_of_sdxl_but_not_sixteen():
    """1024 x 1024 pixels: grids of 64 x 64 and 32 x 32; 75 words, a map for each of 20 steps."""
    spans = (None, *((2 * i, 2 * i + 1) for i in range(75)), None)
    tokens = TokenMap(" ".join("abcde" * 15), spans, ("start", *["word"] * 75, "end"))
    records = Records(tokens, Recording(resolutions="all", moments=20))
    records.begin([step / 20 for step in range(20)], 4, ((64, 64), (32, 32)))
    assert records.bytes_for(4, ((64, 64), (32, 32)), 20) == 4 * 76 * 5120 * 44
    with pytest.raises(BoxwrightError, match=r"needs 261\.2 MB and its budget is 256 MB: 16 pictures, 75 tokens"):
        records.begin([step / 20 for step in range(20)], 16, ((64, 64), (32, 32)))


def test_parts_of_the_batch_or_of_the_image_are_refused(two):
    record = recording_of(two)
    with pytest.raises(BoxwrightError, match="2 pictures and the model is run on 3"):
        show(record, two, probabilities(FINE, 0, rows=3), FINE)
    with pytest.raises(BoxwrightError, match="area"):
        show(record, two, probabilities(FINE, 0), FINE, view=View(0.5, 0.0, 0.5, 1.0))
    show(record, two, probabilities(FINE, 0), FINE, view=View(0.0, 0.0, 1.05, 1.1))  # the model pads


@pytest.mark.parametrize(
    "resolutions, levels, expected",
    [
        ("all", 4, [0, 1, 2, 3]), ("all but finest", 4, [1, 2, 3]), ("middle", 4, [1, 2]), ("middle", 3, [1]),
        ("middle", 2, [1]), ("all but finest", 2, [1]), ("middle", 1, [0]), ("all but finest", 1, [0]),
    ],
)  # fmt: skip
def test_resolutions(two, resolutions, levels, expected):
    edit = Records(two.prompt.tokens, Recording(resolutions=resolutions)).edit()
    assert [level for level in range(levels) if edit.where(site(two, level=level, levels=levels))] == expected


def test_the_window_is_the_edits(two):
    window = StepWindow(0.2, 0.6)
    assert Records(two.prompt.tokens, Recording(window=window)).edit().window == window


def test_a_prompt_without_words_is_refused():
    with pytest.raises(BoxwrightError, match="prompt to record is empty"):
        Records(encoded([]).tokens, Recording())


def test_what_is_no_number_is_refused(two):
    record = recording_of(two)
    show(record, two, probabilities(FINE, 1).index_fill(-1, torch.tensor([3]), torch.nan), FINE)
    assert bool(over(record).map_of("blue star").isfinite().all())
    with pytest.raises(BoxwrightError, match="holds NaN"):
        record.map_of("red heart")


@pytest.mark.parametrize("seed", range(5))
def test_otsu_against_every_threshold(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.randn(40, generator=generator), 3 + torch.randn(25, generator=generator)])
    best, most = None, -1.0
    for border in values.tolist():
        low, high = values[values <= border].double(), values[values > border].double()
        if len(high):
            between = len(low) * len(high) * float(low.mean() - high.mean()) ** 2
            if between > most:
                best, most = border, between
    found = otsu_threshold(values)
    assert bool((values <= found).eq(values <= best).all())


def test_otsu_of_equal_values_is_that_value():
    assert otsu_threshold(torch.full((3, 4), 0.5)) == 0.5
    assert otsu_threshold(torch.tensor([0.25])) == 0.25


def test_masks():
    image = torch.zeros(2, 4, 4)
    image[0, :2], image[1, 3, 3] = 5.0, 0.1
    same = (4, 4)
    assert torch.equal(mask_of(image, 0.0, same), (image > 0).float())
    assert torch.equal(mask_of(image, 0.5, same), (image > 0).float())
    assert mask_of(image, 1.0, same).sum() == 0
    assert mask_of(torch.ones(1, 4, 4), 0.0, same).sum() == 0
    assert mask_of(image, 0.0, (8, 12)).shape == (2, 8, 12)
    assert stretched(image)[0].max() == 1 and stretched(image)[1].max() == 1
