"""Rectified cross-attention: a region's words are invisible outside it.

FreestyleNet (Xue et al., arXiv 2303.14412) sets the score of a word to minus infinity at every image token outside the
mask of that word's class, in every cross-attention layer, and leaves start, end and padding tokens and words of no
class visible everywhere. Departures, all of them off at the published settings or forced by using the operator without
the paper's fine-tuning:
- `strength`, `window`, `feather` and `resolutions` limit it;
- a box smaller than a cell keeps its best covered cell (the paper's nearest sampling would lose it);
- a painted mask keeps its soft edges: outside, a word counts with the logarithm of the coverage (the paper: > 0.5);
- end and padding tokens can be hidden, or shared out among the regions as their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.grids import covered, feathered, visible_cells
from ..core.seam import NEVER, AttentionEdit, AttentionSite, ContextEdit
from ..core.types import (
    BoxwrightError,
    EncodedText,
    Layout,
    Region,
    StepWindow,
    counted,
    feather_of,
    widest_window,
    window_of,
)

Resolutions = Literal["all", "fine", "coarse", "all but coarsest"]
EndTokens = Literal["visible", "hidden", "own"]


@dataclass(frozen=True)
class RectifiedAttention:
    """Settings. `PUBLISHED` has the paper's.

    The defaults let go early and fade at the edges, because the paper fine-tunes the model and here it is used as it
    comes: hidden to the end, objects that the noise does not favour go missing (docs/results.md).
    """

    strength: float = 1.0  # 0 = off; between: outside its region a word keeps the share 1 - strength of its odds
    window: StepWindow = StepWindow(0.0, 0.2)
    feather: float = 0.1  # width of the ramp outside a region, in fractions of the image's width and height
    resolutions: Resolutions = "all"
    end_tokens: EndTokens = "visible"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise BoxwrightError(f"Strength {self.strength:g} is outside 0 to 1; 0 is off and 1 is as published.")
        if not 0.0 <= self.feather <= 1.0:
            raise BoxwrightError(f"Feather {self.feather:g} is outside 0 to 1; it is a fraction of the image.")

    def edits(self, layout: Layout) -> list[AttentionEdit | ContextEdit]:
        """The changes to install for this layout; none at strength 0."""
        if self.strength == 0.0:
            return []
        window = widest_window(layout, self.window)
        if self.end_tokens == "own":
            shares = share_end_tokens(layout)
            own = ContextEdit("rectified attention: end tokens", self._own_end_tokens(shares), window)
            return [AttentionEdit("rectified attention", "bias", self._bias(shares), window), own]
        return [AttentionEdit("rectified attention", "bias", self._bias(None), window)]

    def _bias(self, shares: Tensor | None) -> Callable[[Tensor, AttentionSite], Tensor]:
        def bias(zeros: Tensor, site: AttentionSite) -> Tensor:
            layout, here = site.layout, at_resolution(site, self.resolutions)
            if not here and shares is None:
                return zeros
            now = [window_of(region, self.window).contains(site.progress) for region in layout.regions]
            strengths = self._strengths(layout) * torch.tensor(now)
            seen = self.seen(site)
            odds = 1.0 - strengths[:, None] * (1.0 - seen)  # [R, N] by what the odds of a region's words are multiplied
            total = zeros.clone()
            if here:
                total[0, 0] += _log(_best_owner(odds, layout.columns))
            if here and self.end_tokens == "hidden":
                total[0, 0][:, end_columns(layout)] += _log(1.0 - strengths.max())
            if shares is not None:  # at every grid: the context that holds these end tokens is the same for all
                rest = 1.0 - (strengths[:, None] * seen).max(dim=0).values
                total[0, 0] += _end_bias(torch.cat([odds, rest[None]]), shares, strengths)
            return total

        return bias

    def seen(self, site: AttentionSite) -> Tensor:
        """Where each region's words may be seen, [R, N] in 0..1."""
        seen = [visibility(region, site, feather_of(region, self.feather)) for region in site.layout.regions]
        return torch.stack(seen).flatten(1)

    def _strengths(self, layout: Layout) -> Tensor:
        return self.strength * torch.tensor([region.strength for region in layout.regions])

    def _own_end_tokens(self, shares: Tensor) -> Callable[[Tensor, Layout], Tensor]:
        def own(context: Tensor, layout: Layout) -> Tensor:
            result = context.clone()
            strengths = self._strengths(layout).tolist()
            for text, columns, strength in zip(layout.region_texts, shares[:-1], strengths, strict=True):
                for column, row in zip(columns.nonzero()[:, 0].tolist(), _end_rows(text, columns), strict=True):
                    target = text.embedding[0, row].to(context).expand_as(context[:, column])
                    result[:, column] = torch.lerp(context[:, column], target, strength)
            return result

        return own


