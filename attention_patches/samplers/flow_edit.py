"""FlowEdit (Kulikov et al., arXiv 2412.08629): from a picture to its edit without inversion.

Two points go down the noise levels side by side: the picture with fresh noise, and the edit so far with the same noise.
The edit moves by the difference of the velocities that their prompts give them, averaged over the draws (algorithm 1).
The last part may be drawn as ordinary sampling, from the edit's own noisy point on (their n_min). Published: FLUX 28
steps from the 24th, guidance 1.5 and 5.5; SD3 50 steps from the 33rd, guidance 3.5 and 13.5; 1 draw.

Departures: models of noise and v, on the straight path (`straight.py`); a mask, which is the share of its step that
each cell takes, so that what it leaves out is the picture itself at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..core.types import BoxwrightError, check_range
from .noise import Callback, falling, report
from .scene import Scene
from .straight import Calls, PathTime, Prompts, mean_of

MAX_DRAWS = 64


@dataclass(frozen=True)
class FlowEdit:
    """Settings."""

    draws: int = 1  # of noise, averaged in each step
    finish: float = 0.0  # share of the steps, the last ones, that are ordinary sampling; 1 = image to image

    def __post_init__(self) -> None:
        check_draws(self.draws)
        if not 0.0 <= self.finish <= 1.0:
            raise BoxwrightError(f"finish is {self.finish:g}; choose a share of the steps, from 0 to 1.")

    def calls(self, steps: int) -> Calls:
        """How often a run of so many steps asks each prompt."""
        last = self._last(steps)
        return Calls(self.draws * (steps - last), self.draws * (steps - last) + last)

    def _last(self, steps: int) -> int:
        """How many of the steps are ordinary sampling."""
        return round(self.finish * steps)

    def sample(
        self,
        prompts: Prompts,
        sigmas: Tensor | Sequence[float],
        scene: Scene,
        callback: Callback | None = None,
    ) -> Tensor:
        """The edited latents [B, C, ..., h, w]. `sigmas` fall to 0; the first says how much noise the edit begins in.

        With one guidance and one prompt for both, the picture comes back.
        """
        moments = [PathTime.of(sigma, scene.levels) for sigma in falling(sigmas)]
        steps = len(moments) - 1
        parting = steps - self._last(steps)
        picture = edit = scene.source
        for i, (now, then) in enumerate(zip(moments[:parting], moments[1:])):
            drift = mean_of(self.draws, partial(_drift, prompts, scene, edit, now))
            edit = edit + scene.mask * (then.time - now.time) * drift
            report(callback, i, edit, now.sigma, edit)
        if parting == steps:
            return edit
        noise = scene.draw(picture)
        x = moments[parting].on_path(picture, noise) + (edit - picture)
        for i, (now, then) in enumerate(zip(moments[parting:], moments[parting + 1 :]), parting):
            clean = now.clean(prompts.target, x)
            x = x + (then.time - now.time) * now.velocity(x, clean)
            x = scene.mask * x + (1.0 - scene.mask) * then.on_path(picture, noise)
            report(callback, i, x, now.sigma, clean)
        return x


def _drift(prompts: Prompts, scene: Scene, edit: Tensor, now: PathTime) -> Tensor:
    """The velocity of the edit less that of the picture, with the same new noise in both."""
    shown = now.on_path(scene.source, scene.draw(scene.source))
    edited = shown + (edit - scene.source)
    before = now.velocity(shown, now.clean(prompts.source, shown))
    return now.velocity(edited, now.clean(prompts.target, edited)) - before


def check_draws(draws: int) -> None:
    """Raises BoxwrightError unless there are 1 to MAX_DRAWS."""
    check_range("The number of draws", draws, 1, MAX_DRAWS)
