"""The recorder's sums and means against direct ones, its budget, Otsu's threshold against every threshold."""

from dataclasses import replace

import pytest
import torch
from oracles import encoded, layout, site
from pack.attention_patches.recorder import (
    AttentionRecord,
    Recording,
    mask_of,
    otsu_threshold,
    resized,
    stretched,
)
from pack.attention_patches.types import BoxwrightError, PhraseNotFoundError, StepWindow, TokenMap, View

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
FINE, COARSE = (4, 6), (2, 3)
SCHEDULE = (0.0, 0.25, 0.5, 0.75)


@pytest.fixture
def two():
    return layout([], [], WORDS)


def recording_of(two, rows=2, schedule=SCHEDULE, **settings):
    record = AttentionRecord(two.prompt.tokens, Recording(resolutions="all", **settings))
    record.begin(schedule, rows, (FINE, COARSE))
    return record


def probabilities(grid, seed, rows=2, heads=3):
    shape = rows, heads, grid[0] * grid[1], 16
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def show(record, two, probs, grid, progress=0.0, pieces=1, view=View()):
    edit = record.edit()
    count = grid[0] * grid[1]
    step = count // pieces
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        where = replace(site(two, grid, view, queries=part, level=grid == COARSE, levels=2), progress=progress)
        edit.fn(probs[:, :, part], where)


def test_a_phrase_is_the_sum_of_its_tokens_the_mean_of_heads_layers_and_steps(two):
    record = recording_of(two)
    seen = [probabilities(FINE, seed) for seed in range(4)]
    for number, probs in enumerate(seen):  # two layers, two steps
        show(record, two, probs, FINE, progress=SCHEDULE[number // 2])
    expected = torch.stack(seen).mean(dim=(0, 2))[..., [2, 3]].sum(-1).unflatten(-1, FINE)
    torch.testing.assert_close(record.map_of("red heart"), expected, rtol=2e-3, atol=1e-5)


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
    assert record.columns == (7,)
    assert record.has("star") and not record.has("red") and not record.has("moon")
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
    torch.testing.assert_close(cut.map_of("blue"), whole.map_of("blue"))


def test_moments_share_the_steps_out_evenly(two):
    record = recording_of(two, moments=2, schedule=(0.0, 0.1, 0.2, 0.9))
    seen = [probabilities(FINE, seed) for seed in range(4)]
    for probs, progress in zip(seen, (0.0, 0.1, 0.2, 0.9), strict=True):
        show(record, two, probs, FINE, progress)
    assert record.moments == (0, 1)
    for moment, steps in ((0, seen[:2]), (1, seen[2:])):
        expected = torch.stack(steps).mean(dim=(0, 2))[..., 6].unflatten(-1, FINE)
        torch.testing.assert_close(record.map_of("blue", moment), expected, rtol=2e-3, atol=1e-5)


def test_samplers_that_go_back_in_time_add_to_the_moment_they_come_back_to(two):
    record = recording_of(two, moments=4)
    seen = [probabilities(FINE, seed) for seed in range(3)]
    for probs, progress in zip(seen, (0.0, 0.3, 0.05), strict=True):  # 0.05 lies in the first step
        show(record, two, probs, FINE, progress)
    expected = ((seen[0] + seen[2]) / 2).mean(1)[..., 6].unflatten(-1, FINE)
    torch.testing.assert_close(record.map_of("blue", 0), expected, rtol=2e-3, atol=1e-5)


def test_more_moments_than_steps_are_one_for_each_step(two):
    record = recording_of(two, moments=64)
    for progress in SCHEDULE:
        show(record, two, probabilities(FINE, 0), FINE, progress)
    assert record.moments == (0, 1, 2, 3)


def test_grids_are_averaged_at_the_finest(two):
    record = recording_of(two)
    fine, coarse = probabilities(FINE, 0), probabilities(COARSE, 1)
    show(record, two, coarse, COARSE)
    show(record, two, fine, FINE)
    assert record.grids == (FINE, COARSE)
    expected = (record.map_of("blue", grid=FINE) + resized(record.map_of("blue", grid=COARSE), FINE)) / 2
    torch.testing.assert_close(record.map_of("blue"), expected)
    assert record.map_of("blue").shape == (2, *FINE)


def test_a_run_starts_from_nothing(two):
    record = recording_of(two)
    show(record, two, probabilities(FINE, 0), FINE)
    record.begin(SCHEDULE, 1, (FINE, COARSE))
    with pytest.raises(BoxwrightError, match="record is empty"):
        record.map_of("blue")
    again = probabilities(FINE, 1, rows=1)
    show(record, two, again, FINE)
    expected = again.mean(1)[..., 6].unflatten(-1, FINE)
    torch.testing.assert_close(record.map_of("blue"), expected, rtol=2e-3, atol=1e-5)


def test_memory_stays_within_what_is_announced(two):
    record = recording_of(two, moments=4)
    for progress in SCHEDULE:
        for grid in (FINE, COARSE):
            show(record, two, probabilities(grid, 0), grid, progress)
            held = sum(t.numel() * t.element_size() for t, _ in (*record._means.values(), *record._sums.values()))
            assert held <= record.bytes_for(2, (FINE, COARSE), 4)
    assert all(mean.dtype == torch.float16 for mean, _ in record._means.values())


def test_too_much_is_refused_before_it_is_taken(two):
    record = AttentionRecord(two.prompt.tokens, Recording(resolutions="all", moments=4, budget=2000))
    with pytest.raises(BoxwrightError, match=r"budget is .* 2 pictures, 7 tokens, grids 6x4, 3x2, 4 moments"):
        record.begin(SCHEDULE, 2, (FINE, COARSE))
    for number in (0, 65):
        with pytest.raises(BoxwrightError, match="moments"):
            AttentionRecord(two.prompt.tokens, Recording(moments=number))


def test_the_default_budget_holds_four_pictures_of_sdxl_but_not_sixteen():
    """1024 x 1024 pixels: grids of 64 x 64 and 32 x 32; 75 words, a map for each of 20 steps."""
    spans = (None, *((2 * i, 2 * i + 1) for i in range(75)), None)
    tokens = TokenMap(" ".join("abcde" * 15), spans, ("start", *["word"] * 75, "end"))
    record = AttentionRecord(tokens, Recording(resolutions="all", moments=20))
    record.begin([step / 20 for step in range(20)], 4, ((64, 64), (32, 32)))
    assert record.bytes_for(4, ((64, 64), (32, 32)), 20) == 4 * 76 * 5120 * 44
    with pytest.raises(BoxwrightError, match=r"needs 261\.2 MB and its budget is 256 MB: 16 pictures, 75 tokens"):
        record.begin([step / 20 for step in range(20)], 16, ((64, 64), (32, 32)))


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
    edit = AttentionRecord(two.prompt.tokens, Recording(resolutions=resolutions)).edit()
    assert [level for level in range(levels) if edit.where(site(two, level=level, levels=levels))] == expected


def test_the_window_is_the_edits(two):
    window = StepWindow(0.2, 0.6)
    assert AttentionRecord(two.prompt.tokens, Recording(window=window)).edit().window == window


def test_unusual_prompts():
    record = AttentionRecord(encoded([]).tokens, Recording())
    assert record.columns == ()


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
