"""Which models are supported, and how edits reach their attention.

A new model family is one row of the table in `joint.py` or `separate.py`, or one file beside them and one line in
`FAMILIES`.
"""

from __future__ import annotations

from typing import Any

from ...core.types import UnsupportedModelError
from . import joint, separate, unet
from .base import Adapter, Family

FAMILIES: tuple[Family, ...] = (unet.FAMILY, *joint.FAMILIES, *separate.FAMILIES)


# Models of the host whose attention it computes without the options that edits travel in.
UNREACHABLE = ("PixArt", "HunyuanDiT", "ErnieImage")


def adapter_for(model: Any) -> Adapter:
    """What reaches this MODEL's attention. Raises UnsupportedModelError where nothing does."""
    base = model.model
    for family in FAMILIES:
        if family.supports(base):
            return family.bind(base)
    unreachable = any(parent.__name__ in UNREACHABLE for parent in type(base).__mro__)
    why = "ComfyUI computes its attention without the options that edits travel in. " if unreachable else ""
    raise UnsupportedModelError(
        f"Boxwright cannot reach the attention of this model ({type(base).__name__} with a "
        f"{type(getattr(base, 'diffusion_model', None)).__name__}). {why}"
        f"Supported: {'; '.join(family.name for family in FAMILIES)}. "
        "Load one of these, or remove the Boxwright node in front of the sampler."
    )
