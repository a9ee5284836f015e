"""Whether an edit drew something: discs on plain and busy grounds."""

import pytest
import torch
from pack.attention_patches.samplers.drawn import nothing_drawn

RED, BLUE, PALE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.8), (0.8, 0.75, 0.55)
GROUNDS = {"plain": 0.0, "busy": 0.05}


def disc(size, middle, radius):
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2


def scene(colour=None, radius=10, noise=0.0, size=(64, 96), middle=(30, 40)):
    """A grey ground with at most one disc, [1, H, W, 3]."""
    picture = torch.full((*size, 3), 0.7) + noise * torch.randn(*size, 3, generator=torch.Generator().manual_seed(1))
    if colour:
        picture[disc(size, middle, radius)] = torch.tensor(colour)
    return picture[None]


def mask(radius=13, size=(64, 96), middle=(30, 40)):
    return disc(size, middle, radius)[None].float()


@pytest.mark.parametrize("noise", GROUNDS.values(), ids=GROUNDS)
def test_an_erased_thing_is_told_from_a_new_one(noise):
    before = scene(RED, noise=noise)
    for after, erased in ((None, True), (BLUE, False), (PALE, False), (RED, False)):
        assert nothing_drawn(before, scene(after, noise=noise), mask()) == [erased]
    assert nothing_drawn(before, scene(BLUE, 5, noise), mask()) == [False]  # a quarter of the old area


def test_each_picture_counts_for_itself_and_faint_traces_are_nothing():
    before = torch.cat([scene(RED)] * 3)
    trace = scene()
    trace[0, 30, 38:42] = torch.tensor(RED)  # a few pixels
    after = torch.cat([scene(), scene(BLUE), trace])
    assert nothing_drawn(before, after, mask().expand(3, -1, -1)) == [True, False, True]


def test_on_a_ground_as_busy_as_a_texture_the_erased_thing_is_told_too():
    before, after = scene(RED, noise=0.12), scene(noise=0.12)
    assert nothing_drawn(before, after, mask()) == [True]


def test_where_nothing_was_and_where_there_is_no_ring_nothing_is_said():
    assert nothing_drawn(scene(), scene(), mask()) == [False]
    assert nothing_drawn(scene((0.71, 0.7, 0.69)), scene(), mask()) == [False]  # what no one would see
    assert nothing_drawn(scene(RED), scene(), torch.ones(1, 64, 96)) == [False]
    assert nothing_drawn(scene(RED), scene(), torch.zeros(1, 64, 96)) == [False]


def test_the_frame_of_the_picture_may_cut_the_ring():
    size, middle = (65, 31), (2, 28)
    before, after = (scene(colour, size=size, middle=middle) for colour in (BLUE, None))
    assert nothing_drawn(before, after, mask(size=size, middle=middle)) == [True]
