"""Areas of the image as coverage of a token grid."""

from __future__ import annotations

import torch
from torch import Tensor

from .seam import AttentionSite
from .types import Box, Region, View, holds_in

WHOLE_IMAGE = View()


def coverage(area: Box | Tensor, grid: tuple[int, int], view: View = WHOLE_IMAGE) -> Tensor:
    """How much of each cell the area covers, float32 [h, w] in [0, 1].

    `grid` = (h, w) cells laid over `view`. Exact area average, for painted masks of any size too. A cell that reaches
    past the image counts with the part of it that lies inside.
    """
    rows = _cell_edges(grid[0], view.y, view.height)
    columns = _cell_edges(grid[1], view.x, view.width)
    if isinstance(area, Box):
        down = _overlap(rows, torch.tensor([[area.y, area.y + area.height]], dtype=torch.float64))[:, 0]
        across = _overlap(columns, torch.tensor([[area.x, area.x + area.width]], dtype=torch.float64))[:, 0]
        share = down[:, None] * across[None, :]
    else:
        height, width = area.shape
        down = _overlap(rows, _cell_edges(height, 0.0, 1.0))
        across = _overlap(columns, _cell_edges(width, 0.0, 1.0))
        share = down @ area.to(device="cpu", dtype=torch.float64) @ across.T
    inside = (
        _overlap(rows, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
        * _overlap(columns, torch.tensor([[0.0, 1.0]], dtype=torch.float64)).T
    )
    return (share / inside.clamp_min(1e-9)).clamp(0.0, 1.0).float()


def laid_over(values: Tensor, view: View, grid: tuple[int, int], onto: View = WHOLE_IMAGE) -> tuple[Tensor, Tensor]:
    """Values [..., h, w] on cells over `view`, as averages on `grid` cells over `onto`, by area.

    Returns them [..., *grid] in float64, and how much of each of those cells lies under `view`, [*grid] in [0, 1];
    where nothing does, the average is 0.
    """
    down, across = (
        _overlap(_cell_edges(to, start, length), _cell_edges(of, begin, extent))
        for to, start, length, of, begin, extent in (
            (grid[0], onto.y, onto.height, values.shape[-2], view.y, view.height),
            (grid[1], onto.x, onto.width, values.shape[-1], view.x, view.width),
        )
    )
    under = down.sum(dim=1)[:, None] * across.sum(dim=1)
    sums = down @ values.to(device="cpu", dtype=torch.float64) @ across.T
    return torch.where(under > 1e-9, sums / under.clamp_min(1e-9), 0.0), under.clamp_max(1.0)


def covered(region: Region, site: AttentionSite) -> Tensor:
    """Coverage of the region at this site, [h, w]; worked out once for each grid of a run. 0 in frames it is not in."""
    if not holds_in(region, site.frames):
        return torch.zeros(site.grid)
    return site.kept(("covered", id(region.area)), lambda: coverage(region.area, site.grid, site.view))


def visible_cells(share: Tensor) -> Tensor:
    """Coverage [h, w] in [0, 1] -> bool: cells covered by more than half; if there is none, the best covered ones.

    A box smaller than a cell would otherwise vanish on coarse grids. All False only where nothing is covered at all.
    """
    chosen = share > 0.5
    best = share.max()
    return chosen if bool(chosen.any()) or best <= 0 else share >= best - 1e-6


def feathered(share: Tensor, feather: float, view: View = WHOLE_IMAGE) -> Tensor:
    """Coverage [h, w] of cells over `view`, with a linear ramp outside its edges; what was covered stays.

    `feather`: over which part of the image's height, and of its width, full coverage falls to 0 (taxicab distance).
    """
    for axis, cells in enumerate((feather * share.shape[0] / view.height, feather * share.shape[1] / view.width)):
        if cells > 0:
            share = _ramp(share, axis, cells)
    return share


def _ramp(share: Tensor, axis: int, cells: float) -> Tensor:
    size = share.shape[axis]
    result = share.clone()
    for step in range(1, min(size, int(cells) + 1)):
        near = share.narrow(axis, 0, size - step) - step / cells
        far = share.narrow(axis, step, size - step) - step / cells
        result.narrow(axis, step, size - step).copy_(torch.maximum(result.narrow(axis, step, size - step), near))
        result.narrow(axis, 0, size - step).copy_(torch.maximum(result.narrow(axis, 0, size - step), far))
    return result.clamp_min(0.0)


def _cell_edges(count: int, start: float, length: float) -> Tensor:
    """[count, 2] lower and upper edge of equal cells along one axis, float64 fractions of the image."""
    edges = start + length * torch.arange(count + 1, dtype=torch.float64) / count
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def _overlap(cells: Tensor, intervals: Tensor) -> Tensor:
    """[n, 2] x [m, 2] -> [n, m]: the share of each cell's length that lies in each interval."""
    low = torch.maximum(cells[:, None, 0], intervals[None, :, 0])
    high = torch.minimum(cells[:, None, 1], intervals[None, :, 1])
    return (high - low).clamp_min(0.0) / (cells[:, 1] - cells[:, 0])[:, None]