PUBLISHED = RectifiedAttention(strength=1.0, window=StepWindow(), feather=0.0, resolutions="all", end_tokens="visible")


def visibility(region: Region, site: AttentionSite, feather: float) -> Tensor:
    """Where the region's words may be seen, [h, w] in [0, 1]."""
    share = covered(region, site)
    if isinstance(region.area, Tensor):
        best = share.max()
        seen = share if best > 0.5 or best <= 0 else share / best
    else:
        seen = visible_cells(share).float()
    return feathered(seen, feather, site.view)


def at_resolution(site: AttentionSite, resolutions: Resolutions) -> bool:
    """Whether the site's grid is among those chosen. A model with one grid has all of them at once."""
    last = site.levels - 1
    return {
        "all": True,
        "fine": 2 * site.level <= last,
        "coarse": 2 * site.level >= last,
        "all but coarsest": site.level < last or last == 0,
    }[resolutions]


def end_columns(layout: Layout) -> Tensor:
    """bool [T]: end and padding columns of the prompt."""
    return torch.tensor([role in ("end", "padding") for role in layout.prompt.tokens.roles])


def share_end_tokens(layout: Layout) -> Tensor:
    """bool [R + 1, T]: the prompt's end and padding columns dealt out in turn to the regions and, last, to the rest.

    Raises BoxwrightError where there are fewer columns than owners.
    """
    owners = len(layout.regions) + 1
    reserved = end_columns(layout).nonzero()[:, 0]
    if len(reserved) < owners:
        raise BoxwrightError(
            f"The prompt leaves {counted(len(reserved), 'end or padding token')}, but "
            f"{counted(len(layout.regions), 'region')} and the rest of the image need one each for end_tokens "
            '"own". Shorten the prompt, or choose "visible" or "hidden".'
        )
    shares = torch.zeros(owners, len(layout.prompt.tokens), dtype=torch.bool)
    shares[torch.arange(len(reserved)) % owners, reserved] = True
    return shares


def _end_bias(odds: Tensor, shares: Tensor, strengths: Tensor) -> Tensor:
    """Odds [R + 1, N] of every owner of end tokens -> what to add to the scores, [N, T]."""
    # Each owner has only some of the columns; together they keep the weight that all of them had.
    gain = (shares.sum() / shares.sum(dim=1)).log() * torch.cat([strengths, strengths.max()[None]])
    return _log(_best_owner(odds, shares)) + (shares * gain[:, None]).sum(dim=0)


def _end_rows(text: EncodedText, columns: Tensor) -> list[int]:
    """Which rows of the region's own encoding fill its columns: its end token first, then what stands at that place."""
    roles = text.tokens.roles
    tail = [i for i, role in enumerate(roles) if role in ("end", "padding")]
    if not tail:
        raise BoxwrightError(
            f'This text encoder gives "{text.tokens.text}" no end or padding tokens; choose "visible" for end_tokens.'
        )
    places = columns.nonzero()[:, 0].tolist()
    return [tail[0]] + [place if place in tail else tail[-1] for place in places[1:]]


def _best_owner(odds: Tensor, columns: Tensor) -> Tensor:
    """[R, N] odds and [R, T] ownership -> [N, T]: the best of a column's owners; 1 for columns of nobody."""
    result = torch.ones(odds.shape[1], columns.shape[1])
    for column in columns.any(dim=0).nonzero()[:, 0].tolist():
        result[:, column] = odds[columns[:, column]].max(dim=0).values
    return result


def _log(odds: Tensor) -> Tensor:
    return odds.log().clamp_min(NEVER)
