"""RePaint (Lugmayr et al., arXiv 2201.09865): inpainting by going back and forth between noise levels.

After each ancestral step the known part of the picture is put back, noised afresh to the level reached (their algorithm
1, lines 4 to 8). Where the two parts do not fit, the walk goes `jump` levels back up and down again, `repeats` times in
all, so that the model brings them into line. Departures: any schedule and any noise level to start from; flow models,
by the same posterior in their own levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.types import check_range
from .noise import Callback, Denoiser, ddpm_step, falling, noised, renoised, report
from .scene import Scene

MAX_JUMP, MAX_REPEATS = 100, 50


@dataclass(frozen=True)
class RePaint:
    """Settings."""

    jump: int = 10  # noise levels to go back
    repeats: int = 10  # times each stretch of `jump` levels is walked; 1 = plain replacement of the known part

    def __post_init__(self) -> None:
        check_range("The jump length", self.jump, 1, MAX_JUMP)
        check_range("The number of repeats", self.repeats, 1, MAX_REPEATS)

    def walk(self, steps: int) -> list[int]:
        """The noise levels visited after the first, as indices into a schedule of `steps` steps (0 = the noisiest).

        Each is one more (a denoising step) or one less (noise added) than the one before.
        """
        visited, turns = [], set(range(1, steps - self.jump + 1, self.jump))  # counted in steps that remain
        for remaining in range(steps - 1, -1, -1):
            here = steps - remaining
            visited.append(here)
            if remaining in turns:
                back = [*range(here - 1, here - self.jump - 1, -1), *range(here - self.jump + 1, here + 1)]
                visited += back * (self.repeats - 1)
        return visited

    def evaluations(self, steps: int) -> int:
        """Calls of the model in a schedule of `steps` steps (each is two where guidance needs the negative prompt)."""
        turns = len(range(1, steps - self.jump + 1, self.jump))
        return steps + turns * (self.repeats - 1) * self.jump

    def sample(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        scene: Scene,
        callback: Callback | None = None,
    ) -> Tensor:
        """x [B, C, ..., h, w] at the first of `sigmas` (falling) -> the picture at the last."""
        values = falling(sigmas)
        levels = [scene.levels(sigma) for sigma in values]
        steps, done, here = len(values) - 1, 0, 0
        planned = self.evaluations(steps)
        for there in self.walk(steps):
            if there < here:
                x = renoised(x, levels[here], levels[there], scene.draw)
            else:
                clean = model(x, values[here])
                x = ddpm_step(x, clean, levels[here], levels[there], scene.draw)
                x = scene.mask * x + (1.0 - scene.mask) * noised(scene.source, levels[there], scene.draw)
                report(callback, done * steps // planned, x, values[here], clean)
                done += 1
            here = there
        return x
