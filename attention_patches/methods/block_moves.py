"""Moving blocks of a noise: which block goes where, by what each is worth at each place.

A permutation of independent Gaussian noise is Gaussian noise: nothing here makes a value that was not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SWEEPS = 60  # over the prices, before what is left is mended one block at a time


def dealt(gains: np.ndarray, room: Sequence[int]) -> np.ndarray:
    """To which class each block goes, int [n]: `room[k]` blocks to class k, so that the sum of gains is the greatest.

    `gains` float64 [n, K]; the rooms sum to n. Raises ValueError where a gain is NaN or infinite. Exact.

    The transportation problem, solved by an auction. Every place of a class is worth the same, so that there are K
    prices instead of n: blocks take the class that leaves them most after its price, prices are moved until the rooms
    are filled, and the few blocks that are left over go the cheapest way round (successive shortest paths).
    """
    if not np.isfinite(gains).all():
        raise ValueError("gains of blocks must be finite")
    chosen = np.zeros(len(gains), dtype=np.int64)
    open_ = np.flatnonzero(np.asarray(room) > 0)  # a class without room takes part in nothing
    if len(open_) < 2:
        return chosen + (open_[0] if len(open_) else 0)
    worth = np.ascontiguousarray(gains[:, open_])
    wanted = np.asarray(room)[open_]
    net = worth - _prices(worth, wanted)
    return open_[_mended(net, net.argmax(axis=1), wanted)]


def _prices(worth: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Prices [K] at which about `wanted[k]` blocks like class k best: each in turn is set to what just fills it."""
    prices = np.zeros(len(wanted))
    for _ in range(SWEEPS):
        for k, count in enumerate(wanted):
            net = worth - prices
            net[:, k] = -np.inf
            margins = np.sort(worth[:, k] - net.max(axis=1))[::-1]
            prices[k] = (margins[count - 1] + margins[min(count, len(margins) - 1)]) / 2
        if np.array_equal(np.bincount((worth - prices).argmax(axis=1), minlength=len(wanted)), wanted):
            break
    return prices


def _mended(net: np.ndarray, chosen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Blocks moved on from classes with too many to those with too few, each time along the cheapest chain of classes.

    A choice that is best for its own counts stays so.
    """
    count = len(wanted)
    excess = np.bincount(chosen, minlength=count) - wanted
    cost = np.full((count, count), np.inf)  # of moving one block from a class to another: what its sum loses
    mover = np.zeros((count, count), dtype=np.int64)  # the block that it is

    def look(k: int) -> None:
        own = np.flatnonzero(chosen == k)
        cost[k] = np.inf
        if len(own):
            loss = net[own, k][:, None] - net[own]
            best = loss.argmin(axis=0)
            cost[k], mover[k] = loss[best, np.arange(count)], own[best]
            cost[k, k] = np.inf

    for k in range(count):
        look(k)
    rounding = 1e-12 * max(1.0, float(np.abs(net).max()))  # a chain that is shorter by less is none
    for _ in range(excess.clip(min=0).sum()):  # each chain fills one place
        distance = np.where(excess > 0, 0.0, np.inf)
        before = np.full(count, -1)
        for _ in range(count):
            over = distance[:, None] + cost
            nearer = over.min(axis=0) < distance - rounding
            if not nearer.any():
                break
            before[nearer] = over.argmin(axis=0)[nearer]
            distance[nearer] = over.min(axis=0)[nearer]
        end = k = int(np.where(excess < 0, distance, np.inf).argmin())
        chain = []
        while before[k] >= 0:
            chain.append((before[k], k))
            k = int(before[k])
        movers = [(mover[a, b], b) for a, b in chain]
        for block, b in movers:
            chosen[block] = b
        excess[k] -= 1
        excess[end] += 1
        for k in {k for arc in chain for k in arc}:
            look(k)
    return chosen


def moved(noise: Tensor, source: Tensor, block: int) -> Tensor:
    """[..., H, W] with its blocks of block x block cells in another order; block i is where block source[i] was.

    `source`: int64 [h * w], a permutation of the h x w whole blocks that fit, counted row by row from the top left.
    Cells beyond the last whole block stay.
    """
    h, w = noise.shape[-2] // block, noise.shape[-1] // block
    whole = noise[..., : h * block, : w * block]
    tiles = whole.unflatten(-1, (w, block)).unflatten(-3, (h, block)).transpose(-3, -2).flatten(-4, -3)
    tiles = tiles.index_select(-3, source.to(noise.device)).unflatten(-3, (h, w))
    out = noise.clone()
    out[..., : h * block, : w * block] = tiles.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return out


def whole_blocks(size: tuple[int, int], block: int) -> tuple[int, int]:
    """How many whole blocks fit down and across."""
    return size[0] // block, size[1] // block


def order_of(chosen: np.ndarray, classes: np.ndarray) -> torch.Tensor:
    """`source` for `moved`: blocks stay that are in a place of their class already, the others take the free places."""
    source = np.arange(len(chosen))
    wrong = chosen != classes
    for k in np.unique(classes[wrong]):
        source[wrong & (classes == k)] = np.flatnonzero(wrong & (chosen == k))
    return torch.from_numpy(source)
