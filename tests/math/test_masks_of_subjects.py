"""Where a region's subject is, from attention maps made by hand."""

from dataclasses import replace

import pytest
import torch
from oracles import LEFT, RIGHT, layout, site
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow, View
from pack.attention_patches.methods.region_lora import RegionLora

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
INK, OIL = object(), object()
GRID = (8, 8)
FOLLOWING = RegionLora(masks="subject")
LORAS = {0: (INK, 1.0), 1: (OIL, 0.5)}


def two(areas=(LEFT, RIGHT), owned=OWNED):
    return layout(list(areas), owned, WORDS)


def spot(rows, columns, grid=GRID):
    """A map [h, w]: bright in these cells."""
    found = torch.full(grid, 0.01)
    found[rows, columns] = 0.2
    return found


FIRST, SECOND, FLAT = spot(slice(2, 6), slice(0, 2)), spot(slice(4, 8), slice(5, 7)), torch.full(GRID, 0.01)


class Run:
    """One run: what two regions' words get in each picture, and what the edits make of it."""

    def __init__(self, lay, method=FOLLOWING, loras=LORAS):
        self.lay, self.memo, self.said = lay, {}, []
        self.layers, self.look = method.edits(lay, loras, self.said.append)

    def site(self, progress, grid=GRID, view=View(), **more):
        return replace(site(self.lay, grid, view, **more), progress=progress, memo=self.memo)

    def read(self, progress, *pictures, grid=GRID, view=View()):
        """`pictures`: of each the map of the first region's words, and of the second's; in two pieces."""
        probs = torch.zeros(len(pictures), 2, grid[0] * grid[1], len(self.lay.prompt.tokens))
        for b, maps in enumerate(pictures):
            for columns, one in zip(OWNED, maps):
                probs[b, :, :, columns] = one.flatten()[None, :, None] / 2
        place = self.site(progress, grid, view)
        if self.look.where(place):
            middle = grid[0] * grid[1] // 2
            for part in (slice(0, middle), slice(middle, None)):
                own = range(grid[0] * grid[1])[part]
                self.look.fn(probs[:, :, part], replace(place, queries=slice(own.start, own.stop)))

    def shares(self, progress, grid=GRID, view=View()):
        """[(B,) units, h, w]."""
        return self.layers.shares(self.site(progress, grid, view)).unflatten(-1, grid)


def test_first_the_region_as_drawn_then_its_subject_in_each_picture():
    run = Run(two())
    drawn = RegionLora().edits(two(), LORAS)[0].shares(run.site(0.0)).unflatten(-1, GRID)
    assert torch.equal(run.shares(0.0), drawn)
    run.read(0.0, (FIRST, SECOND), (FIRST.flip(0), FLAT))
    assert torch.equal(run.shares(0.2), drawn)
    found = run.shares(0.25)
    assert found.shape == (2, 2, *GRID)
    assert found[0, 0, 3:5, :2].min() > 0.9 and found[0, 0, :, 3:].max() < 0.01 and found[0, 0, 0].max() < 0.05
    assert found[0, 1, 5:7, 5:7].min() > 0.9 and found[0, 1, :3].max() < 0.05
    assert found[0, 1, :, :4].max() == 0  # never beyond the region
    torch.testing.assert_close(found[1, 0], found[0, 0].flip(0))
    assert torch.equal(found[1, 1], drawn[1])  # nothing was seen: as drawn
    assert len(run.said) == 2 and "reads" in run.said[0]
    assert "region 2:" in run.said[1] and "(as drawn in 1 picture)" in run.said[1]


def test_a_picture_has_the_masks_that_it_has_alone():
    alone, both = Run(two()), Run(two())
    alone.read(0.0, (SECOND, FIRST))
    both.read(0.0, (FIRST, SECOND), (SECOND, FIRST))
    torch.testing.assert_close(both.shares(0.5)[1], alone.shares(0.5)[0])


def test_reading_begins_with_the_run_and_is_done_once():
    """A later start, or a picture that is not drawn from noise; and samplers that go back to earlier noise."""
    run = Run(two())
    run.read(0.4, (FIRST, SECOND))
    assert run.shares(0.6).ndim == 3
    masks = run.shares(0.7)
    run.read(0.1, (SECOND, FIRST))
    assert torch.equal(run.shares(0.1), masks)
    again = Run(two())
    again.read(0.4, (FIRST, SECOND))
    assert torch.equal(again.shares(0.7), masks)


