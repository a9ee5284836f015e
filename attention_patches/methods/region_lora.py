"""A LoRA for each region, all of them in one pass of the model.

Instead of being added to the weights, a LoRA's change is added to what a layer returns, times the region's share of
each place: y += sum_r w_r * strength_r * B_r A_r x. With w = 1 everywhere that is the LoRA as it is loaded for the
whole picture; where w = 0 the layer is the base model's. LoRA: Hu et al., arXiv 2106.09685; masked in this way by the
practice of the Stable Diffusion community. Coverage, feather, order or blending of overlaps and each region's own time
are those of Region Prompt. w may follow the subject inside its region, for each picture apart (subject_masks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.seam import AttentionEdit, AttentionSite, LayerEdit
from ..core.types import BoxwrightError, Layout, StepWindow, widest_window, window_of
from .region_prompt import Overlap, RegionPrompt
from .subject_masks import SubjectMasks

Masks = Literal["boxes", "subject"]


@dataclass(frozen=True)
class RegionLora:
    """Settings of all regions' LoRAs."""

    overlap: Overlap = "order"  # as in RegionPrompt
    feather: float = 0.0  # width of the ramp outside a region, in fractions of the image's width and height
    window: StepWindow = StepWindow()
    masks: Masks = "boxes"  # the regions as drawn, or where in them their subjects are seen
    subject_after: float = 0.25  # of "subject": how much of the schedule is read first; the regions hold as drawn then

    def __post_init__(self) -> None:
        self._places()  # which checks them
        if not 0.0 < self.subject_after <= 1.0:
            raise BoxwrightError(f"subject_after {self.subject_after:g} is outside 0 to 1; choose a number in between.")
        left = self.window.end - self.window.start
        if self.masks == "subject" and self.subject_after >= left:
            raise BoxwrightError(
                f"subject_after {self.subject_after:g} leaves nothing of the time from start {self.window.start:g} to "
                f"end {self.window.end:g}; choose less than {left:g}, or a longer time."
            )

    def edits(
        self,
        layout: Layout,
        loras: Mapping[int, tuple[Any, float]],
        report: Callable[[str], None] | None = None,
    ) -> list[LayerEdit | AttentionEdit]:
        """What to install for the LoRAs of some regions: number of the region, from 0 -> (change, strength).

        A region without one still covers what lies behind it. No edit where nothing is left to change. `report`: told
        by masks "subject" what they do, as the run goes. Raises BoxwrightError where these cannot follow a region.
        """
        chosen = [(n, *lora) for n, lora in sorted(loras.items()) if lora[1] != 0.0 and layout.regions[n].strength > 0]
        if not chosen:
            return []
        units = list(dict.fromkeys((id(change), strength) for _, change, strength in chosen))
        of_unit = {id(change): change for _, change, _ in chosen}
        regions = [[n for n, change, s in chosen if (id(change), s) == unit] for unit in units]

        subjects = self._subjects(layout, [number for number, _, _ in chosen], report)

        def shares(site: AttentionSite) -> Tensor:
            masks = subjects.at(site) if subjects else None
            if subjects is None or masks is None:
                return units_of(self._places(), site)
            followed = (_Followed(**vars(self._places()), masks=dict(zip(subjects.numbers, own))) for own in masks)
            return torch.stack([units_of(places, site) for places in followed])

        def units_of(places: RegionPrompt, site: AttentionSite) -> Tensor:
            of_region = places.weights(site)
            return torch.stack([of_region[own].sum(dim=0) for own in regions])

        def words(site: AttentionSite) -> Tensor:
            shares = torch.zeros(len(units), layout.columns.shape[1])
            for unit, own in enumerate(regions):
                for number in own:
                    region = layout.regions[number]
                    if window_of(region, self.window).contains(site.progress):
                        shares[unit] = shares[unit].maximum(layout.columns[number].float() * region.strength)
            return shares

        window = widest_window(layout, self.window)
        return [
            LayerEdit(
                "region lora",
                tuple(of_unit[change] for change, _ in units),
                tuple(strength for _, strength in units),
                shares,
                words,
                window,
            ),
            *([subjects.edit(window)] if subjects else []),
        ]

    def _subjects(self, layout: Layout, chosen: list[int], report: Callable[[str], None] | None) -> SubjectMasks | None:
        """Of the regions with a LoRA, and of all others whose words are in the prompt: they cover, too."""
        if self.masks == "boxes":
            return None
        others = [n for n, r in enumerate(layout.regions) if r.strength > 0 and bool(layout.columns[n].any())]
        return SubjectMasks(layout, sorted({*chosen, *others}), self.subject_after, report)

    def _places(self) -> RegionPrompt:
        """What says how much of each place belongs to each region."""
        return RegionPrompt(base_ratio=0.0, overlap=self.overlap, feather=self.feather, window=self.window)


@dataclass(frozen=True)
class _Followed(RegionPrompt):
    """What says the same of one picture, whose regions are where their subjects are."""

    masks: Mapping[int, Tensor] = field(default_factory=dict)  # of regions, [h, w]

    def cover(self, site: AttentionSite, number: int) -> Tensor:
        drawn = super().cover(site, number)
        return drawn * self.masks[number].flatten() if number in self.masks else drawn
