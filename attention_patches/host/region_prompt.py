"""Conditioning of the host as the texts that regions read, and what else of it and of a MODEL matters to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.types import BoxwrightError, Layout, counted
from .families import adapter_for
from .region_conditioning import check_one_for_each

# What the host reads from a conditioning and one pass for all regions cannot follow.
ONE_PASS_IGNORES = {
    "area": "its area",
    "mask": "its mask",
    "strength": "its strength",
    "control": "its ControlNet",
    "gligen": "its GLIGEN boxes",
    "start_percent": "its time range",
}


def region_texts(conditioning: list, layout: Layout) -> tuple[Tensor, ...]:
    """One encoded text, float [1, T, C], for each region from a CONDITIONING of as many entries, in order.

    Raises BoxwrightError for another number of entries, another text width, several rows, or hooks (a LoRA of its own).
    """
    check_one_for_each(conditioning, layout.regions)
    return tuple(_text(entry, layout, f"Text {number} of region_texts") for number, entry in enumerate(conditioning, 1))


def background_text(conditioning: list, layout: Layout) -> Tensor:
    """The encoded text of a CONDITIONING of one entry. Raises BoxwrightError as `region_texts` does."""
    if len(conditioning) != 1:
        raise BoxwrightError(f"background holds {counted(len(conditioning), 'text')}; wire a single one.")
    return _text(conditioning[0], layout, "The background")


def _text(entry: list, layout: Layout, name: str) -> Tensor:
    text, options = entry
    width = layout.prompt.embedding.shape[2]
    if text is None or text.ndim != 3 or text.shape[0] != 1 or text.shape[2] != width:
        shape = "none" if text is None else "x".join(map(str, text.shape))
        raise BoxwrightError(
            f"{name} has the shape {shape} instead of 1 x tokens x {width}: it comes from another text encoder, or "
            "holds several prompts. Encode it with the CLIP of Layout Prompt."
        )
    if options.get("hooks") is not None:
        raise BoxwrightError(
            f"{name} carries hooks (a LoRA of its own), and all regions share one pass of the model. Use Region "
            "Conditioning, which takes a pass for each region, or remove the hooks."
        )
    return text


def left_out(conditioning: list) -> list[str]:
    """What of the entries a single pass cannot follow, in words."""
    return [name for key, name in ONE_PASS_IGNORES.items() if any(key in options for _, options in conditioning)]


def chooses_blocks(model: Any) -> bool:
    """Whether RegionPrompt's choice of blocks has an effect on this MODEL."""
    return adapter_for(model).text == "joint"


def reads_pooled_text(model: Any) -> bool:
    """Whether this MODEL reads the prompt as one vector, too."""
    base = model.model
    return bool(getattr(base, "adm_channels", 0)) or getattr(base.diffusion_model, "vector_in", None) is not None
