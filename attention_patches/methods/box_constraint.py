"""Box constraint: phrases are drawn into their boxes by moving the latent (BoxDiff, arXiv 2307.10816).

Losses on cross-attention maps say how far each phrase is from its box; the latent follows their gradient before the
model predicts the noise of the step. Departs from the published code: any grid (not only 16 x 16); a phrase of several
tokens counts as one (their relevance is summed); several boxes of a phrase share the outer and corner terms and have an
inner term each; at least one cell is taken where the top share of a box is less than one; cells are those covered by
more than half (the code rounds edges); refinement recomputes every term afterwards; no passes after the window.

`attend_excite` is the loss of Attend-and-Excite (arXiv 2301.13826): every phrase somewhere, no boxes.
`fast` moves the prediction instead of the latent, with the gradient of the ordinary forward: the loss guidance of iLGD
(arXiv 2405.14101) without its injection into the attention, and with the losses of BoxDiff.

In every preset but `strict`, `published` and those of `fast` a pull is left where the published losses level off
(`leak`): where maps are decided, as in small pictures, a phrase that is far from its box has no gradient there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.grids import WHOLE_IMAGE, coverage, visible_cells
from ..core.seam import AttentionLoss, AttentionSite, LatentGuide
from ..core.types import Box, BoxwrightError, Layout, StepWindow, TokenMap, View, check_range, widest_window, window_of
from .box_losses import (
    PhraseCells,
    Sight,
    best_mean,
    blind_in,
    corner_loss,
    inner_loss,
    outer_loss,
    phrase_cells,
    sight,
)

ALWAYS = StepWindow()
# Words that name nothing: in a text encoder that reads from left to right they stand for what comes before the phrase.
ARTICLES = frozenset({"a", "an", "the"})

Mode = Literal["boxdiff", "fast", "attend_excite"]
Competition = Literal["auto", "all", "words"]


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
    competition: Competition = "auto"  # which tokens compete for a cell: see `rivals`
    leak: float = 0.02  # what is left of the pull on a cell that a rival is sure of, see `distance`; 0 = published
    two_grid_weight: float = 1.0  # of the loss on models with two grids of text attention (SDXL) instead of more
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
            "leak": (self.leak, 0.0, 1.0),
            "top_fraction": (self.top_fraction, 0.01, 1.0),
            "corner_width": (self.corner_width, 0, 64),
            "smoothing": (self.smoothing, 0.0, 10.0),
            "max_change": (self.max_change, 0.0, 100.0),
            "refine_iterations": (self.refine_iterations, 0, 100),
        }
        for name, (value, low, high) in ranges.items():
            check_range(f"{name} of the box constraint", value, low, high)

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


PUBLISHED = BoxConstraint(refine=True, leak=0.0, two_grid_weight=100.0)


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
        """The strongest region's: what counts for the phrase as a whole."""
        return max(self.strengths)


def constrained_phrases(layout: Layout, window: StepWindow = ALWAYS) -> tuple[Phrase, ...]:
    """The layout's phrases with a strength above 0; regions that own the same columns are one phrase.

    `window` is that of regions without one of their own. The article that a phrase begins with is left out if other
    words follow.
    """
    tokens = layout.prompt.tokens
    found: dict[tuple[int, ...], list[int]] = {}
    for number, (region, owned) in enumerate(zip(layout.regions, layout.columns, strict=True)):
        words = [c for c in owned.nonzero().flatten().tolist() if tokens.roles[c] == "word"]
        words = [c for c in words if c - 1 in words or not _is_article(tokens, c)] or words
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


def _is_article(tokens: TokenMap, column: int) -> bool:
    """Whether a token is a whole word, and an article: that of "an anvil" is, the first piece of the anvil is not."""
    span = tokens.spans[column]
    if span is None or tokens.text[slice(*span)].strip().casefold() not in ARTICLES:
        return False
    around = tokens.text[max(span[0] - 1, 0) : span[0]] + tokens.text[span[1] : span[1] + 1]
    return not any(map(str.isalnum, around))


def small_boxes(layout: Layout, grid: tuple[int, int], view: View = WHOLE_IMAGE) -> list[str]:
    """The phrases of boxes that no cell of the grid is covered by for more than half; they grow to one cell.

    Of a crop of the image (`view`), those that are in it.
    """
    boxes = [(phrase.text, area) for phrase in constrained_phrases(layout) for area in phrase.areas]
    return [text for text, area in boxes if 0.0 < float(coverage(area, grid, view).max()) <= 0.5]


