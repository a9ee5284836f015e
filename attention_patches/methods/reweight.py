"""Prompt-to-Prompt reweighting (Hertz et al., arXiv 2208.01626, section 3.2 "Attention re-weighting").

The attention probability of chosen words is multiplied by a factor in every image-to-text attention, without
renormalising, as published. Departures: the paper edits a picture beside its original with factors of about -2 to 2;
here there is one picture, factors go from -5 to 10, may count in one region only, and rows can be renormalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.grids import covered
from ..core.seam import NEVER, AttentionEdit, AttentionSite
from ..core.tokens import missing, phrase_columns
from ..core.types import BoxwrightError, Layout, StepWindow

LOWEST, HIGHEST = -5.0, 10.0


@dataclass(frozen=True)
class Reweight:
    """Settings. Factor 1 leaves a word as it is, 0 removes it, below 0 pushes away from it."""

    weights: Sequence[tuple[str, float]]  # (phrase of the prompt, factor); a word named twice is multiplied twice
    window: StepWindow = StepWindow()
    region: int = 0  # 0 = everywhere, k = only inside the k-th region
    renormalize: bool = False  # True: the other words give or take what these gain or lose

    def edits(self, layout: Layout) -> list[AttentionEdit]:
        """The change to install for this layout; none if every factor is 1.

        Raises PhraseNotFoundError for a phrase that is not in the prompt, BoxwrightError for a factor or a region
        number out of range, or a negative factor with `renormalize`.
        """
        if not 0 <= self.region <= len(layout.regions):
            raise BoxwrightError(
                f"Region {self.region} does not exist: the layout has {len(layout.regions)}. Choose 0 for the whole "
                f"image or a number from 1 to {len(layout.regions)}."
            )
        factors = self._factors(layout)
        if bool((factors == 1.0).all()):
            return []
        if self.renormalize:
            return [AttentionEdit("reweight", "bias", self._bias(factors), self.window)]
        return [AttentionEdit("reweight", "probs", self._scale(factors), self.window)]

    def _factors(self, layout: Layout) -> Tensor:
        factors = torch.ones(len(layout.prompt.tokens))
        for phrase, factor in self.weights:
            check_factor(phrase, factor)
            if self.renormalize and factor < 0:
                raise BoxwrightError(
                    f'The factor {factor:g} of "{phrase}" cannot be renormalized: probabilities are not negative. '
                    "Use 0 or more, or switch renormalize off."
                )
            factors[_columns(layout, phrase)] *= factor
        return factors

    def _at(self, factors: Tensor, site: AttentionSite, device: torch.device) -> Tensor:
        """[n or 1, T]: the factors where they count, 1 elsewhere."""
        at = site.kept(("reweight", id(factors), device), lambda: self._on_grid(factors, site).to(device))
        return at if self.region == 0 else at[site.queries]

    def _on_grid(self, factors: Tensor, site: AttentionSite) -> Tensor:
        """The same for all image tokens, [N or 1, T]."""
        if self.region == 0:
            return factors[None]
        inside = covered(site.layout.regions[self.region - 1], site).flatten()
        return 1.0 + inside[:, None] * (factors[None] - 1.0)

    def _bias(self, factors: Tensor) -> Callable[[Tensor, AttentionSite], Tensor]:
        def bias(zeros: Tensor, site: AttentionSite) -> Tensor:
            return zeros + self._at(factors, site, zeros.device).log().clamp_min(NEVER)

        return bias

    def _scale(self, factors: Tensor) -> Callable[[Tensor, AttentionSite], Tensor]:
        def scale(probs: Tensor, site: AttentionSite) -> Tensor:
            return probs * self._at(factors, site, probs.device)

        return scale


def check_factor(phrase: str, factor: float) -> None:
    """Raises BoxwrightError unless it is a number from LOWEST to HIGHEST."""
    if not LOWEST <= factor <= HIGHEST:
        raise BoxwrightError(
            f'The factor {factor:g} of "{phrase}" is outside {LOWEST:g} to {HIGHEST:g}; choose one in between.'
        )


def _columns(layout: Layout, phrase: str) -> Tensor:
    columns = phrase_columns(layout.prompt.tokens, phrase)
    if not bool(columns.any()):
        raise missing([layout.prompt.tokens.text], phrase, "the prompt of the layout", "Only its words can be named.")
    return columns
