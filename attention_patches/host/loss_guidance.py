"""Loss Guidance on a MODEL: guides that look at the predicted picture, for any family of models."""

from __future__ import annotations

import contextlib
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.pictures import PictureGuide
from ..core.types import BoxwrightError, UnsupportedModelError
from .families import adapter_for
from .guidance.decoders import decoder_for
from .guidance.foreign import refuse_without_gradient
from .guidance.pictures import GUIDES, INSTEAD, STATE, Guided, RunState, predict_by_pictures
from .run.schedule import progress_of, told_if_idle

GRAPH = 3  # rows of the batch for which room is kept in memory, for each that is run with a graph


def guide_by_pictures(model: Any, guide: PictureGuide, vae: Any = None) -> Any:
    """A clone of the MODEL whose predictions are moved by a guide, after those that were added before.

    Pictures are made by `vae`, or without one from the colours of the latent. Raises BoxwrightError for a VAE of other
    latents, and UnsupportedModelError for a model without colours or, "through model", without gradients.
    """
    decode = decoder_for(model, vae)
    if guide.through == "through model":
        _refuse_without_gradient(model)
    patched = model.clone()
    if guide.strength == 0.0:
        return patched
    options = patched.model_options.setdefault("transformer_options", {})
    options[GUIDES] = (*options.get(GUIDES, ()), Guided(guide, decode))
    needed = (*getattr(decode, "models", ()), *getattr(guide.loss, "models", ()))
    if needed:
        # By the weights: a clone of the MODEL has clones of these.
        found = {id(each.model): each for each in (*patched.get_additional_models_with_key(GUIDES), *needed)}
        patched.set_additional_models(GUIDES, list(found.values()))
    for kind, wrapper in (
        (WrappersMP.PREDICT_NOISE, predict_by_pictures),
        (WrappersMP.SAMPLER_SAMPLE, check_run),
        (WrappersMP.PREPARE_SAMPLING, keep_room),
    ):
        _wrap_outermost(patched, kind, wrapper)
    return patched


def _wrap_outermost(patched: Any, kind: str, wrapper: Any) -> None:
    """Around what is there: nodes that compare predictions (H-Space Edit) must not meet one that was moved."""
    kinds = patched.wrappers.setdefault(kind, {})
    others = {key: kept for key, kept in kinds.items() if key != GUIDES}
    kinds.clear()
    kinds.update({GUIDES: [wrapper], **others})


def _refuse_without_gradient(model: Any) -> None:
    try:
        refuse_without_gradient(adapter_for(model), model.model.diffusion_model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} Here, you can also choose {INSTEAD}.") from error


def keep_room(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kw: Any) -> Any:
    """PREPARE_SAMPLING wrapper: the host makes room before it starts, by its own estimate for a larger batch."""
    guides = [item.guide for item in model.model_options["transformer_options"].get(GUIDES, ())]
    if any(guide.through == "through model" for guide in guides):
        noise_shape = [noise_shape[0] * GRAPH, *noise_shape[1:]]
    return executor(model, noise_shape, conds, *args, **kw)


def check_run(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kw: Any
) -> Any:
    """SAMPLER_SAMPLE wrapper: what cannot be guided is refused before the first step, and what is not is told."""
    shape, wanted = tuple(noise.shape), guider.inner_model.latent_format.latent_channels
    if len(shape) not in (4, 5) or (len(shape) == 5 and shape[2] != 1) or shape[1] != wanted:
        raise BoxwrightError(
            f"Loss Guidance judges pictures; this run's latent has the shape {shape}, that of a video, of sound, or of "
            "several latents in one. Use it on the latent of pictures, and remove it from this model otherwise."
        )
    options = extra_args["model_options"]["transformer_options"]
    if STATE in options:  # a part of a run that tells
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
    levels = sigmas.tolist()
    state = options[STATE] = RunState(progress_of(guider.inner_model.model_sampling, levels))
    points = [*map(state.progress, levels)]
    with contextlib.ExitStack() as stack:
        for guide in (item.guide for item in options[GUIDES]):
            state.acted[id(guide)] = stack.enter_context(told_if_idle(guide.report, guide.windows, points))
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