def rivals(tokens: TokenMap, own: Sequence[int], competition: Competition) -> list[int]:
    """The columns of the tokens that compete with a phrase's own for a cell.

    "all" but the start token (BoxDiff for SD 1.x), the prompt's "words" alone (for SD 2.x), or "auto": all where the
    encoder fills its columns up with further end tokens, words where it fills them with something else. A phrase that
    is the whole prompt has no rival among the words: then all compete.
    """
    rest = [(i, role) for i, role in enumerate(tokens.roles) if role != "start" and i not in own]
    words = [i for i, role in rest if role == "word"]
    only_words = competition == "words" or (competition == "auto" and not tokens.filled_with_end)
    return words if only_words and words else [i for i, _ in rest]


@dataclass(frozen=True)
class _Facts:
    """What the losses of one grid need beside the maps. Made once for each grid of a run."""

    columns: tuple[tuple[Tensor, Tensor], ...]  # of each phrase: its own, and those of its rivals
    places: tuple[PhraseCells, ...]  # of each phrase, of the areas that are on the grid and at work
    notes: tuple[str, ...]


class _Losses:
    """The losses of one layout's phrases on attention maps [B, T, h, w]."""

    def __init__(self, settings: BoxConstraint, layout: Layout, phrases: tuple[Phrase, ...]) -> None:
        self.settings, self.layout, self.phrases = settings, layout, phrases
        self.texts = tuple(phrase.text for phrase in phrases)

    def total(self, maps: Tensor, site: AttentionSite) -> AttentionLoss:
        if self.settings.mode == "attend_excite":
            return self.worst(maps, site)
        s, facts = self.settings, self._facts(site, maps.device)
        losses, misses, blind = [0.0 * maps.float().flatten(1).sum(dim=1)], [], []
        for phrase, seen, there in zip(self.phrases, self._seen(maps, facts), facts.places, strict=True):
            misses.append(self._miss(seen, there))
            blind.append(self._blind(seen, there))
            if there.boxes:  # else the model runs on a part of the picture without them, or it is not their time
                inner = sum(weight * inner_loss(seen, cells, s.top_fraction) for cells, weight in there.boxes)
                outer, corner = outer_loss(seen, there.outside, s.top_fraction), corner_loss(seen, there.edges)
                losses.append(s.inner * inner + phrase.strength * (s.outer * outer + s.corner * corner))
        total, missing = sum(losses) * self._weight(site), torch.stack(misses, dim=1)
        return AttentionLoss(total, missing, self.texts, facts.notes, torch.stack(blind, dim=1))

    def worst(self, maps: Tensor, site: AttentionSite) -> AttentionLoss:
        """Only the phrase that is farthest from its place counts: the loss of the refinement."""
        whole, facts = self.settings.mode == "attend_excite", self._facts(site, maps.device)
        losses, misses, blind = [], [], []
        for phrase, seen, there in zip(self.phrases, self._seen(maps, facts), facts.places, strict=True):
            weight = min(1.0, phrase.strength)
            if whole:
                now = float(any(window.contains(site.progress) for window in phrase.windows))
                losses.append(weight * now * seen.absent.flatten(1).amin(dim=1))
                misses.append(now * (1.0 - seen.share.detach().flatten(1).amax(dim=1)))
                blind.append(blind_in(seen, None, misses[-1], self.settings.leak))
            else:
                inner = [inner_loss(seen, cells, self.settings.top_fraction) for cells, _ in there.boxes]
                loss = torch.stack(inner).amax(dim=0) if inner else 0.0 * seen.share.flatten(1).sum(dim=1)
                losses.append(weight * loss)
                misses.append(weight * self._miss(seen, there))
                blind.append(self._blind(seen, there))
        total = torch.stack(losses).amax(dim=0) * self._weight(site)
        return AttentionLoss(total, torch.stack(misses, dim=1), self.texts, (), torch.stack(blind, dim=1))

    def _miss(self, seen: Sight, there: PhraseCells) -> Tensor:
        """What is reported: how far the best cells of the worst box are from being the phrase's own, [B] in 0..1."""
        share, fraction = seen.share.detach(), self.settings.top_fraction
        found = [1.0 - best_mean(share, cells, fraction) for cells, _ in there.boxes]
        return torch.stack(found).amax(dim=0).clamp_min(0.0) if found else share.new_zeros(share.shape[0])

    def _blind(self, seen: Sight, there: PhraseCells) -> Tensor:
        """Whether nothing leads into one of its boxes, bool [B]."""
        share, fraction = seen.share.detach(), self.settings.top_fraction
        missing = ((cells, 1.0 - best_mean(share, cells, fraction)) for cells, _ in there.boxes)
        found = [blind_in(seen, cells, miss, self.settings.leak) for cells, miss in missing]
        return torch.stack(found).any(dim=0) if found else share.new_zeros(share.shape[0], dtype=torch.bool)

    def _seen(self, maps: Tensor, facts: _Facts) -> list[Sight]:
        s = self.settings
        return [sight(maps, own, others, s.smoothing, s.leak) for own, others in facts.columns]

    def _weight(self, site: AttentionSite) -> float:
        return self.settings.two_grid_weight if site.levels == 2 else 1.0

    def _facts(self, site: AttentionSite, device: torch.device) -> _Facts:
        at_work = tuple(tuple(w.contains(site.progress) for w in p.windows) for p in self.phrases)
        return site.kept((id(self), at_work, device), lambda: self._gather(site, at_work, device))

    def _gather(self, site: AttentionSite, at_work: Sequence[Sequence[bool]], device: torch.device) -> _Facts:
        columns, places = [], []
        for phrase, now in zip(self.phrases, at_work, strict=True):
            rest = rivals(self.layout.prompt.tokens, phrase.columns, self.settings.competition)
            columns.append((torch.tensor(phrase.columns, device=device), torch.tensor(rest, device=device)))
            shares = (coverage(area, site.grid, site.view) for area in phrase.areas)
            boxes = [(visible_cells(s), weight) for s, weight, on in zip(shares, phrase.strengths, now) if on]
            boxes = [(cells, weight) for cells, weight in boxes if bool(cells.any())]
            places.append(phrase_cells(boxes, site.grid, self.settings.corner_width, device))
        notes = tuple(
            f'the box of "{text}" was grown to one cell of the {site.grid[0]}x{site.grid[1]} attention grid'
            for text in small_boxes(self.layout, site.grid, site.view)
        )
        return _Facts(tuple(columns), tuple(places), notes)


