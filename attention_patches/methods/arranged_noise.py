"""Arranged noise: blocks of the start noise are moved to where the things stand that they would become.

*Guided Image Synthesis via Initial Image Editing* (Mao, Wang and Aizawa, arXiv 2305.03382): a block of the initial
noise has a liking for some words, mostly wherever it stands, and it shows in the cross-attention of the first step;
*The Lottery Ticket Hypothesis in Denoising* (arXiv 2312.08872) collects such blocks. So the blocks that like a phrase
are moved into its box and those that like none of the phrases out of all boxes. Every value stays, each once, so that
mean and variance are those of the draw; the order follows the draw, and no correlation was found in what comes out
(docs/results.md). No step costs more, no attention is touched.

Departures: both papers fill a box with blocks that pass a threshold, or that come from a store of other draws; here all
blocks of the one draw are dealt out at once, so that the sum of what they are worth where they go is the greatest
(`block_moves.dealt`), phrases compete for them, and the noise stays a permutation of itself. What a phrase's attention
is worth is measured by its own mean; several grids count alike; blocks that are in a place of their kind stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.grids import coverage, laid_over, visible_cells
from ..core.seam import NoiseEdit, Start
from ..core.types import BoxwrightError, Layout, View, check_range, counted
from .block_moves import dealt, moved, order_of, whole_blocks
from .box_constraint import Phrase, constrained_phrases

MAX_BLOCK = 64  # latent cells
MAX_WORK = 2**18  # blocks times regions that are dealt at once: above, blocks grow


@dataclass(frozen=True)
class ArrangedNoise:
    """Settings."""

    strength: float = 1.0  # share of the blocks that may move: 0 = off, 1 = all
    block: int = 0  # side of a block in latent cells; 0 = a cell of the grid that is read
    rivalry: float = 0.5  # how much of a block's liking for the best other phrase counts against it

    def __post_init__(self) -> None:
        ranges = {
            "strength": (self.strength, 0.0, 1.0),
            "block": (self.block, 0, MAX_BLOCK),
            "rivalry": (self.rivalry, 0.0, 2.0),
        }
        for name, (value, low, high) in ranges.items():
            check_range(f"{name} of the arranged noise", value, low, high)

    def edits(self, layout: Layout) -> list[NoiseEdit]:
        """What to install. Empty at strength 0, and where no region has a strength."""
        phrases = constrained_phrases(layout)
        return [self.edit(phrases)] if self.strength > 0.0 and phrases else []

    def edit(self, phrases: Sequence[Phrase], keep: Callable[[Plan], None] | None = None) -> NoiseEdit:
        """The edit itself; `keep` is given every plan that it makes."""
        return NoiseEdit("arranged noise", partial(self._arranged, phrases, keep))

    def _arranged(
        self, phrases: Sequence[Phrase], keep: Callable[[Plan], None] | None, noise: Tensor, start: Start
    ) -> tuple[Tensor, str]:
        """The noise with its blocks in another order, each row of the batch for itself; see NoiseEdit."""
        plan = self.plan(phrases, start)
        if plan is None:
            return noise, "the noise stays as it is: no region is at work when this run starts"
        if keep is not None:
            keep(plan)
        rows = [moved(row, source, plan.block) for row, source in zip(noise, plan.sources, strict=True)]
        return torch.stack(rows), plan.report()

    def plan(self, phrases: Sequence[Phrase], start: Start) -> Plan | None:
        """Where every block goes; None where no region is at work."""
        progress = start.maps[0][1].progress
        phrases = [p for p in (_at_work(phrase, progress) for phrase in phrases) if p.areas]
        if not phrases:
            return None
        asked = min(self.block or _cell(start), *start.size)
        block = asked
        while np.prod(whole_blocks(start.size, block)) * (len(phrases) + 1) > MAX_WORK:
            block *= 2
        grid = whole_blocks(start.size, block)
        view = View(width=grid[1] * block / start.size[1], height=grid[0] * block / start.size[0])
        likes = likings(phrases, start, grid, view)
        places = owners(phrases, grid, view)
        free = _free_blocks(start, grid, block, len(likes))
        sources = [self._source(like, places, own, phrases) for like, own in zip(likes.numpy(), free, strict=True)]
        return Plan(block, asked, grid, tuple(p.text for p in phrases), likes, places, torch.stack(sources))

    def _source(self, like: np.ndarray, places: np.ndarray, free: np.ndarray, phrases: Sequence[Phrase]) -> Tensor:
        """`source` of block_moves.moved for one row: like [P, n], places [n], free bool [n]."""
        gains = self.gains(like, phrases)
        source = torch.arange(like.shape[1])
        can = np.flatnonzero(free)
        share = round(self.strength * len(can))
        if share < len(can):
            chosen = _dealt(gains[can], places[can])
            gained = gains[can, chosen] - gains[can, places[can]]
            can = np.sort(can[np.argsort(-gained, kind="stable")[:share]])
        source[can] = torch.from_numpy(can)[order_of(_dealt(gains[can], places[can]), places[can])]
        return source

    def gains(self, like: np.ndarray, phrases: Sequence[Phrase]) -> np.ndarray:
        """What each block is worth in a place of each phrase, and last outside of all: [P, n] -> [n, P + 1]."""
        best = np.stack([np.delete(like, p, axis=0).max(axis=0, initial=0.0) for p in range(len(like))])
        inside = (like - self.rivalry * best) * np.array([p.strength for p in phrases])[:, None]
        return np.concatenate([inside, -like.max(axis=0, keepdims=True)]).T


@dataclass(frozen=True)
class Plan:
    """Where every block of a batch of noises goes."""

    block: int  # latent cells
    asked: int  # the block that was asked for
    grid: tuple[int, int]  # whole blocks down and across
    phrases: tuple[str, ...]
    likes: Tensor  # float64 [B, P, n]: attention of the block as it came, in units of the phrase's mean
    places: np.ndarray  # int [n]: the phrase to which a place belongs, P = none
    sources: Tensor  # int64 [B, n], see block_moves.moved

    def report(self) -> str:
        """One line: how much moved, and how much of each phrase's attention the blocks in its boxes hold now."""
        n = self.grid[0] * self.grid[1]
        changed = float((self.sources != torch.arange(n)).sum(dim=1).double().mean())
        parts = []
        for p, phrase in enumerate(self.phrases):
            there = torch.from_numpy(self.places == p)
            like = self.likes[:, p]
            after = like.gather(1, self.sources)
            before, now = (float((v[:, there].sum(1) / v.sum(1).clamp_min(1e-12)).mean()) for v in (like, after))
            parts.append(f"{phrase[:40]} {before:.0%} -> {now:.0%}")
        note = f" (blocks of {self.asked} would be too many)" if self.block != self.asked else ""
        return (
            f"1 evaluation; {changed:.0f} of {counted(n, 'block')} of {self.block} latent cells moved{note}; "
            f"attention in the boxes: {', '.join(parts)}"
        )


