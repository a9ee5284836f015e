"""DenseDiffusion (Kim et al., arXiv 2308.12964): attention scores are raised where the layout wants them, and lowered
elsewhere.

For an image token q and a key k, in cross- and self-attention, with the scaled scores S of one head (equations 4 to 9):
    S + a (max_k S - S) where R = 1,    S - a (S - min_k S) where R = 0,    a = lambda_t (1 - s_q),
    lambda_t = w (t / 1000)^5.
R = 1: the word belongs to a phrase whose segment holds q, or two image tokens share a segment; s_q is the part of the
image that q's segment covers. Phrases are read as they are encoded alone. The first 30 % of the schedule, in the rows
of the prompt only.

Departures: t / 1000 is 1 minus the progress of the schedule; a is at most 1, so that a row keeps its range whatever w;
what no region covers is a segment of its own, to which the words of no region belong (the paper wants a phrase for it),
and where there are no such words, its scores for other tokens stay; in overlaps the later region has the cells, or both
have them ("blend", s_q being the sum of their areas, at most 1), or each has the share of a cell that the opacity of
those in front leaves it ("occlude"), and scores go to a place between the row's ends; a region's strength scales a in
its segment; a model that joins text and image in one row (Flux) has the range of each part by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.grids import covered, visible_cells
from ..core.seam import AttentionEdit, AttentionKind, AttentionSite, ContextEdit
from ..core.types import Layout, StepWindow, check_range, widest_window, window_of
from .occlusion import occluded
from .region_prompt import Overlap, opacities, regions_at_work

FADING = 5  # the power of t / 1000


@dataclass(frozen=True)
class DenseDiffusion:
    """Settings; the defaults are the paper's."""

    strength: float = 1.0  # 0 = off; scales both weights
    cross_weight: float = 1.0  # w of image-to-text attention
    self_weight: float = 0.3  # w of the image's attention to itself
    area_adaptive: float = 1.0  # how much a segment's area weakens the change: 1 as published, 0 = not at all
    overlap: Overlap = "order"
    window: StepWindow = StepWindow(0.0, 0.3)
    own_phrases: bool = True  # phrases as encoded alone, in place of what the prompt made of them

    def __post_init__(self) -> None:
        for name, limit in (("strength", 1.0), ("cross_weight", 2.0), ("self_weight", 2.0), ("area_adaptive", 1.0)):
            check_range(name, getattr(self, name), 0.0, limit)

    def edits(self, layout: Layout) -> list[AttentionEdit | ContextEdit]:
        """The changes to install for this layout; none at strength 0 or where both weights are."""
        weights = [(kind, self.strength * w) for kind, w in self._weights() if w > 0 and self.strength > 0]
        if not weights:
            return []
        window = widest_window(layout, self.window)
        edits: list[AttentionEdit | ContextEdit] = [
            AttentionEdit("dense", "scores", self._modulate(w), window, kind) for kind, w in weights
        ]
        if not self.own_phrases:
            return edits
        return [*self._phrases(layout), *edits]

    def _phrases(self, layout: Layout) -> Iterator[ContextEdit]:
        """Every phrase as it is encoded alone, by the strength of its region and in its window."""
        for number, region in enumerate(layout.regions):
            strength = self.strength * region.strength
            if strength > 0:
                own = partial(own_phrase, number=number, strength=strength)
                yield ContextEdit("dense: phrases", own, window_of(region, self.window))

    def _weights(self) -> list[tuple[AttentionKind, float]]:
        return [("image_text", self.cross_weight), ("image_image", self.self_weight)]

    def _modulate(self, weight: float) -> Callable[[Tensor, AttentionSite], Tensor]:
        def modulate(scores: Tensor, site: AttentionSite) -> Tensor:
            segments, reach = self._segments(site, scores.device)
            amount = (weight * fading(site.progress) * reach).clamp(max=1.0)[site.queries, None]
            here = segments[:, site.queries]
            if site.kind == "image_image":
                return modulated(scores, in_common(here, segments), amount)
            wanted, changed = self._words(site, scores.device)
            own = shared(here, wanted) if here.dtype == torch.bool else (here.T @ wanted.float()).clamp(max=1.0)
            return modulated(scores, own, amount * shared(here, changed))

        return modulate

    def _segments(self, site: AttentionSite, device: torch.device) -> tuple[Tensor, Tensor]:
        """`segments` and `reach`, worked out once for each grid of a run while the same regions are at work."""

        def make() -> tuple[Tensor, Tensor]:
            segments = self.segments(site)
            return segments.to(device), self.reach(segments, site).to(device)

        return site.kept(("dense", *self._now(site), device), make)

    def _words(self, site: AttentionSite, device: torch.device) -> list[Tensor]:
        """`words`, likewise."""
        key = ("dense: words", *self._now(site), device)
        return site.kept(key, lambda: [words.to(device) for words in self.words(site)])

    def _now(self, site: AttentionSite) -> tuple[Any, ...]:
        """What tells these settings and their layout from others of the run, and which regions are at work."""
        return id(self), site.layout.key, tuple(regions_at_work(site, self.window))

    def segments(self, site: AttentionSite) -> Tensor:
        """The cells of each region and, last, of the background, bool [R + 1, N]; every cell is in one at least.

        Where regions occlude each other, the share that each has of a cell, float, 1 in sum.
        """
        cells = torch.stack([visible_cells(covered(region, site)).flatten() for region in site.layout.regions])
        cells &= torch.tensor(regions_at_work(site, self.window))[:, None]
        if self.overlap == "occlude":
            return torch.cat(occluded(cells.float(), opacities(site.layout)))
        if self.overlap == "order":
            later = torch.zeros_like(cells[0])
            for number in reversed(range(len(cells))):
                own = cells[number].clone()
                if bool((own & ~later).any()):  # else wholly hidden, as it happens on coarse grids: both have the cells
                    cells[number] &= ~later
                later = later | own
        return torch.cat([cells, ~cells.any(dim=0, keepdim=True)])

    def reach(self, segments: Tensor, site: AttentionSite) -> Tensor:
        """(1 - s_q) of every cell, [N] in 0..1, times the strength of its region."""
        area = (segments.float().mean(dim=1)[:, None] * segments).sum(dim=0).clamp(max=1.0)
        strengths = torch.tensor([*(region.strength for region in site.layout.regions), 1.0])
        strength = strengths[:, None] * segments
        strength = strength.amax(dim=0) if segments.dtype == torch.bool else strength.sum(dim=0)
        return (1.0 - self.area_adaptive * area) * strength

    def words(self, site: AttentionSite) -> tuple[Tensor, Tensor]:
        """Which text columns each segment wants, and which it changes at all, bool [R + 1, T] each."""
        layout, now = site.layout, torch.tensor(regions_at_work(site, self.window))
        own = layout.columns & now[:, None]
        free = torch.tensor([role == "word" for role in layout.prompt.tokens.roles]) & ~layout.columns.any(dim=0)
        idle = layout.columns.any(dim=0) & ~own.any(dim=0)
        changed = (~idle).repeat(len(own) + 1, 1)
        if not bool(free.any()):
            changed[-1] = own.any(dim=0)
        return torch.cat([own, free[None]]), changed


