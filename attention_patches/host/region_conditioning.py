"""Regions as the host's own conditioning: masks or areas with a text each, for any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.grids import coverage, feathered
from ..core.marks import without_orders
from ..core.types import Box, BoxwrightError, Region, StepWindow, counted, feather_of, window_of
from .text.layout import check_phrases

MASK_SIDE = 512  # cells of the masks that boxes become; the host stretches them to the latent
# Weight of a base prompt where it should not count: the host divides by the sum of weights, so that it takes over where
# no region counts after all (outside their time, beside the cells of an area).
FALLBACK = 1e-4

Method = Literal["mask", "area"]
Base = Literal["everywhere", "outside"]


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


def texts_in_order(conditioning: list, regions: Sequence[Region]) -> list[list]:
    """Each entry of a CONDITIONING as that of one region. Raises BoxwrightError for another number of entries."""
    check_one_for_each(conditioning, regions)
    return [[entry] for entry in conditioning]


def check_one_for_each(conditioning: list, regions: Sequence[Region]) -> None:
    """Raises BoxwrightError unless a CONDITIONING has as many entries as there are regions."""
    if len(conditioning) != len(regions):
        raise BoxwrightError(
            f"region_texts holds {counted(len(conditioning), 'text')} for {counted(len(regions), 'region')}. Join one "
            "text for each region, in order, with Conditioning (Combine)."
        )
