"""Box constraint: phrases are drawn into their boxes by moving the latent (BoxDiff, arXiv 2307.10816).

Losses on cross-attention maps say how far each phrase is from its box; the latent follows their gradient before the
model predicts the noise of the step. Departs from the published code: any grid (not only 16 x 16); a phrase of several
tokens counts as one (their relevance is summed); several boxes of a phrase share the outer and corner terms and have an
inner term each; at least one cell is taken where the top share of a box is less than one; cells are those covered by
more than half (the code rounds edges); refinement recomputes every term afterwards; no passes after the window.

`attend_excite` is the loss of Attend-and-Excite (arXiv 2301.13826): every phrase somewhere, no boxes.
`fast` moves the prediction instead of the latent, with the gradient of the ordinary forward, as iLGD (arXiv 2405.14101)
does; the losses are those of BoxDiff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .grids import coverage, visible_cells
from .types import (
    AttentionLoss,
    AttentionSite,
    Box,
    BoxwrightError,
    LatentGuide,
    Layout,
    StepWindow,
    widest_window,
    window_of,
)

ALWAYS = StepWindow()
CONTRAST = 100.0  # the paper's factor on the maps before tokens compete

Mode = Literal["boxdiff", "fast", "attend_excite"]
Competition = Literal["all", "words"]


@dataclass(frozen=True)
class BoxConstraint:
    """How phrases are held to their boxes. `PUBLISHED` has the paper's numbers."""

    mode: Mode = "boxdiff"
    step_size: float = 20.0  # of the latent in units of the paper; 0 = off
    step_end: float = 0.5  # the squared step size falls linearly to this share at the end of the whole schedule
    window: StepWindow = StepWindow(0.0, 0.5)
    iterations: int = 1  # gradient steps before each model evaluation
    refine: bool = False  # repeat at some steps until the worst phrase reaches a target
    inner: float = 1.0  # weight of "the phrase is in the box"
    outer: float = 1.0  # weight of "it is nowhere else"
    corner: float = 1.0  # weight of "it reaches the edges of the box"
    top_fraction: float = 0.2  # share of the cells inside (outside) that must (must not) see the phrase, 0 < f <= 1
    corner_width: int = 1  # cells on either side of an edge that the corner term looks at
    smoothing: float = 0.7071  # standard deviation of the 3 x 3 Gaussian, cells; 0 = none
    competition: Competition = "all"  # which tokens compete for a cell: all but the start token, or the prompt's words
    max_change: float = 0.0  # largest change of a latent value in one gradient step, in units of sigma; 0 = no limit
    targets: tuple[tuple[float, float], ...] = field(default=((0.0, 0.05), (0.2, 0.5), (0.4, 0.8)))
    refine_iterations: int = 20  # at most, at each target

    def __post_init__(self) -> None:
        ranges = {
            "step_size": (self.step_size, 0.0, 1000.0),
            "step_end": (self.step_end, 0.0, 1.0),
            "iterations": (self.iterations, 1, 50),
            "inner": (self.inner, 0.0, 100.0),
            "outer": (self.outer, 0.0, 100.0),
            "corner": (self.corner, 0.0, 100.0),
            "top_fraction": (self.top_fraction, 0.01, 1.0),
            "corner_width": (self.corner_width, 0, 64),
            "smoothing": (self.smoothing, 0.0, 10.0),
            "max_change": (self.max_change, 0.0, 100.0),
            "refine_iterations": (self.refine_iterations, 0, 100),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise BoxwrightError(f"{name} of the box constraint is {value:g}; choose {low:g} to {high:g}.")

    def guides(self, layout: Layout) -> list[LatentGuide]:
        """What to install. Empty where nothing is constrained: step size 0, or every region has strength 0."""
        phrases = constrained_phrases(layout, self.window)
        if self.step_size == 0 or not phrases:
            return []
        losses = _Losses(self, layout, phrases)
        refines = self.refine and self.mode != "fast"
        return [
            LatentGuide(
                name=f"box constraint ({self.mode})",
                loss=losses.total,
                step_size=self.step_at,
                window=widest_window(layout, self.window),
                iterations=self.iterations,
                max_change=self.max_change,
                moves="prediction" if self.mode == "fast" else "latent",
                refine_loss=losses.worst if refines else None,
                targets=self.targets if refines else (),
                refine_iterations=self.refine_iterations if refines else 0,
            )
        ]

    def step_at(self, progress: float) -> float:
        """Step size at a point of the schedule, 0 = the noisiest: the published square root of a line."""
        return self.step_size * math.sqrt(1.0 + (self.step_end - 1.0) * progress)


PUBLISHED = BoxConstraint(refine=True)


@dataclass(frozen=True)
class Phrase:
    """The regions that say the same words of the prompt, and where these stand."""

    text: str
    columns: tuple[int, ...]  # its tokens; no tensor, since autograd cannot save those of the host's inference mode
    areas: tuple[Box | Tensor, ...]
    strengths: tuple[float, ...]  # length of areas
    windows: tuple[StepWindow, ...]  # length of areas: when each of them counts

    @property
    def strength(self) -> float:
        return max(self.strengths)


def constrained_phrases(layout: Layout, window: StepWindow = ALWAYS) -> tuple[Phrase, ...]:
    """The layout's phrases with a strength above 0; regions that own the same columns are one phrase.

    `window` is that of regions without one of their own.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for number, (region, owned) in enumerate(zip(layout.regions, layout.columns, strict=True)):
        words = [c for c in owned.nonzero().flatten().tolist() if layout.prompt.tokens.roles[c] == "word"]
        if region.strength > 0 and words:
            found.setdefault(tuple(words), []).append(number)
    return tuple(
        Phrase(
            layout.regions[numbers[0]].phrase,
            columns,
            tuple(layout.regions[n].area for n in numbers),
            tuple(layout.regions[n].strength for n in numbers),
            tuple(window_of(layout.regions[n], window) for n in numbers),
        )
        for columns, numbers in found.items()
    )


def small_boxes(layout: Layout, grid: tuple[int, int]) -> list[str]:
    """The phrases of boxes that no cell of the grid is covered by for more than half; they grow to one cell."""
    phrases = constrained_phrases(layout)
    return [p.text for p in phrases for area in p.areas if not bool((coverage(area, grid) > 0.5).any())]


def relevance(maps: Tensor, roles: tuple[str, ...], competition: Competition = "all") -> Tensor:
    """Which token wins each cell: attention [B, T, h, w] -> softmax over the competing tokens, 0 for the others.

    The paper's softmax of 100 times the map. `competition`: "all" but the start token as for SD 1.x, or "words" only.
    """
    rivals = [role == "word" if competition == "words" else role != "start" for role in roles]
    out = ~torch.tensor(rivals, device=maps.device)
    return (maps.float() * CONTRAST).masked_fill(out[:, None, None], -torch.inf).softmax(dim=1)


def smoothed(values: Tensor, deviation: float) -> Tensor:
    """[B, h, w] through a 3 x 3 Gaussian, edges reflected."""
    if deviation == 0 or min(values.shape[-2:]) < 2:
        return values
    side = math.exp(-0.5 / deviation**2)
    line = values.new_tensor([side, 1.0, side]) / (1.0 + 2.0 * side)
    padded = torch.nn.functional.pad(values[:, None], (1, 1, 1, 1), mode="reflect")
    kernel = (line[:, None] * line[None, :])[None, None]
    return torch.nn.functional.conv2d(padded, kernel)[:, 0]


def top_mean(values: Tensor, cells: Tensor, fraction: float) -> Tensor:
    """Mean of the largest values [B, h, w] in the cells (bool [h, w]): a fraction of them, at least one. [B]

    0 where there is no cell.
    """
    count = int(cells.sum())
    if count == 0:
        return values.new_zeros(values.shape[0])
    inside = values[:, cells]
    return inside.topk(max(1, math.floor(fraction * count)), dim=1).values.mean(dim=1)


def inner_loss(values: Tensor, cells: Tensor, fraction: float) -> Tensor:
    """How far the best cells of a box are from being the phrase's own, [B] in 0..1."""
    return (1.0 - top_mean(values, cells, fraction)).clamp_min(0.0)


def outer_loss(values: Tensor, cells: Tensor, fraction: float) -> Tensor:
    """How much the phrase is seen outside its boxes, [B] in 0..1."""
    return top_mean(values, ~cells, fraction)


def corner_loss(values: Tensor, cells: Tensor, width: int) -> Tensor:
    """How far the projections of the map are from those of the boxes near their edges, [B].

    Divided by the side of the grid as in the published code (the paper divides by the number of cells looked at).
    """
    loss = values.new_zeros(values.shape[0])
    for axis in (1, 2):
        seen, wanted = values.amax(dim=axis), cells.any(dim=axis - 1)
        near = edge_cells(wanted, width)
        loss = loss + ((seen - wanted.float()).abs() * near).sum(dim=1) / wanted.numel()
    return loss


def edge_cells(wanted: Tensor, width: int) -> Tensor:
    """Bool [n]: cells within `width` of an end of a run of True; the end after a run is the first cell behind it."""
    edges = []
    for cell, inside in enumerate(wanted.tolist()):
        if inside != (bool(wanted[cell - 1]) if cell else False):
            edges.append(cell)
    if bool(wanted[-1]):
        edges.append(len(wanted))
    near = torch.zeros_like(wanted)
    for edge in edges:
        near[max(0, edge - width) : edge + width + 1] = True
    return near


class _Losses:
    """The losses of one layout's phrases on attention maps [B, T, h, w]."""

    def __init__(self, settings: BoxConstraint, layout: Layout, phrases: tuple[Phrase, ...]) -> None:
        self.settings, self.layout, self.phrases = settings, layout, phrases
        self.roles = layout.prompt.tokens.roles

    def total(self, maps: Tensor, site: AttentionSite) -> AttentionLoss:
        if self.settings.mode == "attend_excite":
            return self._worst(maps, site, whole=True)
        terms, totals = [], []
        for phrase, values in self._seen(maps):
            visible = self._boxes(phrase, site, values.device)
            if not visible:  # the model runs on a part of the picture that holds none of the boxes, or not their time
                terms.append(values.new_zeros(values.shape[0]))
                continue
            terms.append(torch.stack([self._inner(values, box) for box, _ in visible]).amax(dim=0))
            totals.append(self._terms(values, visible, phrase.strength))
        zero = maps.new_zeros(maps.shape[0], dtype=torch.float32) + 0.0 * maps.float().flatten(1).sum(dim=1)
        notes = tuple(
            f'the box of "{text}" was grown to one cell of the {site.grid[0]}x{site.grid[1]} attention grid'
            for text in small_boxes(self.layout, site.grid)
        )
        return AttentionLoss(sum(totals, zero), torch.stack(terms, dim=1).detach(), self._texts(), notes)

    def worst(self, maps: Tensor, site: AttentionSite) -> AttentionLoss:
        """Only the phrase that is farthest from its box counts: the loss of the refinement."""
        return self._worst(maps, site, whole=self.settings.mode == "attend_excite")

    def _terms(self, values: Tensor, boxes: list[tuple[Tensor, float]], strength: float) -> Tensor:
        s = self.settings
        everywhere = torch.stack([box for box, _ in boxes]).any(dim=0)
        inner = sum(weight * self._inner(values, box) for box, weight in boxes)
        outer = outer_loss(values, everywhere, s.top_fraction)
        corner = corner_loss(values, everywhere, s.corner_width)
        return s.inner * inner + strength * (s.outer * outer + s.corner * corner)

    def _worst(self, maps: Tensor, site: AttentionSite, whole: bool) -> AttentionLoss:
        terms = []
        for phrase, values in self._seen(maps):
            if whole:
                now = any(window.contains(site.progress) for window in phrase.windows)
                terms.append((1.0 - values.flatten(1).amax(dim=1)) * float(now))
                continue
            inner = [self._inner(values, box) for box, _ in self._boxes(phrase, site, values.device)]
            terms.append(torch.stack(inner).amax(dim=0) if inner else 0.0 * values.flatten(1).sum(dim=1))
        each = torch.stack(terms, dim=1)
        strengths = each.new_tensor([min(1.0, phrase.strength) for phrase in self.phrases])
        return AttentionLoss((each * strengths).amax(dim=1), each.detach(), self._texts())

    def _inner(self, values: Tensor, box: Tensor) -> Tensor:
        return inner_loss(values, box, self.settings.top_fraction)

    def _seen(self, maps: Tensor) -> list[tuple[Phrase, Tensor]]:
        """Each phrase's smoothed relevance [B, h, w]."""
        shares = relevance(maps, self.roles, self.settings.competition)
        return [(p, smoothed(shares[:, list(p.columns)].sum(dim=1), self.settings.smoothing)) for p in self.phrases]

    def _boxes(self, phrase: Phrase, site: AttentionSite, device: torch.device) -> list[tuple[Tensor, float]]:
        """(cells, strength) of the phrase's areas that are on the grid and at work now."""
        found = []
        for area, strength, window in zip(phrase.areas, phrase.strengths, phrase.windows, strict=True):
            cells = visible_cells(coverage(area, site.grid, site.view)).to(device)
            if window.contains(site.progress) and bool(cells.any()):
                found.append((cells, strength))
        return found

    def _texts(self) -> tuple[str, ...]:
        return tuple(phrase.text for phrase in self.phrases)


PRESETS = {
    "gentle": BoxConstraint(step_size=10.0, max_change=0.05),
    "standard": BoxConstraint(max_change=0.12),
    "strict": BoxConstraint(iterations=3, max_change=0.15, refine=True),
    "published": PUBLISHED,
}
# For the mode that moves the prediction: its limit is in units of the denoised latent; iLGD publishes the step 8 / 25.
FAST = {
    "gentle": BoxConstraint(mode="fast", step_size=10.0, max_change=0.15),
    "standard": BoxConstraint(mode="fast", max_change=0.3),
    "strict": BoxConstraint(mode="fast", max_change=0.5),
    "published": BoxConstraint(mode="fast", step_size=0.32, step_end=1.0),
}


def preset(name: str, mode: Mode) -> BoxConstraint:
    """The numbers of a preset for a mode."""
    return FAST[name] if mode == "fast" else replace(PRESETS[name], mode=mode)
