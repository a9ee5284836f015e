"""A recorder on a MODEL: the look at the attention, and the start of a run, which empties the record."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..recorder import AttentionRecord
from ..types import Layout
from . import adapter_for
from .run import install, progress_of

WRAPPER = "boxwright_recorder"


def recorded(model: Any, layout: Layout, record: AttentionRecord) -> Any:
    """A clone of the MODEL that fills the record whenever it samples with the layout's conditioning.

    Raises UnsupportedModelError.
    """
    patched = install(model, layout, [record.edit()])
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER, partial(_begin, record))
    return patched


def _begin(
    record: AttentionRecord,
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict,
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kw: Any,
) -> Any:
    """SAMPLER_SAMPLE wrapper."""
    model = guider.inner_model
    factors = adapter_for(guider.model_patcher).factors(model.diffusion_model)
    height, width = noise.shape[-2:]
    grids = [(-(-height // factor), -(-width // factor)) for factor in factors]
    schedule = [*map(progress_of(model.model_sampling), sigmas[:-1].tolist())]
    record.begin(schedule, noise.shape[0], grids)
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
