"""FlowAlign (Kim et al., arXiv 2505.23145): FlowEdit whose way is kept close to the picture.

Guidance leads from the source prompt to the target, not from an empty one: v_p = v(p, source) + w (v(p, target) -
v(p, source)) at the edit's noisy point p, beside v_q = v(q, source) at the picture's, q. The edit moves by the
difference of the two, and by a share of what the clean latents seen in p and q differ by, which holds the edit back:
x += dt (v_p - v_q) + 0.01 (clean(q) - clean(p)). Published: SD3, 33 steps from full noise, w 13.5.

Departures: as FlowEdit's (`flow_edit.py`); several draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .flow_edit import check_draws
from .noise import Callback, falling, report
from .scene import Scene
from .straight import Calls, PathTime, Prompts, mean_of

PULL = 0.01  # share of the difference of the clean latents that is taken back in each step


@dataclass(frozen=True)
class FlowAlign:
    """Settings."""

    draws: int = 1  # of noise, averaged in each step

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def calls(self, steps: int) -> Calls:
        """How often a run of so many steps asks each prompt."""
        return Calls(self.draws * steps, self.draws * steps)

    def sample(
        self,
        prompts: Prompts,
        sigmas: Tensor | Sequence[float],
        scene: Scene,
        callback: Callback | None = None,
    ) -> Tensor:
        """The edited latents [B, C, ..., h, w]. `sigmas` fall to 0; the first says how much noise the edit begins in.

        `prompts.target` is guided away from the source: source + w (target - source).
        """
        moments = [PathTime.of(sigma, scene.levels) for sigma in falling(sigmas)]
        edit = scene.source
        for i, (now, then) in enumerate(zip(moments, moments[1:])):
            edit = edit + scene.mask * mean_of(self.draws, partial(_change, prompts, scene, edit, now, then))
            report(callback, i, edit, now.sigma, edit)
        return edit


def _change(prompts: Prompts, scene: Scene, edit: Tensor, now: PathTime, then: PathTime) -> Tensor:
    """What one draw of noise adds to the edit in the step."""
    q = now.on_path(scene.source, scene.draw(scene.source))
    p = q + (edit - scene.source)
    clean_q, clean_p = now.clean(prompts.source, q), now.clean(prompts.target, p)
    drift = now.velocity(p, clean_p) - now.velocity(q, clean_q)
    return (then.time - now.time) * drift + PULL * (clean_q - clean_p)
