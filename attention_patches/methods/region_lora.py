"""A LoRA for each region, all of them in one pass of the model.

Instead of being added to the weights, a LoRA's change is added to what a layer returns, times the region's share of
each place: y += sum_r w_r * strength_r * B_r A_r x. With w = 1 everywhere that is the LoRA as it is loaded for the
whole picture; where w = 0 the layer is the base model's. LoRA: Hu et al., arXiv 2106.09685; masked in this way by the
practice of the Stable Diffusion community. Coverage, feather, order or blending of overlaps and each region's own time
are those of Region Prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.seam import AttentionSite, LayerEdit
from ..core.types import Layout, StepWindow, widest_window, window_of
from .region_prompt import Overlap, RegionPrompt


@dataclass(frozen=True)
class RegionLora:
    """Settings of all regions' LoRAs."""

    overlap: Overlap = "order"  # as in RegionPrompt
    feather: float = 0.0  # width of the ramp outside a region, in fractions of the image's width and height
    window: StepWindow = StepWindow()

    def __post_init__(self) -> None:
        self._places()  # which checks them

    def edits(self, layout: Layout, loras: Mapping[int, tuple[Any, float]]) -> list[LayerEdit]:
        """What to install for the LoRAs of some regions: number of the region, from 0 -> (change, strength).

        A region without one still covers what lies behind it. No edit where nothing is left to change.
        """
        chosen = [(n, *lora) for n, lora in sorted(loras.items()) if lora[1] != 0.0 and layout.regions[n].strength > 0]
        if not chosen:
            return []
        units = list(dict.fromkeys((id(change), strength) for _, change, strength in chosen))
        of_unit = {id(change): change for _, change, _ in chosen}
        regions = [[n for n, change, s in chosen if (id(change), s) == unit] for unit in units]

        def shares(site: AttentionSite) -> Tensor:
            of_region = self._places().weights(site)
            return torch.stack([of_region[own].sum(dim=0) for own in regions])

        def words(site: AttentionSite) -> Tensor:
            shares = torch.zeros(len(units), layout.columns.shape[1])
            for unit, own in enumerate(regions):
                for number in own:
                    region = layout.regions[number]
                    if window_of(region, self.window).contains(site.progress):
                        shares[unit] = shares[unit].maximum(layout.columns[number].float() * region.strength)
            return shares

        return [
            LayerEdit(
                "region lora",
                tuple(of_unit[change] for change, _ in units),
                tuple(strength for _, strength in units),
                shares,
                words,
                widest_window(layout, self.window),
            )
        ]

    def _places(self) -> RegionPrompt:
        """What says how much of each place belongs to each region."""
        return RegionPrompt(base_ratio=0.0, overlap=self.overlap, feather=self.feather, window=self.window)
