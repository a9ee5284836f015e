"""Masks that follow the subject: where in its region a phrase is seen, from attention in the first steps of a run.

A drawn box holds background beside its subject. FreeFuse (arXiv 2510.23515) reads attention at an early step and gives
each LoRA the place where its subject is going to be. Here: the shares of attention that a region's words get, summed
over layers of the middle grids and the first steps, for each picture of the batch on its own; stretched to 0..1 inside
the region, cut softly where the values part best (Otsu), and where regions overlap, faded beside a neighbour that is
seen more clearly. Departures: the drawn region stays the outer limit, there is no clustering over image-to-image
attention, and every step of the time that is read counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.grids import coverage, laid_over, visible_cells
from ..core.masks import otsu_threshold, resized
from ..core.seam import AttentionEdit, AttentionSite
from ..core.types import BoxwrightError, Layout, StepWindow, View, counted
from .recorder import Recording

READ = Recording()  # which grids: as the recorder's default
SOFTNESS = 0.08  # of the cut, on values stretched to 0..1
FLAT = 1e-3  # a map whose values differ by less, beside its largest, says nothing
FINER = 4  # masks have so many cells for one of the finest grid that was read, so that layers get no blocks


@dataclass
class _Seen:
    """What one node has read in one run."""

    begun: float  # progress of the first step that was read
    # (grid, view) -> float32 [B, R, cells] sums on the model's device, and how many whole maps they are of
    sums: dict[tuple[tuple[int, int], View], tuple[Tensor, float]] = field(default_factory=dict)
    masks: Tensor | None = None  # float32 [B, R, h, w] over the whole image, on the CPU; None = still reading


class SubjectMasks:
    """The masks of one node for one layout. Data only: what is read lives in the run's memo, under this object."""

    def __init__(
        self, layout: Layout, numbers: Sequence[int], share: float, report: Callable[[str], None] | None = None
    ) -> None:
        """`numbers`: the regions, from 0, that are to be followed. `share`: how much of the schedule is read, from the
        first step that it is asked for. `report`: told what it does, a line each time. Raises BoxwrightError."""
        for number in numbers:
            if not bool(layout.columns[number].any()):
                raise BoxwrightError(
                    f'Region {number + 1} ("{layout.regions[number].phrase}") has no words in the prompt, and masks '
                    '"subject" follows the attention to a region\'s words. Write its phrase into the prompt (Layout '
                    'Prompt: append_missing), or choose masks "boxes".'
                )
        self.layout, self.share, self.report = layout, share, report
        self.numbers = tuple(numbers)

    def edit(self, window: StepWindow) -> AttentionEdit:
        """The look to install; it changes nothing."""
        return AttentionEdit("subject masks", "read", self._read, window, where=self._wanted)

    def _wanted(self, site: AttentionSite) -> bool:
        seen = site.memo.get(self)
        return READ.wants(site.level, site.levels) and (seen is None or self._reads(seen, site.progress))

    def _reads(self, seen: _Seen, progress: float) -> bool:
        """Whether this belongs to the time of reading; what comes back to earlier noise finds the masks made."""
        return seen.masks is None and progress < seen.begun + self.share

    @torch.inference_mode()  # whatever the run's own mode: it changes, and what was made in one may be added to in any
    def _read(self, probs: Tensor, site: AttentionSite) -> None:
        """[B, H, n, T] -> added to the sums, while there is something to read."""
        seen = site.memo.setdefault(self, _Seen(float(site.progress)))
        if not seen.sums and self.report:
            self.report("subject: reads where the phrases are seen; until then the drawn regions hold")
        rows, cells = probs.shape[0], site.grid[0] * site.grid[1]
        sums, weight = seen.sums.get((site.grid, site.view), (None, 0.0))
        if sums is None:
            sums = probs.new_zeros(rows, len(self.numbers), cells)
        if sums.shape[0] != rows:
            raise BoxwrightError(
                f'masks "subject" has read {counted(sums.shape[0], "picture")}, and now the model is run on {rows}: '
                'another node runs it on parts of the batch. Remove that node, or choose masks "boxes".'
            )
        shares = probs.mean(dim=1)  # [B, n, T]
        owned = self.layout.columns[list(self.numbers)].to(shares)  # [R, T]
        sums[:, :, site.queries] += owned @ shares.transpose(1, 2)
        seen.sums[site.grid, site.view] = sums, weight + probs.shape[2] / cells

    def at(self, site: AttentionSite) -> Tensor | None:
        """How much of each cell the subject of each of `numbers` has, float32 [B, R, h, w] in 0..1; None while it is
        still being read."""
        seen: _Seen | None = site.memo.get(self)
        if seen is None or self._reads(seen, site.progress):
            return None
        if seen.masks is None:
            with torch.inference_mode(False), torch.no_grad(), site.lasting():
                seen.masks, lines = self._masks(seen)
            seen.sums = {}
            if self.report:
                self.report("subject: " + "; ".join(lines))
        masks = seen.masks
        return site.kept(
            ("subject", id(self)), lambda: laid_over(masks, View(), site.grid, site.view)[0].clamp(0, 1).float()
        )

    def _masks(self, seen: _Seen) -> tuple[Tensor, list[str]]:
        """Of all that was read: the masks, and a line for each region that says how much of it they leave."""
        maps, known = _together({key: sums.clone() / weight for key, (sums, weight) in seen.sums.items()})
        size = tuple(maps.shape[-2:])
        cover = torch.stack([coverage(self.layout.regions[number].area, size) for number in self.numbers])
        values, cut = torch.zeros_like(maps), torch.zeros_like(maps)
        blank = torch.zeros(maps.shape[:2], dtype=torch.bool)
        for r, share in enumerate(cover):
            inside = visible_cells(share) & known
            for b, one in enumerate(maps[:, r]):
                own = one[inside]
                if own.numel() == 0 or not bool(own.max() - own.min() > FLAT * own.max()):
                    blank[b, r] = True
                    continue
                values[b, r] = ((one - own.min()) / (own.max() - own.min())).clamp(0, 1)
                limit = otsu_threshold(values[b, r][inside])
                cut[b, r] = torch.sigmoid((values[b, r] - limit) / SOFTNESS)
        # Beside a neighbour that is seen more clearly in a cell that both cover.
        rivals = torch.where((cover > 0) & ~blank[:, :, None, None], values, 0.0)
        masks = cut * ((values - rivals.amax(dim=1, keepdim=True)).clamp_max(0) / SOFTNESS).exp()
        masks = torch.where(blank[:, :, None, None] | ~known, 1.0, masks)
        return masks, [self._line(r, masks[:, r], share, blank[:, r]) for r, share in enumerate(cover)]

    def _line(self, r: int, masks: Tensor, share: Tensor, blank: Tensor) -> str:
        if bool(blank.all()):
            return f"region {self.numbers[r] + 1}: its phrase is seen nowhere in it, and it holds as drawn"
        kept = float((masks * share).sum() / (len(masks) * share.sum()).clamp_min(1e-9))
        some = f" (as drawn in {counted(int(blank.sum()), 'picture')})" if bool(blank.any()) else ""
        return f"region {self.numbers[r] + 1}: {kept:.0%} of what was drawn{some}"


def _together(maps: dict[tuple[tuple[int, int], View], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean maps [B, R, cells] of several grids and parts of the image -> their mean over the whole image, on a grid
    finer than any, float32 [B, R, h, w]; and which of its cells any of them shows, bool [h, w]."""
    height, width = (
        FINER * max(round(grid[axis] / extent(view)) for grid, view in maps)
        for axis, extent in enumerate((lambda view: view.height, lambda view: view.width))
    )
    total, weight = 0.0, torch.zeros(height, width, dtype=torch.float64)
    for (grid, view), one in maps.items():
        one = one.float().cpu()
        fine = [round(n * side / extent) for n, side, extent in zip((height, width), (view.height, view.width), (1, 1))]
        smooth = resized(one.unflatten(-1, grid).flatten(0, 1), tuple(fine)).unflatten(0, one.shape[:2])
        values, under = laid_over(smooth, view, (height, width))
        total, weight = total + values * under, weight + under
    return (total / weight.clamp_min(1e-9)).float(), weight > 1e-9
