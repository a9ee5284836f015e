"""What the attention calls of one run share, worked out once for all layers of a grid in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .outside_blocks import outside_blocks


class BiasCache:
    """Additive masks and weights of one run: the same for all layers of a grid, so worked out once for each in a step.

    On the CPU, and copied to the device where they differ from those of the step before.
    """

    def __init__(self) -> None:
        # key -> progress of the step, what was worked out, what was made of it on the device
        self._made: dict[tuple[Any, ...], tuple[float, Tensor, Any]] = {}
        self.memo: dict[Any, Any] = {}  # AttentionSite.memo of every site of the run

    def once(
        self, key: tuple[Any, ...], progress: float, work_out: Callable[[], Tensor], make: Callable[[Tensor], Any]
    ) -> Any:
        """make(work_out()) of this step; made again only where what was worked out has changed."""
        key = (*key, torch.is_inference_mode_enabled())  # autograd may not save what was made in inference mode
        step, before, made = self._made.get(key, (None, None, None))
        if step != progress:
            with outside_blocks():
                found = work_out()
                if before is None or not torch.equal(found, before):
                    made = make(found)
            self._made[key] = progress, found, made
        return made
