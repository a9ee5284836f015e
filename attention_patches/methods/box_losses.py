"""The losses of Box Constraint on attention maps: where a phrase is seen, and how far that is from its boxes.

BoxDiff (arXiv 2307.10816); what departs from it is told in `box_constraint.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LITTLE = 1e-3  # what may be missing where a place is reached
BLIND = 1e-4  # share of the slope of an even cell below which a move has no direction
CONTRAST = 100.0  # the paper's factor on the maps before tokens compete


@dataclass(frozen=True)
class Sight:
    """Where a phrase is seen, float32 [B, h, w] each, smoothed.

    `absent` is 0 where the cell is the phrase's own, `present` where nothing of it is seen.
    """

    share: Tensor  # of the cell, 0 to 1
    absent: Tensor
    present: Tensor
    slope: Tensor  # how much `absent` falls with the phrase's lead; without a graph


def sight(maps: Tensor, own: Tensor, others: Tensor, deviation: float, leak: float) -> Sight:
    """How much each cell of attention [B, T, h, w] is a phrase's: its share of those that compete for it.

    The share is the paper's: softmax of 100 times the map, summed over the `own` columns.
    """
    scores = maps.float() * CONTRAST
    lead = scores.index_select(1, own).logsumexp(dim=1) - scores.index_select(1, others).logsumexp(dim=1)
    values = (lead.sigmoid(), distance(lead, leak), distance(-lead, leak), slope(lead.detach(), leak))
    return Sight(*(smoothed(value, deviation) for value in values))


def distance(lead: Tensor, leak: float) -> Tensor:
    """How far a phrase is from owning a cell in which its score is ahead by `lead`: 1 - S + leak * -log S.

    S = sigmoid(lead) is its share, and 1 - S the published loss. That levels off: where a rival's attention is ahead by
    a fifth, `lead` is -20, and nothing is left of a pull of 1/4 at lead 0. The logarithm has the slope 1 however far it
    is. With a small `leak` it tells only where no other cell does, and what moves is in proportion to the gradient; at
    full weight it outvotes the cells that can be won, and the picture turns blotchy.
    """
    flat = (-lead).sigmoid()
    return flat + leak * torch.nn.functional.softplus(-lead) if leak else flat


def slope(lead: Tensor, leak: float) -> Tensor:
    """Of `distance`, downwards, by the lead: what there is to follow in a cell."""
    share = lead.sigmoid()
    return share * (1.0 - share) + leak * (1.0 - share)


def blind_in(seen: Sight, cells: Tensor | None, missing: Tensor, leak: float) -> Tensor:
    """Bool [B]: where something is missing, and in none of the cells (None = all) the loss has a slope to speak of."""
    slopes = seen.slope.flatten(1)
    best = (slopes if cells is None else slopes.index_select(1, cells)).amax(dim=1)
    return (missing > LITTLE) & (best < BLIND * (0.25 + 0.5 * leak))  # the slope at lead 0


def smoothed(values: Tensor, deviation: float) -> Tensor:
    """[B, h, w] through a 3 x 3 Gaussian, edges reflected."""
    if deviation == 0 or min(values.shape[-2:]) < 2:
        return values
    side = math.exp(-0.5 / deviation**2)
    padded = torch.nn.functional.pad(values[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    for axis in (1, 2):
        before, here, after = (padded.narrow(axis, i, padded.shape[axis] - 2) for i in range(3))
        padded = (side * (before + after) + here) / (1.0 + 2.0 * side)
    return padded


def best_mean(values: Tensor, cells: Tensor, fraction: float, largest: bool = True) -> Tensor:
    """Mean of the largest (smallest) values [B, h, w] in the cells (their numbers): a fraction, at least one. [B]

    0 where there is no cell.
    """
    if len(cells) == 0:
        return values.new_zeros(values.shape[0])
    inside = values.flatten(1).index_select(1, cells)
    return inside.topk(max(1, math.floor(fraction * len(cells))), dim=1, largest=largest).values.mean(dim=1)


def inner_loss(seen: Sight, cells: Tensor, fraction: float) -> Tensor:
    """How far the best cells of a box are from being the phrase's own, [B]."""
    return best_mean(seen.absent, cells, fraction, largest=False).clamp_min(0.0)


def outer_loss(seen: Sight, cells: Tensor, fraction: float) -> Tensor:
    """How much the phrase is seen in the cells outside its boxes, [B]."""
    return best_mean(seen.present, cells, fraction)


def corner_loss(seen: Sight, edges: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """How far the projections of the sight are from those of the boxes near their edges, [B].

    `edges` across and down: the columns (rows) near an edge that hold the boxes, and those that do not. Divided by the
    side of the grid as in the published code (the paper divides by the number of cells looked at).
    """
    loss = seen.absent.new_zeros(seen.absent.shape[0])
    for axis, (held, free) in zip((1, 2), edges, strict=True):
        absent, present = seen.absent.amin(dim=axis), seen.present.amax(dim=axis)
        wrong = absent.index_select(1, held).sum(dim=1) + present.index_select(1, free).sum(dim=1)
        loss = loss + wrong / absent.shape[1]
    return loss


def edge_cells(wanted: Tensor, width: int) -> Tensor:
    """Bool [n]: cells within `width` of an end of a run of True; the end after a run is the first cell behind it."""
    inside = wanted.tolist()
    edges = [i for i, (now, before) in enumerate(zip([*inside, False], [False, *inside], strict=True)) if now != before]
    near = torch.zeros_like(wanted)
    for edge in edges:
        near[max(0, edge - width) : edge + width + 1] = True
    return near


@dataclass(frozen=True)
class PhraseCells:
    """Where a phrase belongs on one grid: numbers of cells, row-major, on the device of the maps."""

    boxes: tuple[tuple[Tensor, float], ...]  # (cells, strength) of each area
    outside: Tensor
    edges: tuple[tuple[Tensor, Tensor], ...]  # see `corner_loss`


def phrase_cells(
    boxes: Sequence[tuple[Tensor, float]], grid: tuple[int, int], corner_width: int, device: Any
) -> PhraseCells:
    """`boxes`: (bool [h, w], strength), on the CPU: every look at a tensor of a GPU would wait for it."""
    held = torch.zeros(grid, dtype=torch.bool)
    for cells, _ in boxes:
        held |= cells
    edges = []
    for axis in (0, 1):
        wanted = held.any(dim=axis)
        near = edge_cells(wanted, corner_width)
        edges.append((_numbers(near & wanted, device), _numbers(near & ~wanted, device)))
    inside = tuple((_numbers(cells, device), strength) for cells, strength in boxes)
    return PhraseCells(inside, _numbers(~held, device), tuple(edges))


def _numbers(chosen: Tensor, device: Any) -> Tensor:
    return chosen.flatten().nonzero()[:, 0].to(device)