PRESETS = {
    "gentle": BoxConstraint(step_size=10.0, max_change=0.05),
    "standard": BoxConstraint(max_change=0.12),
    # Without `leak`: what three moves a step pull too far leaves blotches (docs/results.md).
    "strict": BoxConstraint(iterations=3, max_change=0.15, refine=True, leak=0.0),
    "published": PUBLISHED,
    # For noise that is arranged (arranged_noise.py): where the objects stand near their boxes already, a loss that is
    # content with a fifth of a box's cells draws them small (docs/results.md).
    "fill": BoxConstraint(max_change=0.08, top_fraction=1.0),
}
# For the mode that moves the prediction: limits are in units of the denoised latent, whose deviation is near 1. No
# paper has these numbers: iLGD's loss is another, and tuned beside an injection into the attention, not made here.
# Without `leak`: their steps are long, so that all of it reaches the limit, and placement got worse (docs/results.md).
FAST = {
    "gentle": BoxConstraint(mode="fast", leak=0.0, step_size=50.0, max_change=0.75),
    "standard": BoxConstraint(mode="fast", leak=0.0, step_size=100.0, max_change=1.5),
    "strict": BoxConstraint(mode="fast", leak=0.0, step_size=100.0, max_change=2.5),
}


def by_hand(settings: BoxConstraint, mode: Mode) -> BoxConstraint:
    """A user's numbers for a mode. `leak` is none of them: it is that of the mode's presets."""
    return replace(settings, mode=mode, leak=FAST["standard"].leak if mode == "fast" else settings.leak)


def preset(name: str, mode: Mode) -> BoxConstraint:
    """The numbers of a preset for a mode. Raises BoxwrightError where the mode has no such preset."""
    if name == "fill" and mode == "attend_excite":
        raise BoxwrightError(
            'The mode "attend_excite" has no preset "fill": it looks at no boxes that could be filled. Choose another '
            'preset, or the mode "boxdiff".'
        )
    if mode != "fast":
        chosen = replace(PRESETS[name], mode=mode)
        return chosen if mode == "boxdiff" else replace(chosen, two_grid_weight=1.0)  # BoxDiff's own, for its losses
    if name not in FAST:
        why = "it is no paper's method" if name == "published" else "its numbers are for moves of the latent"
        raise BoxwrightError(
            f'The mode "fast" has no preset "{name}": {why}. Choose {", ".join(FAST)}, or the mode "boxdiff".'
        )
    return FAST[name]
