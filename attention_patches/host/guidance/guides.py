"""The guides of a run, and what they tell its user."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling

from ...core.seam import LatentGuide
from ...core.types import UnsupportedModelError
from ..attention.calls import Installed
from ..run.run import Run
from .gradient import Gradient


def guides_of(run: Run) -> list[Installed]:
    """Those of the run's edits that are guides, with their layouts."""
    return [item for item in run.installed if isinstance(item.edit, LatentGuide)]


def is_flow(model: Any) -> bool:
    """Whether a model of the host reads its latent as it is (flow matching), and not divided by sqrt(1 + sigma^2)."""
    return isinstance(model.model_sampling, comfy.model_sampling.CONST)


def refuse_films(run: Run) -> None:
    """Raises UnsupportedModelError where a guide would have to move more than one frame."""
    if len(run.pictures) > 1 and guides_of(run):
        raise UnsupportedModelError(
            f"Guides (Box Constraint) move pictures, and this latent has {len(run.pictures)} frames. Use a method "
            "without gradients for films (Rectified Attention, Region Prompt)."
        )


def report_line(step: int, steps: int, found: Gradient) -> str:
    """How far each phrase is from its place at a step (0 = the first): mean over the batch, the worst one marked."""
    misses = found.per_phrase.mean(dim=0).tolist()
    worst = max(range(len(misses)), key=misses.__getitem__)
    parts = [
        f"{phrase[:40]} {miss:.0%}{' (worst)' if i == worst and len(misses) > 1 else ''}"
        for i, (phrase, miss) in enumerate(zip(found.phrases, misses, strict=True))
    ]
    line = f"step {step + 1} of {steps}, missing: " + ", ".join(parts)
    return "; ".join([line, *found.notes])
