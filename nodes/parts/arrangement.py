"""The picture of an arranged noise: where each phrase was seen, before and after, and which blocks went where."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attention_patches.core.types import Region
from ...attention_patches.methods.arranged_noise import Plan
from .drawing import draw_layout
from .heatmaps import Tile, draw_grid

SIDE = 256  # pixels of the longer side of a tile
OPACITY = 0.75  # of the colours over the layout


def draw_arrangement(plan: Plan, regions: tuple[Region, ...]) -> Tensor:
    """A grid for every picture of the batch, [B, H, W, 3] in [0, 1]: a column for each phrase, before above after.

    In the last column the places whose blocks changed, and how far away the blocks that are there now were before.
    """
    height, width = plan.grid
    scale = SIDE / max(plan.grid)
    size = (max(64, round(width * scale)), max(64, round(height * scale)))
    rows = plan.sources.shape[0]
    paper = draw_layout(regions, *size).expand(rows, -1, -1, -1)
    stays = torch.arange(height * width)
    down, across = (part(plan.sources, width) - part(stays, width) for part in (torch.floor_divide, torch.remainder))
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for number, phrase in enumerate(plan.phrases):
        like = plan.likes[:, number]
        for row, label, values in (
            (before, f"{phrase}: before", like),
            (after, f"{phrase}: after", like.gather(1, plan.sources)),
        ):
            row.append(Tile(label, values.view(rows, height, width).float()))
    distance = (down**2 + across**2).float().sqrt().view(rows, height, width)
    before.append(Tile("places that changed", (distance > 0).float()))
    after.append(Tile("from how far", distance))
    return draw_grid(paper, [before, after], OPACITY)