def test_a_phrase_that_is_seen_nowhere_leaves_the_region_as_drawn():
    run = Run(two())
    for nothing in (FLAT, torch.zeros(GRID)):
        run.memo.clear()
        run.read(0.0, (nothing, SECOND))
        assert run.shares(0.5)[0, 0, :, :4].min() == 1.0
    assert "region 1: its phrase is seen nowhere in it, and it holds as drawn" in run.said[-1]


def test_where_regions_overlap_the_one_that_is_seen_more_clearly_stays():
    whole = Box(0.0, 0.0, 1.0, 1.0)
    run = Run(two([whole, whole]), RegionLora("blend", masks="subject"))
    run.read(0.0, (FIRST + 0.7 * SECOND, SECOND + 0.7 * FIRST))
    first, second = run.shares(0.5)[0]
    assert first[3:5, :2].min() > 0.9 and second[3:5, :2].max() < 0.1
    assert second[5:7, 5:7].min() > 0.9 and first[5:7, 5:7].max() < 0.1


def test_a_region_behind_is_seen_beside_the_subject_in_front():
    run = Run(two([LEFT, LEFT]), loras={0: (INK, 1.0)})
    run.read(0.0, (spot(slice(0, 2), slice(0, 4)), spot(slice(6, 8), slice(0, 4))))
    assert run.shares(0.5)[0, 0, 0, :4].min() > 0.9
    assert RegionLora().edits(run.lay, {0: (INK, 1.0)})[0].shares(run.site(0.5)).max() == 0


def test_what_no_prompt_of_the_layout_shows_stays_as_drawn():
    """A conditioning of the lower half alone: its grid covers half of the picture."""
    run = Run(two())
    run.read(0.0, (spot(slice(0, 2), slice(0, 4), (4, 8)), FLAT[:4]), grid=(4, 8), view=View(0, 0.5, 1.0, 0.5))
    found = run.shares(0.5)[0, 0]
    assert found[:4, :4].min() == 1.0 and found[4, :4].min() > 0.9 and found[7, :4].max() < 0.1
    part = run.shares(0.5, (4, 8), View(0, 0.5, 1.0, 0.5))[0, 0]
    torch.testing.assert_close(part, found[4:])


def test_two_nodes_of_one_run_read_apart():
    first, second = Run(two()), Run(two(), loras={0: (OIL, 1.0)})
    second.memo = first.memo
    first.read(0.0, (FIRST, SECOND))
    second.read(0.4, (FIRST.flip(0), SECOND))
    assert second.shares(0.5).ndim == 3
    torch.testing.assert_close(second.shares(0.9)[0, 0], first.shares(0.9)[0, 0].flip(0))


def test_words_of_the_prompt_keep_their_lora():
    run = Run(two())
    run.read(0.0, (FIRST, FLAT))
    assert torch.equal(run.layers.words(run.site(0.5)), RegionLora().edits(two(), LORAS)[0].words(run.site(0.5)))


def test_boxes_read_nothing():
    assert len(RegionLora().edits(two(), LORAS)) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"subject_after": 0.0}, "subject_after 0 is outside 0 to 1"),
        ({"window": StepWindow(0.5, 0.7)}, "subject_after 0.25 leaves nothing of the time from start 0.5 to end 0.7"),
    ],
)
def test_a_time_that_leaves_nothing_is_refused(options, words):
    with pytest.raises(BoxwrightError, match=words):
        RegionLora(**{"masks": "subject"} | options)


def test_a_region_without_words_in_the_prompt_is_refused_by_name():
    lay = two(owned=[[2, 3], []])
    with pytest.raises(BoxwrightError, match=r'Region 2 \(""\) has no words in the prompt.*append_missing'):
        FOLLOWING.edits(lay, LORAS)
    assert FOLLOWING.edits(lay, {0: (INK, 1.0)})  # it covers what is behind it, as drawn


def test_another_batch_in_the_middle_of_reading_is_refused():
    run = Run(two())
    run.read(0.0, (FIRST, SECOND), (FIRST, SECOND))
    with pytest.raises(BoxwrightError, match="has read 2 pictures, and now the model is run on 1"):
        run.read(0.1, (FIRST, SECOND))
