"""Bounded self-attention (Dahary et al., "Be Yourself", arXiv 2403.16990): image tokens of one region do not look at
those of another, so that neighbours of the same kind do not merge.

The paper's mask of self-attention: a region's tokens see each other and the background, the background sees everything.
In both halves of classifier-free guidance. Departures: coarse grids only and the first part of the schedule by default
(cut everywhere to the end, pictures fall apart into panels); tokens in an overlap see all regions they belong to; a
region that holds another one whole counts as background; no guidance by gradients and no refinement of the masks by
clustering (Box Constraint moves objects).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.grids import covered, visible_cells
from ..core.seam import NEVER, AttentionEdit, AttentionSite
from ..core.types import Layout, StepWindow, widest_window
from .rectified_attention import Resolutions, at_resolution
from .region_prompt import regions_at_work


@dataclass(frozen=True)
class BoundedAttention:
    """Settings."""

    window: StepWindow = StepWindow(0.0, 0.5)
    resolutions: Resolutions = "coarse"

    def edits(self, layout: Layout) -> list[AttentionEdit]:
        """The changes to install for this layout, of its own rows and of the negative prompt's.

        None with fewer than two regions: there is nobody to keep apart.
        """
        if sum(region.strength > 0 for region in layout.regions) < 2:
            return []
        window = widest_window(layout, self.window)
        return [
            AttentionEdit("bounded attention", "bias", self._bound, window, "image_image", self._here, rows)
            for rows in ("layout", "negative")
        ]

    def _here(self, site: AttentionSite) -> bool:
        return at_resolution(site, self.resolutions)

    def _bound(self, zeros: Tensor, site: AttentionSite) -> Tensor:
        return zeros.masked_fill(self.apart(site, zeros.device), NEVER)

    def apart(self, site: AttentionSite, device: torch.device | None = None) -> Tensor:
        """Whether the site's queries must not see an image token, bool [n, N]: both in regions, none in common."""
        at_work = tuple(regions_at_work(site, self.window))
        cells = site.kept(("bound", site.layout.key, at_work, device), lambda: self._cells(site, at_work).to(device))
        inside = cells.any(dim=0)
        together = cells[:, site.queries].float().T @ cells.float() > 0
        return inside[site.queries, None] & inside & ~together

    def _cells(self, site: AttentionSite, at_work: tuple[bool, ...]) -> Tensor:
        """Which cells belong to which of the regions that are kept apart, bool [R, N]."""
        cells = torch.stack([visible_cells(covered(region, site)).flatten() for region in site.layout.regions])
        cells &= torch.tensor(at_work)[:, None]
        return cells & ~backgrounds(cells)[:, None]


def backgrounds(cells: Tensor) -> Tensor:
    """Which of some regions, bool [R, N], hold another one with cells whole, and more than that; bool [R]."""
    shared = cells.float() @ cells.float().T  # [R, R] cells in common
    size = shared.diagonal()
    return ((shared == size) & (size > 0) & (size < size[:, None])).any(dim=1)
