"""Losses on the predicted clean picture: what a loss is, what part of the picture it sees, how strongly it guides.

A loss is any callable with the shape of `PictureLoss`; docs/writing-a-loss.md says how to bring one from another pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .grids import coverage
from .types import Box, BoxwrightError, StepWindow, check_range

STRONGEST = 1000.0
MOST = 4.0  # a denoised latent has a deviation near 1: a move by as much as this everywhere leaves no picture
LEAST_SIGNAL = 0.1  # of a flow model near its start, where a clean picture hardly depends on the latent

# Pictures [B, 3, h, w], float32 in 0..1, with a graph -> each picture's own loss, float [B]. Nothing is kept between
# calls. An attribute `models` names the host's patchers that must be in memory with the model; without one, none.
PictureLoss = Callable[[Tensor], Tensor]
Through = Literal["direct", "through model"]


@dataclass(frozen=True)
class Part:
    """A part of the picture that is guided, with a strength and a time of its own."""

    area: Box | Tensor  # as in a Region
    strength: float = 1.0
    window: StepWindow = StepWindow()


WHOLE = (Part(Box(0.0, 0.0, 1.0, 1.0)),)


@dataclass(frozen=True)
class PictureGuide:
    """Moves the predicted clean latent down the gradient of a loss on the picture it stands for.

    Every part is a loss of its own, of what lies in it; no latent cell outside the parts is moved. A cell moves by
    `strength` times its share of the gradient times the cells of its part, so that neither the size of the picture nor
    that of the part matters, and by `schedule_weight`, so that neither does the number of steps.
    """

    loss: PictureLoss
    parts: tuple[Part, ...] = WHOLE
    strength: float = 1.0
    window: StepWindow = StepWindow()
    max_change: float = 1.0  # limit of a move of one latent value, in units of 1; 0 = MOST
    through: Through = "direct"
    report: Callable[[str], None] | None = field(default=None, compare=False)  # told the loss once for each evaluation

    def __post_init__(self) -> None:
        for name, value, most in (("strength", self.strength, STRONGEST), ("max_change", self.max_change, MOST)):
            check_range(name, value, 0.0, most)
        if any(part.strength > 0 for part in self.parts) and not self.windows:
            raise BoxwrightError(
                f"Nothing is guided from start {self.window.start:g} to end {self.window.end:g}: the regions' own "
                "start and end lie outside. Let them overlap."
            )

    @property
    def windows(self) -> tuple[StepWindow, ...]:
        """When each part of some strength is guided."""
        spans = [
            (max(part.window.start, self.window.start), min(part.window.end, self.window.end))
            for part in self.parts
            if part.strength > 0
        ]
        return tuple(StepWindow(start, end) for start, end in spans if start < end)

    def at(self, progress: float) -> tuple[Part, ...]:
        """The parts that are guided at a moment of the schedule."""
        if not self.window.contains(progress):
            return ()
        return tuple(part for part in self.parts if part.strength > 0 and part.window.contains(progress))


def level_at(sigma: float, flow: bool) -> tuple[float, float]:
    """How much picture and how much noise a latent holds at a sigma of the host."""
    return (1.0 - sigma, sigma) if flow else (1.0, sigma)


def schedule_weight(sigma: float, flow: bool, through: Through) -> float:
    """What the gradient is multiplied by at a sigma, beside the strength.

    A latent x = a * picture + b * noise has the clean prediction D = (x + b^2 * score) / a, and a loss as a further
    condition (Dhariwal and Nichol, arXiv 2105.05233; for any loss on D, arXiv 2302.07121) adds minus its gradient by x
    to the score: D moves by -b^2 / a * J^T dL/dD, with J = dD/dx. "through model" takes J from the model. "direct" (as
    MPGD, arXiv 2311.16424, moves D alone) takes that of a picture whose cells are independent with deviation 1,
    J = a / (a^2 + b^2): so both modes move about as much.
    """
    signal, noise = level_at(sigma, flow)
    if through == "direct":
        return noise**2 / (signal**2 + noise**2)
    return noise**2 / max(signal, LEAST_SIGNAL)


def move_limit(max_change: float, sigma: float, flow: bool) -> float:
    """The most a value of the clean latent may move at a sigma: less and less where little noise is left."""
    signal, noise = level_at(sigma, flow)
    return (max_change or MOST) * noise / math.hypot(signal, noise)


def rectangle_of(share: Tensor) -> tuple[slice, slice]:
    """The rows and the columns of the rectangle around `share` [h, w]. Raises BoxwrightError where that is nowhere."""
    rows, columns = (share.amax(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise BoxwrightError("A part of the picture to guide has no pixel in it. Wire a mask with something white.")
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def window_of_part(picture: Tensor, share: Tensor, rectangle: tuple[slice, slice] | None = None) -> Tensor:
    """What a loss sees of a picture [B, 3, h, w]: the rectangle around `share` [h, w], at least one pixel.

    What lies in it but outside a painted area has the area's mean colour, so that a mean over the rectangle is one over
    the area, and nothing from outside is judged. `rectangle`: that of `rectangle_of`, where it is known.
    """
    down, across = rectangle if rectangle is not None else rectangle_of(share)
    seen, weight = picture[:, :, down, across], share[down, across].to(picture)
    mean = (seen * weight).sum(dim=(2, 3), keepdim=True) / weight.sum()
    return torch.lerp(mean.expand_as(seen), seen, weight)


def part_share(part: Part, grid: tuple[int, int]) -> Tensor:
    """How much of each cell of a grid (h, w) a part covers, float32 [h, w]."""
    return coverage(part.area, grid)
