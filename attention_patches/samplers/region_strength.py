"""A strength of its own for every part of a picture that is redrawn: SDEdit in one run, by parts.

SDEdit (Meng et al., arXiv 2108.01073) redraws a picture from a noise level below the first: the lower, the more is
kept. Differential Diffusion (Levin and Fried, arXiv 2306.00950) lets every cell have its own: until the run comes down
to the cell's level, the cell is the picture, noised; from there on the model redraws it, beside what it already has.
Departures: strengths are shares of the noise schedule, not of the run's steps, so that they mean the same in every
sampler, and one number for a whole picture is what img2img makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.grids import coverage, feathered
from ..core.types import BoxwrightError, Region, check_range, counted, feather_of

ROUNDING = 1e-4  # of a strength in a mask that was resized, and of the schedule


@dataclass(frozen=True)
class RegionStrength:
    """Settings. All strengths: 0 = kept exactly, 1 = redrawn from noise."""

    background: float = 0.0  # outside all regions
    feather: float = 0.05  # ramp outside each region, in fractions of the picture; a region's own goes before

    def __post_init__(self) -> None:
        for name, value in (("background", self.background), ("feather", self.feather)):
            check_range(name, value, 0.0, 1.0)

    def map_of(self, regions: Sequence[Region], strengths: Sequence[float], size: tuple[int, int]) -> Tensor:
        """The strength of every cell of a grid (h, w), float32 [h, w]. Of regions that overlap, the later is on top.

        Raises BoxwrightError where regions and strengths differ in number, or a strength is outside 0 to 1.
        """
        if len(regions) != len(strengths):
            raise BoxwrightError(
                f"strengths has {counted(len(strengths), 'strength')} for {counted(len(regions), 'region')}. Write one "
                "for each, in order, or none."
            )
        found = torch.full(size, self.background)
        for region, strength in zip(regions, strengths, strict=True):
            check_range(f'The strength of "{region.phrase}"', strength, 0.0, 1.0)
            share = feathered(coverage(region.area, size), feather_of(region, self.feather))
            found = torch.lerp(found, torch.full(size, float(strength)), share)
        return found


def open_cells(strengths: Tensor, progress: float) -> Tensor:
    """1 where the run has come down to a cell's own level, else 0; strengths of any shape, progress as StepWindow's."""
    return ((strengths > ROUNDING) & (strengths >= 1.0 - progress - ROUNDING)).to(strengths.dtype)
