"""Conditioning of the host as the texts of regions, and regions as conditioning of the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.grids import coverage, feathered
from ..core.marks import without_orders
from ..core.types import Box, BoxwrightError, Layout, Region, StepWindow, counted, feather_of, window_of
from .families import adapter_for
from .text.layout import check_phrases

MASK_SIDE = 512  # cells of the masks that boxes become; the host stretches them to the latent
# Weight of a base prompt where it should not count: the host divides by the sum of weights, so that it takes over where
# no region counts after all (outside their time, beside the cells of an area).
FALLBACK = 1e-4
# What the host reads from a conditioning and one pass for all regions cannot follow.
ONE_PASS_IGNORES = {
    "area": "its area", "mask": "its mask", "strength": "its strength", "control": "its ControlNet",
    "gligen": "its GLIGEN boxes", "start_percent": "its time range",
}  # fmt: skip

Method = Literal["mask", "area"]
Base = Literal["everywhere", "outside"]


# --- the couple's texts -----------------------------------------------------------------------------------------------


def region_texts(conditioning: list, layout: Layout) -> tuple[Tensor, ...]:
    """One encoded text, float [1, T, C], for each region from a CONDITIONING of as many entries, in order.

    Raises BoxwrightError for another number of entries, another text width, several rows, or hooks (a LoRA of its own).
    """
    if len(conditioning) != len(layout.regions):
        raise BoxwrightError(
            f"region_texts holds {counted(len(conditioning), 'text')}, and the layout "
            f"{counted(len(layout.regions), 'region')}. Join one text for each region, in order, with Conditioning "
            "(Combine)."
        )
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


# --- regions as the host's own conditioning ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionConditioning:
    """Regions as masks or areas of the host: each its own pass of the model, for any model."""

    method: Method = "mask"  # "mask": ConditioningSetMask; "area": ConditioningSetArea (Percentage), boxes only
    strength: float = 1.0  # every region's own strength multiplies it
    base: Base = "everywhere"  # where the base prompt counts; "outside": only where no region is
    base_strength: float = 1.0
    feather: float = 0.0  # of masks, see RegionPrompt
    window: StepWindow = StepWindow()

    def combined(self, base: list, regions: Sequence[Region], texts: Sequence[list | None]) -> list:
        """The base conditioning followed by those of the regions; None for regions that have none.

        Raises BoxwrightError for painted regions as areas.
        """
        pairs = zip(regions, texts, strict=True) if self.strength > 0 else ()
        heard = [(region, text) for region, text in pairs if text is not None and region.strength > 0]
        result = self._base(base, [region for region, _ in heard])
        for region, text in heard:
            result = result + self._of_region(region, text)
        return result

    def _base(self, base: list, regions: list[Region]) -> list:
        if self.base_strength != 1.0:
            base = _with(base, {"strength": self.base_strength})
        if self.base == "outside" and regions:
            sides = (MASK_SIDE, MASK_SIDE)
            inside = torch.stack([self._feathered(coverage(region.area, sides), region) for region in regions])
            base = _masked(base, (1.0 - inside.amax(dim=0)).clamp_min(FALLBACK)[None], 1.0)
        return base

    def _of_region(self, region: Region, text: list) -> list:
        strength = self.strength * region.strength
        if self.method == "mask":
            text = _masked(text, self._mask(region)[None], strength)
        elif isinstance(region.area, Box):
            box = region.area
            area = ("percentage", box.height, box.width, box.y, box.x)
            values = {"area": area, "strength": strength, "set_area_to_bounds": False}
            text = _with(text, values)
        else:
            raise BoxwrightError(
                f'Region "{region.phrase}" is painted, and an area of the host is a rectangle. Choose the method '
                '"mask", or draw a box.'
            )
        window = window_of(region, self.window)
        if window == StepWindow():
            return text
        return _with(text, {"start_percent": window.start, "end_percent": window.end})

    def _mask(self, region: Region) -> Tensor:
        """[H, W] in 0..1: painted masks in their own size."""
        area = region.area
        painted = coverage(area, (MASK_SIDE, MASK_SIDE)) if isinstance(area, Box) else area.float().cpu()
        return self._feathered(painted, region)

    def _feathered(self, mask: Tensor, region: Region) -> Tensor:
        return feathered(mask, feather_of(region, self.feather))


def _with(conditioning: list, values: dict[str, Any]) -> list:
    """Copies of the entries with further options, as the host's own nodes make them."""
    return [[text, {**options, **values}] for text, options in conditioning]


def _masked(conditioning: list, mask: Tensor, strength: float) -> list:
    values = {"mask": mask, "set_area_to_bounds": False, "mask_strength": strength}
    return _with(conditioning, values)


def encoded_phrases(clip: Any, regions: Sequence[Region], negative: bool) -> list[list | None]:
    """The CONDITIONING of each region's phrase as CLIP Text Encode makes it; None where a region has no negative.

    LoRA tags and BREAK are left out.
    """
    check_phrases([region.phrase for region in regions])
    texts = [region.negative if negative else region.phrase for region in regions]
    phrases = [without_orders(text)[0] for text in texts]
    encoded = {
        phrase: clip.encode_from_tokens_scheduled(clip.tokenize(phrase)) for phrase in dict.fromkeys(phrases) if phrase
    }
    return [encoded[phrase] if phrase else None for phrase in phrases]


def same_length(regions: Sequence[Region], conditioning: list) -> list[list]:
    """Each entry of a CONDITIONING as that of one region. Raises BoxwrightError for another number of entries."""
    if len(conditioning) != len(regions):
        raise BoxwrightError(
            f"region_texts holds {counted(len(conditioning), 'text')} for {counted(len(regions), 'region')}. Join one "
            "text for each region, in order, with Conditioning (Combine)."
        )
    return [[entry] for entry in conditioning]
