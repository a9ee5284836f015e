"""Installing edits on a MODEL.

The patched clone carries data only: the edits, and a few wrappers around the sampler. So edits of several nodes are one
list, another pack's attention override is found wherever it was added and called first in line, and nothing survives a
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.seam import ContextEdit, Edit, LatentGuide, NoiseEdit, TextMix
from ..core.types import Layout, StepWindow, UnsupportedModelError
from .attention.calls import IncompatiblePatchError, Installed
from .families import adapter_for
from .guidance import latent, prediction, start
from .guidance.foreign import refuse_without_gradient
from .guidance.guides import refuse_films
from .run.run import RUN, WRAPPER, Run
from .run.schedule import comes_to, no_step_line

EDITS = "boxwright_edits"  # key of a tuple of Installed in transformer_options
COMPILED = "torch.compile"  # key of the wrapper that the host's TorchCompileModel adds


def install(model: Any, layout: Layout, edits: Sequence[Edit], report: Callable[[str], None] | None = None) -> Any:
    """A clone of the MODEL whose rows conditioned by `layout` run with `edits`, after those installed before.

    `report` is told what edits have to say as a run goes on, and before it starts if it comes to no time of theirs.
    Without edits it is the same model.

    Raises UnsupportedModelError for a model of no family; for guides where the family has no gradient; for edits of the
    text where the model makes more of it (own_text), and for mixes also where further texts have no place (beside).
    """
    adapter = adapter_for(model)
    patched = model.clone()
    if not edits:
        return patched
    options = patched.model_options.setdefault("transformer_options", {})
    options[EDITS] = (*options.get(EDITS, ()), *(Installed(layout, edit, report=report) for edit in edits))
    if any(isinstance(edit, (TextMix, ContextEdit)) for edit in edits) and not adapter.own_text:
        raise UnsupportedModelError(
            f"{adapter.name} makes more of a prompt than its conditioning holds, so that no other text can stand in "
            "for a part of it. Use Region Conditioning, which takes a pass for each region, or a method that leaves "
            "the text as it is: Rectified Attention with its end tokens visible or hidden, or Region Prompt in its "
            "mode dense without own phrases."
        )
    if any(isinstance(edit, TextMix) for edit in edits) and adapter.text == "joint" and adapter.beside is None:
        raise UnsupportedModelError(
            f"In {adapter.name} text and image are read together, and Boxwright does not know yet how the texts of "
            "regions would stand beside the prompt there. Use Region Conditioning, which takes a pass for each region, "
            "or a method that edits scores (Region Prompt in its dense mode, Rectified Attention)."
        )
    guides = [edit for edit in edits if isinstance(edit, LatentGuide)]
    if guides:
        refuse_without_gradient(adapter, model.model.diffusion_model)
    if any(guide.moves == "latent" for guide in guides):
        _wrap(patched, WrappersMP.OUTER_SAMPLE, latent.sample_with_guided_latents)
    if any(guide.moves == "prediction" for guide in guides):
        _wrap(patched, WrappersMP.PREDICT_NOISE, prediction.predict_with_moves)
    _wrap(patched, WrappersMP.SAMPLER_SAMPLE, _sample_with_edits)
    return patched


def _wrap(patched: Any, kind: str, wrapper: Any) -> None:
    if WRAPPER not in patched.wrappers.get(kind, {}):
        patched.add_wrapper_with_key(kind, WRAPPER, wrapper)


def _sample_with_edits(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kw: Any
) -> Any:
    """SAMPLER_SAMPLE wrapper: the conditioning is ready, the model is loaded, no step has been taken."""
    options = extra_args["model_options"]["transformer_options"]  # a copy that belongs to this run
    if COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        raise IncompatiblePatchError(
            "TorchCompileModel compiles the model without looking at its options, so that Boxwright's edits would be "
            "left out or stay on after their time. Remove TorchCompileModel from this model."
        )
    nested = RUN in options
    run = Run(adapter_for(guider.model_patcher), guider, options[EDITS], noise, sigmas)
    run.attach(options)
    prediction.attach(run, options)
    refuse_films(run)
    if not nested:  # a part of a run that has told
        _tell_idle_edits(run, sigmas)
    with run.with_layers():
        noise = start.edited_noise(
            run, executor.class_obj, sigmas, extra_args["model_options"], noise, nested, *args, **kw
        )
        result = executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
    run.report_unheard()
    return result


def _tell_idle_edits(run: Run, sigmas: Tensor) -> None:
    """Tells, before the first step, whose edits' windows the run never comes to; those of one node are one matter.

    Image to image and the later part of a run may lie behind all of them. What changes noise has a word of its own.
    """
    windows: dict[Callable[[str], None], list[StepWindow]] = {}
    for item in run.installed:
        if item.report is not None and not isinstance(item.edit, NoiseEdit):
            windows.setdefault(item.report, []).append(item.edit.window)
    points = [run.progress(sigma) for sigma in sigmas.tolist()]
    for report, own in windows.items():
        if not comes_to(own, points):
            report(no_step_line(own, points))
