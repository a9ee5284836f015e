"""A recorder on a MODEL: the look at the attention, and the start and end of a run, which makes a record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.types import Layout
from ..methods.recorder import GraphPlace, Records
from .attention.calls import MEMO
from .families import adapter_for
from .families.blocks import tokens_of
from .install import install
from .run.schedule import progress_of

WRAPPER = "boxwright_recorder"


def recorded(
    model: Any,
    layout: Layout,
    records: Records,
    place: Callable[[], GraphPlace | None] = lambda: None,
    report: Callable[[str], None] | None = None,
) -> Any:
    """A clone of the MODEL that adds a record whenever it samples with the layout's conditioning.

    place() is asked at the end of a run where it was made. `report`: see `install`. Raises UnsupportedModelError.
    """
    patched = install(model, layout, [records.edit()], report)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER, partial(_record_run, records, place))
    return patched


def _record_run(
    records: Records,
    place: Callable[[], GraphPlace | None],
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict,
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kw: Any,
) -> Any:
    """SAMPLER_SAMPLE wrapper, inside that of `install`."""
    model = guider.inner_model
    factors = adapter_for(guider.model_patcher).factors
    grids = [tokens_of(tuple(noise.shape[-2:]), factor) for factor in factors]
    schedule = [*map(progress_of(model.model_sampling, sigmas.tolist()), sigmas[:-1].tolist())]
    record = records.begin(schedule, noise.shape[0], grids)
    extra_args["model_options"]["transformer_options"][MEMO][records] = record
    result = executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
    records.keep(record, place())
    return result
