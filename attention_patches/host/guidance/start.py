"""The noise of a run, changed once before its first step by what the model makes of it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...core.seam import AttentionSite, NoiseEdit, Start
from ...core.types import BoxwrightError
from ..attention.calls import Extra, Installed
from ..attention.outside_blocks import blocks_uncompiled
from ..run.entries import row_period
from ..run.run import Run
from .aside import Enough, entry_aside, options_aside
from .gradient import originals
from .maps import MapReader, map_level


def edited_noise(
    run: Run,
    sampler: Any,
    sigmas: Tensor,
    options: dict[str, Any],
    noise: Tensor,
    nested: bool,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    """The noise after every NoiseEdit of the run; the same tensor where there is nothing to change.

    `latent_image` and `denoise_mask`: as the host gives them to a sampler. `nested`: the run is part of another one.
    """
    for item in run.installed:
        if isinstance(item.edit, NoiseEdit):
            reason = _nothing_to_change(run, item.edit, sigmas, noise, nested)
            if reason is None:
                noise, line = _edited(run, item, sampler, sigmas, options, noise, latent_image, denoise_mask)
            else:
                line = f"the noise stays as it is: {reason}"
            if item.report is not None:
                item.report(line)
    return noise


def _nothing_to_change(run: Run, edit: NoiseEdit, sigmas: Tensor, noise: Tensor, nested: bool) -> str | None:
    if nested:
        return "this run is a part of another one, which has started already"
    if len(sigmas) < 2 or not bool(torch.count_nonzero(noise)):
        return "this run adds none (add_noise is off, or it goes on from another sampler)"
    begun = run.progress(float(sigmas[0]))
    if begun > edit.latest:
        return (
            f"this run begins at {begun:.2f} of the noise schedule, when the places are decided; raise denoise, or "
            "start earlier"
        )
    return None


def _edited(
    run: Run,
    item: Installed,
    sampler: Any,
    sigmas: Tensor,
    options: dict[str, Any],
    noise: Tensor,
    latent_image: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, str]:
    comfy.model_management.throw_exception_if_processing_interrupted()
    if not bool(sigmas[0].isfinite()):
        raise BoxwrightError(
            f"The noise cannot be arranged: the first sigma of this run is {float(sigmas[0]):g}, which is no noise "
            "level. Choose another scheduler, or more steps."
        )
    model = run.guider.inner_model
    clean = torch.zeros_like(noise) if latent_image is None else latent_image
    x = model.model_sampling.noise_scaling(sigmas[0], noise, clean, sampler.max_denoise(run.guider, sigmas))
    entries = originals(run.conditioning(item))
    maps = [found for entry in entries for found in _read(run, item, entry, x, sigmas, options)]
    if not maps:
        return noise, "the noise stays as it is: the prompt takes no part in the first step (its time range)"
    free = None if mask is None else mask.expand(noise.shape).flatten(1, -3).amin(dim=1) > 0.5
    rows = slice(None, None, max(row_period(entry, item.layout) for entry in entries))
    start = Start(tuple((seen[rows], site) for seen, site in maps), run.image, None if free is None else free[rows])
    arranged, line = item.edit.fn(noise[rows], start)
    out = noise.clone()
    out[rows] = arranged
    return out, line


def _read(
    run: Run, item: Installed, entry: dict[str, Any], x: Tensor, sigmas: Tensor, options: dict[str, Any]
) -> list[tuple[Tensor, AttentionSite]]:
    """The maps of one conditioning entry on the grids that count, finest first; none where it takes no part.

    Without ControlNets, GLIGEN and other packs' wrappers: what they ask for stands at its place, and does not move with
    the noise.
    """
    waiting: list[MapReader] = []

    def finished(reader: MapReader) -> None:
        waiting.remove(reader)
        if not waiting:
            raise Enough

    levels = _levels(run, item.edit)
    readers = [MapReader(level, run.adapter.last_layer(level), finished, run.adapter.guided) for level in levels]
    waiting.extend(readers)
    entry = entry_aside(entry)
    # What Region Prompt or Rectified Attention confine, in any layer, says nothing of the noise.
    edits = tuple(Installed(item.layout, reader.edit(), graph=True) for reader in readers)
    local = options_aside(options, run, Extra({entry["uuid"]: edits}, aside=True, plain=True))
    try:
        with blocks_uncompiled():  # it is left before its end
            comfy.samplers.calc_cond_batch(run.guider.inner_model, [[entry]], x, sigmas[:1].expand(x.shape[0]), local)
    except Enough:
        pass
    return [reader.maps() for reader in readers if reader.parts]


def _levels(run: Run, edit: NoiseEdit) -> list[int]:
    """The grid that losses read, and the next finer one, which places the edges; finest first."""
    level = map_level(run.adapter.factors, run.image, edit.smallest_side)
    return [*range(max(level - 1, 0), level + 1)]
