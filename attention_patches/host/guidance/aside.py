"""A pass of the model beside the sampler's own: to take a gradient, or to see what it attends to."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP

from ..attention.calls import Extra
from ..run.run import WRAPPER, Run


class Enough(Exception):
    """The last layer that is needed has been read: the pass goes no further."""


def options_aside(options: dict[str, Any], run: Run | None, extra: Extra) -> dict[str, Any]:
    """A copy of a run's model options without anybody's caches, wrappers and further devices.

    The edits of a run of ours are in it, with what `extra` says of them.
    """
    local = comfy.model_patcher.create_model_options_clone(options)
    for name in ("multigpu_clones", "model_function_wrapper", "context_handler"):
        local.pop(name, None)
    inner = local["transformer_options"]
    inner["wrappers"] = {} if run is None else {WrappersMP.APPLY_MODEL: {WRAPPER: [run.apply_model]}}
    inner[Run.EXTRA] = extra
    return local


def entry_aside(entry: dict[str, Any]) -> dict[str, Any]:
    """A conditioning entry without its ControlNet and its GLIGEN boxes."""
    return {name: value for name, value in entry.items() if name not in ("control", "gligen")}