def likings(phrases: Sequence[Phrase], start: Start, grid: tuple[int, int], view: View) -> Tensor:
    """How much each block attends to each phrase, in units of the phrase's mean: float64 [B, P, n].

    Raises BoxwrightError where the model's attention is not finite.
    """
    found = []
    for maps, site in start.maps:
        if not bool(maps.isfinite().all()):
            raise BoxwrightError(
                "The attention that the start noise is arranged by holds NaN or infinite values: the model overflows "
                "in its precision, and would draw nothing either. Start ComfyUI with --bf16-unet or --fp32-unet, or "
                "look at the nodes that made the model and the latent."
            )
        maps = maps.to("cpu", torch.float64)  # on the CPU: not every device has doubles
        seen = torch.stack([maps[:, list(phrase.columns)].mean(dim=1) for phrase in phrases], dim=1)
        seen = seen / seen.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
        means, under = laid_over(seen, site.view, grid, view)
        found.append((means * under + 1.0 - under).flatten(2))
    return torch.stack(found).mean(dim=0)


def owners(phrases: Sequence[Phrase], grid: tuple[int, int], view: View) -> np.ndarray:
    """Which phrase each place of a grid of blocks belongs to, int [n]; len(phrases) = none.

    A place belongs to the area that covers more than half of it, an area smaller than a place has the best one, and
    where several do, to the last in the list.
    """
    result = np.full(grid[0] * grid[1], len(phrases))
    for number, phrase in enumerate(phrases):
        for area in phrase.areas:
            result[visible_cells(coverage(area, grid, view)).flatten().numpy()] = number
    return result


def _at_work(phrase: Phrase, progress: float) -> Phrase:
    """The phrase with those of its areas that are at work at a moment."""
    on = [i for i, window in enumerate(phrase.windows) if window.contains(progress) and phrase.strengths[i] > 0]

    def those(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in on)

    areas, strengths, windows = map(those, (phrase.areas, phrase.strengths, phrase.windows))
    return Phrase(phrase.text, phrase.columns, areas, strengths, windows)


def _cell(start: Start) -> int:
    """Latent cells under a cell of the coarsest grid that was read."""
    site = start.maps[-1][1]
    return max(1, round(site.view.height * start.size[0] / site.grid[0]))


def _free_blocks(start: Start, grid: tuple[int, int], block: int, rows: int) -> np.ndarray:
    """Which blocks may move, bool [B, n]: those all of whose cells are drawn anew."""
    if start.free is None:
        return np.ones((rows, grid[0] * grid[1]), dtype=bool)
    whole = start.free[:, : grid[0] * block, : grid[1] * block].cpu()
    return whole.unflatten(2, (grid[1], block)).unflatten(1, (grid[0], block)).all(4).all(2).flatten(1).numpy()


def _dealt(gains: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The class of every block, as many of each as there are places of it. In a tie a block stays where it is."""
    settled = gains.copy()
    settled[np.arange(len(places)), places] += 1e-9
    return dealt(settled, np.bincount(places, minlength=gains.shape[1]))
