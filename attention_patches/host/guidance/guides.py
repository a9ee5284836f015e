"""The guides of a run, and what they tell its user."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
from torch import Tensor

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


def tell_idle_guides(run: Run, sigmas: Tensor) -> None:
    """Tells, before the first step, whose guide's window the run never comes to.

    One of less noise (img2img, the later part of a schedule) may lie behind it as a whole.
    """
    points = [run.progress(sigma) for sigma in sigmas.tolist()]
    for guide in (item.edit for item in guides_of(run)):
        if guide.report is not None and points and not _acts(guide, points):
            guide.report(
                f"nothing is moved: no step of this run lies between {guide.window.start:g} and {guide.window.end:g} "
                "of the noise schedule; raise denoise, or the end of the window"
            )


def _acts(guide: LatentGuide, points: list[float]) -> bool:
    if guide.moves == "prediction":  # also in evaluations on the way of a step
        return points[0] < guide.window.end and points[-1] > guide.window.start
    return any(map(guide.window.contains, points[:-1]))


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
