"""What autograd may not save: tensors made in inference mode, as nodes and other packs make all of theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Saveable(TorchFunctionMode):
    """Context manager: inference tensors among the operands of an operation are replaced by copies.

    Not the tensor that an operation in place writes to: a copy would lose what is written.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kept = 1 if _writes(getattr(func, "__name__", "")) else 0
        args = (*args[:kept], *(_normal(a) for a in args[kept:]))
        return func(*args, **{name: _normal(value) for name, value in (kwargs or {}).items()})


def saveable(function: Any, *args: Any, **kwargs: Any) -> Any:
    """function(...), in a gradient's pass under `Saveable`."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return function(*args, **kwargs)
    with Saveable():
        return function(*args, **kwargs)


def _writes(name: str) -> bool:
    return name in ("__setitem__", "__set__") or name.startswith("__i") or (name.endswith("_") and name[-2:] != "__")


def _normal(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(map(_normal, value))
    return value
