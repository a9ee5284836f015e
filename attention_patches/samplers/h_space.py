"""Edits in h-space (Kwon et al., "Asyrp", arXiv 2210.10960): the UNet's bottleneck, shifted in the clean term only.

A sampling step takes the noise from the plain prediction and the picture from one whose bottleneck is shifted (their
asymmetric reverse process, equation 4). Departures: the shift is not trained; it is the difference that two prompts
make in the bottleneck at this very step. The official code multiplies it by training steps / steps, so that more steps
do not edit more; here a step counts by its share of the noise schedule, times REFERENCE_STEPS: the same for equal
steps, and right for those of other schedules and for runs of a part of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.types import BoxwrightError, StepWindow
from .noise import Levels

STRONGEST = 10.0
REFERENCE_STEPS = 20  # equal steps in a whole run, each of which gets the shift as it is


@dataclass(frozen=True)
class HSpace:
    """Settings."""

    strength: float = 1.0  # of the shift in one of REFERENCE_STEPS steps; 0 = off, below 0 = away from the target
    window: StepWindow = StepWindow(0.0, 0.6)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and abs(self.strength) <= STRONGEST):
            raise BoxwrightError(
                f"The strength is {self.strength:g}; choose -{STRONGEST:g} to {STRONGEST:g}, 0 for no change."
            )

    def shift(self, from_source: Tensor, from_target: Tensor, share: float = 1.0 / REFERENCE_STEPS) -> Tensor:
        """What to add to the bottleneck [B, C, h, w] in a step that has this `share` (0 to 1) of the noise schedule."""
        return self.strength * REFERENCE_STEPS * share * (from_target - from_source)


def clean_term_only(plain: Tensor, shifted: Tensor, sigma: float, target: float, levels: Levels) -> Tensor:
    """The prediction with which an Euler step from `sigma` to `target` moves the picture but not the noise.

    The step shall arrive at signal * shifted + noise * (the noise of `plain`): solved for what to tell the sampler.
    """
    return plain + (shifted - plain) * (levels(target).signal / (1.0 - target / sigma))
