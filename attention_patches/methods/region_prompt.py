"""Region prompts: every region reads its own encoded text, all of them in one pass of the model.

"Attention couple", as the Stable Diffusion community calls it, and the regional attention of RPG (Yang et al., arXiv
2401.11708): in every cross-attention the image tokens of a region attend to the region's text instead of the prompt's.
Here with exact weights: coverage of each cell, feather, strength, order or blending of overlaps and a share of the base
prompt make one convex combination of attentions for every image token, so that soft edges need no rounding and what no
region covers reads the base prompt (or a background text), in which the words of a region are invisible outside it at
first (rectified attention): else the prompt draws its objects once more between the regions. Invisible to the end,
objects that the noise does not favour in their regions would be missing (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.grids import covered, feathered
from ..core.seam import AttentionEdit, AttentionSite, ContextEdit, Rows, TextMix, ending
from ..core.types import BoxwrightError, Layout, StepWindow, check_range, feather_of, widest_window, window_of
from .occlusion import occluded, transmittance
from .rectified_attention import RectifiedAttention

Overlap = Literal["order", "blend", "occlude"]
# In which blocks of a model with one joint attention -> RegionPrompt's `every` and `blocks`.
BLOCKS: dict[str, tuple[int, StepWindow]] = {
    "all": (1, StepWindow()),
    "every second": (2, StepWindow()),
    "first half": (1, StepWindow(0.0, 0.5)),
    "second half": (1, StepWindow(0.5, 1.0)),
}


@dataclass(frozen=True)
class RegionPrompt:
    """Settings of the couple."""

    strength: float = 1.0  # 0 = off; every region's own strength multiplies it
    base_ratio: float = 0.2  # share of the base prompt inside the regions: 0 = none, 1 = nothing else
    confine_end: float = 0.4  # until when the base prompt's words for a region are invisible outside it; 0 = never
    # "order": later regions lie on earlier ones; "blend": they share by strength; "occlude": see methods/occlusion.py
    overlap: Overlap = "order"
    feather: float = 0.0  # width of the ramp outside a region, in fractions of the image's width and height
    window: StepWindow = StepWindow()
    # Of models with one joint attention: in which blocks the image reads the regions' texts. Elsewhere it reads the
    # prompt, and the texts go on seeing their own places.
    every: int = 1  # 1 = in all, 2 = in every second, ...
    blocks: StepWindow = StepWindow()  # ... of this part of the blocks, in the order they run

    def __post_init__(self) -> None:
        for name in ("strength", "base_ratio", "confine_end", "feather"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        if self.every < 1:
            raise BoxwrightError(f"every {self.every} is below 1; 1 takes all blocks, 2 every second.")

    def edits(
        self,
        layout: Layout,
        texts: Sequence[Tensor] | None = None,
        background: Tensor | None = None,
    ) -> list[TextMix | AttentionEdit | ContextEdit]:
        """The mixes to install for this layout: of its own rows and, where regions have negatives, of the negative's.

        `texts`: what the regions read instead of their phrases encoded alone, float [1, T, C] for each region.
        `background`: what the rest of the image reads instead of the prompt. No edits at strength 0, and where nothing
        is left to mix.
        """
        own = list(texts) if texts is not None else [text.embedding for text in layout.region_texts]
        negatives = [text and text.embedding for text in layout.region_negatives or (None,) * len(layout.regions)]
        mixes = [*self._mix(layout, [*own, background], "layout"), *self._mix(layout, [*negatives, None], "negative")]
        confining = RectifiedAttention(self.strength, self.window, self.feather)
        if self.overlap == "occlude":
            confining = _Unhidden(self.strength, self.window, self.feather, couple=self)
        confined = confining.edits(layout) if mixes else []
        return [*ending(confined, self.confine_end), *mixes]

    def _mix(self, layout: Layout, texts: list[Tensor | None], rows: Rows) -> list[TextMix]:
        """The mix of the texts of every region and of the background, None for those that read the row's own text."""
        strengths = [*(region.strength for region in layout.regions), 1.0]
        heard = [i for i, text in enumerate(texts) if text is not None and strengths[i] > 0]
        if self.strength == 0.0 or self.base_ratio == 1.0 or not heard:
            return []

        def weigh(site: AttentionSite) -> Tensor:
            return self.weights(site)[heard]

        window = widest_window(layout, self.window)
        if heard[-1] == len(texts) - 1:  # the background's time is the method's, whatever the regions have
            window = StepWindow(min(window.start, self.window.start), max(window.end, self.window.end))
        return [TextMix("region prompt", tuple(texts[i] for i in heard), weigh, window, rows, where=self._reads)]

    def _reads(self, site: AttentionSite) -> bool:
        return self.blocks.contains(site.block / site.blocks) and site.block % self.every == 0

    def weights(self, site: AttentionSite) -> Tensor:
        """What each region, and last the background, is read by; [R + 1, N], the sum over them at most 1."""
        cover = self.covers(site)
        left = torch.ones_like(cover[:1])
        if self.overlap == "order":
            # What later regions let through: the product of 1 - cover over those behind in the list.
            through = torch.cat([torch.flip(torch.cumprod(torch.flip(1.0 - cover, [0]), dim=0), [0]), left])
            shares = cover * through[1:]
            rest = through[:1]
        elif self.overlap == "occlude":
            shares, rest = occluded(cover, opacities(site.layout))
        else:
            total = cover.sum(dim=0, keepdim=True)
            shares = cover / total.clamp_min(1.0)
            rest = (1.0 - total).clamp_min(0.0)
        active = self.window.contains(site.progress)
        background = rest * (self.strength if active else 0.0)
        return torch.cat([shares, background]) * (1.0 - self.base_ratio)

    def covers(self, site: AttentionSite) -> Tensor:
        """`cover` of every region, [R, N] in 0..1."""
        return torch.stack([self.cover(site, number) for number in range(len(site.layout.regions))])

    def cover(self, site: AttentionSite, number: int) -> Tensor:
        """How much of each cell a region takes, [N] in 0..1: its coverage with feather, times its strength."""
        region = site.layout.regions[number]
        strength = self.strength * region.strength * window_of(region, self.window).contains(site.progress)
        return (strength * feathered(covered(region, site), feather_of(region, self.feather), site.view)).flatten()


@dataclass(frozen=True)
class _Unhidden(RectifiedAttention):
    """The prompt's words for a region are visible only where no region in front hides it."""

    couple: RegionPrompt = RegionPrompt()

    def seen(self, site: AttentionSite) -> Tensor:
        return super().seen(site) * transmittance(self.couple.covers(site), opacities(site.layout))


def opacities(layout: Layout) -> Tensor:
    """What each region hides of those behind it, [R] in 0..1."""
    return torch.tensor([region.opacity for region in layout.regions])


def regions_at_work(site: AttentionSite, window: StepWindow) -> list[bool]:
    """Which of the layout's regions act now: those of some strength, in their own window or else this one."""
    return [r.strength > 0 and window_of(r, window).contains(site.progress) for r in site.layout.regions]