def modulated(scores: Tensor, wanted: Tensor, amount: Tensor) -> Tensor:
    """Scores [..., n, K] moved by the share `amount` [n, 1 or K] to their row's largest where wanted, else smallest.

    `wanted`: bool [n, K], or how much, 0..1: to a place between the two. An amount of 0 to 1 keeps every row within its
    range.
    """
    high, low = scores.amax(dim=-1, keepdim=True), scores.amin(dim=-1, keepdim=True)
    target = torch.where(wanted, high, low) if wanted.dtype == torch.bool else torch.lerp(low, high, wanted)
    return torch.lerp(scores, target, amount.to(scores))


def shared(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a query and a key have a segment in common: bool [S, n] and [S, K] -> [n, K]."""
    return (queries.float().T @ keys.float()) > 0


def in_common(queries: Tensor, keys: Tensor) -> Tensor:
    """How far queries and keys are in the same segments, [S, n] and [S, K] -> [n, K]: for shares of cells 1 where they
    are equal, 0 where they have none in common."""
    if queries.dtype == torch.bool:
        return shared(queries, keys)
    return (queries.sqrt().T @ keys.sqrt()).clamp(max=1.0)


def fading(progress: float) -> float:
    """(t / 1000)^5 of a training timestep t; 1 at the start of the schedule, 0 at its end."""
    return (1.0 - progress) ** FADING


def own_phrase(context: Tensor, layout: Layout, number: int, strength: float) -> Tensor:
    """The encoded prompt [B, T, C] with a region's columns moved by `strength` to its phrase as that is encoded alone.

    Columns that are not a whole number of the phrase's words stay as they are (tokenizers that join words).
    """
    text, places = layout.region_texts[number], layout.columns[number].nonzero()[:, 0]
    words = [i for i, role in enumerate(text.tokens.roles) if role == "word"]
    if not words or len(places) % len(words):
        return context
    result, places = context.clone(), places.to(context.device)
    own = text.embedding[0, words].to(result).repeat(len(places) // len(words), 1)
    result[:, places] = torch.lerp(result[:, places], own.expand_as(result[:, places]), strength)
    return result
