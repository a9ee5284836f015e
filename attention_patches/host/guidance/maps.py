"""The attention maps that a loss reads: of which layers, on which grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.seam import AttentionEdit, AttentionSite, LatentGuide
from ..run.run import Run

COARSEST = 4  # latent cells under a token: 32 pixels, the grid that the papers read at 512 and 1024 pixels


class MapReader:
    """The attention maps of one conditioning entry on one grid.

    `finished(reader)` is called when the last layer of that grid has been read. `layers`: which are read where text and
    image share one attention; None = all of the grid, where the text has an attention of its own.
    """

    def __init__(
        self,
        level: int,
        last: str | None,
        finished: Callable[[MapReader], None],
        layers: tuple[str, ...] | None = None,
    ) -> None:
        self.level, self.last, self.finished, self.layers = level, last, finished, layers
        self.parts: dict[str, list[Tensor]] = {}
        self.sites: dict[str, AttentionSite] = {}

    def edit(self) -> AttentionEdit:
        """The look to install for one pass; it changes nothing."""
        return AttentionEdit("maps", "read", self._read, where=self._wants)

    def _wants(self, site: AttentionSite) -> bool:
        return site.level == self.level and (self.layers is None or site.layer in self.layers)

    def _read(self, probs: Tensor, site: AttentionSite) -> None:
        self.sites[site.layer] = site
        self.parts.setdefault(site.layer, []).append(probs.mean(dim=1))
        if site.layer == self.last and site.queries.stop == site.grid[0] * site.grid[1]:
            self.finished(self)

    def maps(self) -> tuple[Tensor, AttentionSite]:
        """[B, T, h, w], the mean over heads and layers, and where they are from.

        In a joint attention most of a token's attention is for the image: what is left for the text is made to sum to 1
        in every cell, as where the text has an attention of its own. After the mean, so that heads and layers count as
        much as they read. A patch may shrink the features of some layers (Deep Shrink): then those of the finest grid
        count.
        """
        finest = max(self.sites.values(), key=lambda site: site.grid[0] * site.grid[1])
        cells = finest.grid[0] * finest.grid[1]
        layers = [torch.cat(self.parts[name], dim=1) for name, s in self.sites.items() if s.grid == finest.grid]
        frames = [layer.unflatten(1, (-1, cells)).mean(dim=1) for layer in layers]  # a picture has one
        mean = torch.stack(frames).mean(dim=0)
        if self.layers is not None:
            mean = mean / mean.sum(dim=2, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean.transpose(1, 2).unflatten(2, finest.grid), finest


def map_level(factors: tuple[int, ...], latent: tuple[int, int], smallest_side: int) -> int:
    """Which attention grid a loss reads: the coarsest with cells enough that shows no more than 32 pixels per cell.

    `factors` are latent cells per token, finest first. 16 x 16 for SD 1.5 at 512 and 32 x 32 for SDXL at 1024 pixels.
    What the layers of a grid look at was learnt with the model, at whatever size: in smaller pictures the same layers
    serve down to half of `smallest_side`, but for the coarsest grid, which sees the picture as a whole. The finest grid
    where none has cells enough.
    """
    coarsest = len(factors) - 1
    needed = [smallest_side if level == coarsest else smallest_side // 2 for level in range(len(factors))]
    fine = [i for i, f in enumerate(factors) if f <= COARSEST and min(latent) // f >= needed[i]]
    return max(fine, default=0)


def reader_of(run: Run, guide: LatentGuide, finished: Callable[[MapReader], None]) -> MapReader:
    """Of the grid and the layers that the guide asks for, on the model of this run."""
    level = map_level(run.adapter.factors, run.image, guide.smallest_side)
    last = run.adapter.last_layer(level) if guide.early_exit else None
    return MapReader(level, last, finished, run.adapter.guided)
