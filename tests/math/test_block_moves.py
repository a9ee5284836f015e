"""Blocks of a noise, moved: a permutation and nothing else, dealt out so that no other way is worth more."""

import itertools

import numpy as np
import pytest
import torch
from pack.attention_patches.methods import block_moves
from pack.attention_patches.methods.block_moves import dealt, moved, order_of


def best_by_trying(gains, room):
    """The greatest sum of gains over every way of filling the rooms."""
    places = np.repeat(np.arange(len(room)), room)
    return max(gains[list(order), places].sum() for order in itertools.permutations(range(len(gains))))


@pytest.mark.parametrize("sweeps", [0, 60], ids=["by moves alone", "by prices"])
@pytest.mark.parametrize("seed", range(30))
def test_no_other_way_of_dealing_is_worth_more(seed, sweeps, monkeypatch):
    monkeypatch.setattr(block_moves, "SWEEPS", sweeps)
    rng = np.random.default_rng(seed)
    count, classes = rng.integers(2, 8), rng.integers(1, 5)
    gains = rng.normal(size=(count, classes))
    if seed % 4 == 0:  # many ties
        gains = gains.round()
    room = rng.multinomial(count, rng.dirichlet(np.ones(classes)))
    chosen = dealt(gains, room)
    assert np.array_equal(np.bincount(chosen, minlength=classes), room)
    assert gains[np.arange(count), chosen].sum() == pytest.approx(best_by_trying(gains, room), abs=1e-9)


def test_a_class_without_room_gets_nothing_however_good_it_is():
    assert list(dealt(np.array([[0.0, 9.0, 1.0], [0.0, 9.0, 2.0]]), [1, 0, 1])) == [0, 2]


def test_4096_blocks_of_a_picture_of_2048_pixels_are_dealt_as_well_as_few():
    """No exchange of two blocks is worth more; how long it takes stands in docs/results.md."""
    rng = np.random.default_rng(0)
    likes = np.exp(rng.normal(size=(4096, 8)) / 2)
    gains = np.concatenate([likes, -likes.max(axis=1, keepdims=True)], axis=1)
    wanted = [*[300] * 8, 4096 - 8 * 300]
    owner = np.asarray(dealt(gains, wanted))
    assert np.bincount(owner, minlength=9).tolist() == wanted
    for one in range(9):  # what the best block of `one` would gain in `other`, and the other way round
        for other in range(one):
            there, back = gains[owner == one], gains[owner == other]
            best = (there[:, other] - there[:, one]).max() + (back[:, one] - back[:, other]).max()
            assert best < 1e-9


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_gains_that_are_no_numbers_are_refused(wrong):
    gains = np.arange(12.0).reshape(4, 3)
    gains[2, 1] = wrong
    with pytest.raises(ValueError, match="finite"):
        dealt(gains, [1, 1, 2])


SHAPES = {"picture": (4, 8, 12), "odd": (4, 11, 13), "film": (3, 2, 9, 14), "one row": (1, 4, 9)}


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_value_is_there_once_in_its_channel_and_the_rest_stays(shape, block):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    h, w = shape[-2] // block, shape[-1] // block
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(1))
    out = moved(noise, order, block)
    assert not torch.equal(out, noise)
    assert torch.equal(out.flatten(-2).sort().values, noise.flatten(-2).sort().values)
    assert torch.equal(out[..., h * block :, :], noise[..., h * block :, :])
    assert torch.equal(out[..., w * block :], noise[..., w * block :])
    for to, of in enumerate(order.tolist()):
        (y, x), (v, u) = ((i // w * block, i % w * block) for i in (to, of))
        assert torch.equal(out[..., y : y + block, x : x + block], noise[..., v : v + block, u : u + block])


def test_the_order_that_is_there_is_no_change():
    noise = torch.randn(2, 7, 9)
    assert torch.equal(moved(noise, torch.arange(12), 2), noise)


def test_blocks_that_are_right_where_they_are_stay():
    chosen, places = np.array([0, 1, 1, 0, 2, 0]), np.array([0, 0, 1, 1, 2, 0])
    assert order_of(chosen, places).tolist() == [0, 3, 2, 1, 4, 5]
