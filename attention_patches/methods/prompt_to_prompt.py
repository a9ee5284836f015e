"""Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): edit the words of a prompt, keep the picture.

One batch holds [source, target 1, ..., target P-1], then the same for the next start noise: row r belongs to prompt
r % P. The targets take over attention from their group's source row:

  replace, refine (section 3.2)  A*[:, j] = (A_source @ weights)[:, j] for shared columns, else their own
  reweight                       times the factor of the word, without renormalising
  self-attention injection       A* = A_source on grids up to a size
  local blend                    outside the words' maps the targets are the source

Departures: schedules are fractions of the noise schedule, not of the number of steps; alignment as in
`token_alignment`; local blend looks at each prompt's own attention (before replacing) and blends the predicted clean
picture, not the noisy latent: with the same noise in both rows this is the same blend at any noise level, ends in
exactly the source outside the mask, and needs no sampler to let others change its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ..core.grids import coverage
from ..core.seam import AttentionEdit, AttentionSite
from ..core.token_alignment import TokenAlignment
from ..core.tokens import missing, phrase_columns
from ..core.types import BoxwrightError, Layout, PhraseNotFoundError, StepWindow, TokenMap, is_open
from .reweight import check_factor

MAX_PROMPTS = 16  # source and targets
MAX_SIDE = 256  # tokens; of a grid whose self-attention is injected
CROSS, SELF = StepWindow(0.0, 0.8), StepWindow(0.0, 0.4)  # as in the published examples
_BLENDED = "prompt to prompt: maps of the blended words"


@dataclass(frozen=True)
class Prompts:
    """A source prompt and its targets, encoded side by side in the same number of columns T."""

    layout: Layout  # of the source; its key marks the conditioning of all
    targets: tuple[TokenMap, ...]  # length P - 1, each of T columns
    alignments: tuple[TokenAlignment, ...]  # length P - 1: source to target, [T, T]

    @property
    def count(self) -> int:
        """P: rows of a group."""
        return 1 + len(self.targets)

    @property
    def tokens(self) -> tuple[TokenMap, ...]:
        """Of the source, then of every target; length P."""
        return (self.layout.prompt.tokens, *self.targets)


@dataclass(frozen=True)
class LocalBlend:
    """Where the targets may differ from the source: around words, inside a painted mask, or both."""

    words: tuple[str, ...] = ()  # each counts in every prompt that has it; empty: `mask` alone decides
    subtract: tuple[str, ...] = ()  # words whose place stays the source's
    threshold: float = 0.3  # of the map's maximum, 0 to 1: above it the words are
    pooling: int = 1  # cells by which the map is widened: 1 = 3 x 3 maxima, as published; 0 = none
    start: float = 0.2  # fraction of the noise schedule before which nothing is blended: early maps are noise
    mask: Tensor | None = None  # [H_img, W_img], float32 in [0, 1]; inside it only

    def __post_init__(self) -> None:
        if not (self.words or self.mask is not None):
            raise BoxwrightError("Local blend has neither words nor a mask; give one of them, or leave it out.")
        if self.subtract and not self.words:
            raise BoxwrightError("Words to subtract need words to subtract them from; give local blend its words.")

    def columns(self, prompts: Prompts) -> Tensor:
        """Which columns count as its words and as the subtracted ones, float32 [2, P, T].

        Raises PhraseNotFoundError for a phrase that no prompt has, BoxwrightError for a prompt that has no phrase.
        """
        found = torch.zeros(2, prompts.count, len(prompts.layout.prompt.tokens))
        for row, phrases in enumerate((self.words, self.subtract)):
            for phrase in phrases:
                owned = torch.stack([phrase_columns(tokens, phrase) for tokens in prompts.tokens])
                if not bool(owned.any()):
                    raise _missing(phrase, prompts.tokens, "any of the prompts")
                found[row] = torch.maximum(found[row], owned.float())
        for number, own in enumerate(found[0].any(dim=-1).tolist() if self.words else ()):
            if not own:
                name = "source prompt" if number == 0 else f"target {number}"
                raise BoxwrightError(
                    f'Local blend: none of "{", ".join(self.words)}" is in the {name} '
                    f'("{prompts.tokens[number].text[:60]}"). Add the word that stands there for what changes.'
                )
        return found


@dataclass(frozen=True)
class PromptToPrompt:
    """Settings. A window of None is off."""

    cross: StepWindow | None = CROSS  # replace or refine the attention to the text
    self_attention: StepWindow | None = SELF  # inject the source's self-attention
    self_side: int = 32  # on grids of at most self_side * self_side tokens
    weights: Sequence[tuple[str, float]] = ()  # (phrase of a target, factor), as in `reweight`
    windows: Sequence[tuple[str, StepWindow | None]] = ()  # (phrase of a target, its own `cross` window)
    blend: LocalBlend | None = None

    def edits(self, prompts: Prompts) -> list[AttentionEdit]:
        """What to install for these prompts. Raises BoxwrightError for words and numbers that do not fit."""
        cross = self._cross_edit(prompts)
        found = [cross] if cross else []
        if self.self_attention is not None:
            limit = self.self_side**2

            def small(site: AttentionSite) -> bool:
                return site.grid[0] * site.grid[1] <= limit

            inject = _source_everywhere(prompts.count)
            found.append(AttentionEdit("prompt to prompt", "probs", inject, self.self_attention, "image_image", small))
        if self.blend is not None and self.blend.words:
            watch = _watch_words(self.blend.columns(prompts))
            found.append(AttentionEdit("local blend", "read", watch, where=_blends_here))
        return found

    def _cross_edit(self, prompts: Prompts) -> AttentionEdit | None:
        starts, ends = self._gates(prompts)
        factors = self._factors(prompts)
        open_ = ends > starts
        if not bool(open_.any()):
            if self.weights:
                raise BoxwrightError(
                    "The weights count while the attention to the text is replaced, and that window is empty. Let "
                    "cross_end lie above cross_start, or leave the weights out."
                )
            return None
        window = StepWindow(float(starts[open_].min()), float(ends[open_].max()))
        fn = _take_over(prompts.alignments, factors, starts, ends)
        return AttentionEdit("prompt to prompt", "probs", fn, window)

    def _gates(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """When each target column takes part: starts and ends, float64 [P - 1, T]; start = end: never."""
        shape = (len(prompts.targets), len(prompts.layout.prompt.tokens))
        starts, ends = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        if self.cross is not None:
            starts[:], ends[:] = self.cross.start, self.cross.end
        for phrase, window in self.windows:
            columns = _target_columns(prompts, phrase)
            starts[columns] = window.start if window else 0.0
            ends[columns] = window.end if window else 0.0
        return starts, ends

    def _factors(self, prompts: Prompts) -> Tensor:
        """float32 [P - 1, T]"""
        factors = torch.ones(len(prompts.targets), len(prompts.layout.prompt.tokens))
        for phrase, factor in self.weights:
            check_factor(phrase, factor)
            factors[_target_columns(prompts, phrase)] *= factor
        return factors


def check_rows(rows: int, prompts: int) -> None:
    """Refuses a batch that does not consist of whole groups."""
    if rows % prompts:
        raise BoxwrightError(
            f"The latent batch has {rows} rows for {prompts} prompts (one source, {prompts - 1} targets); it must be a "
            f"multiple of {prompts}. Wire `latent` of Prompt to Prompt to the sampler."
        )


def _target_columns(prompts: Prompts, phrase: str) -> Tensor:
    columns = torch.stack([phrase_columns(tokens, phrase) for tokens in prompts.targets])
    if not bool(columns.any()):
        raise _missing(phrase, prompts.targets, "any target prompt")
    return columns


def _missing(phrase: str, prompts: Sequence[TokenMap], where: str) -> PhraseNotFoundError:
    return missing((tokens.text for tokens in prompts), phrase, where, "Write it as the prompt has it.")


# --- attention --------------------------------------------------------------------------------------------------------


def moved_columns(source: Tensor, alignment: TokenAlignment) -> Tensor:
    """source @ alignment.weights, [..., T] -> [..., T]. Columns with one origin are copied, to the last bit."""
    return _Moves.of(alignment, source.device).of_source(source)


@dataclass(frozen=True)
class _Moves:
    """An alignment's weights on a device, taken apart so that applying them never waits for it."""

    index: Tensor  # int64 [T]: the heaviest origin of each column
    weight: Tensor  # float32 [T]: of that one
    several: Tensor  # int64: the columns with more origins
    origins: Tensor  # int64: all of these
    part: Tensor  # float32 [origins, several]

    @classmethod
    def of(cls, alignment: TokenAlignment, device: torch.device) -> _Moves:
        weights = alignment.weights
        several = ((weights != 0).sum(dim=0) > 1).nonzero()[:, 0]
        origins = weights[:, several].any(dim=1).nonzero()[:, 0]
        part = weights[origins][:, several]
        found = (weights.argmax(dim=0), weights.amax(dim=0), several, origins, part)
        return cls(*(values.to(device) for values in found))

    def of_source(self, source: Tensor) -> Tensor:
        moved = source[..., self.index] * self.weight.to(source)
        if len(self.several):
            moved[..., self.several] = source[..., self.origins] @ self.part.to(source)
        return moved


def _take_over(
    alignments: Sequence[TokenAlignment], factors: Tensor, starts: Tensor, ends: Tensor
) -> Callable[[Tensor, AttentionSite], Tensor]:
    count = 1 + len(alignments)

    def take_over(probs: Tensor, site: AttentionSite) -> Tensor:
        """[B, H, n, T]: replace, refine and reweight, where the word's window is open."""
        check_rows(probs.shape[0], count)
        groups = probs.unflatten(0, (-1, count))
        result = [groups[:, 0]]
        now = is_open(starts, ends, site.progress)
        key = ("prompt to prompt", id(factors), probs.device, tuple(now.flatten().tolist()))
        for number, (moves, taken, factor) in enumerate(site.kept(key, lambda: on_device(now, probs.device)), 1):
            own = groups[:, number]
            result.append(torch.where(taken, moves.of_source(groups[:, 0]), own) * factor)
        return torch.stack(result, dim=1).flatten(0, 1)

    def on_device(now: Tensor, device: torch.device) -> list[tuple[_Moves, Tensor, Tensor]]:
        """For each target: its moves, the columns [T] that take part in them, and what each is multiplied by [T]."""
        taken = [(alignment.shared & active).to(device) for alignment, active in zip(alignments, now, strict=True)]
        moves = [_Moves.of(alignment, device) for alignment in alignments]
        return [*zip(moves, taken, torch.where(now, factors, 1.0).to(device), strict=True)]

    return take_over


def _source_everywhere(count: int) -> Callable[[Tensor, AttentionSite], Tensor]:
    def inject(probs: Tensor, site: AttentionSite) -> Tensor:
        """[B, H, n, h * w]: every row of a group gets the probabilities of its source."""
        check_rows(probs.shape[0], count)
        return probs[::count].repeat_interleave(count, dim=0)

    return inject


# --- local blend ------------------------------------------------------------------------------------------------------


def _blends_here(site: AttentionSite) -> bool:
    """At the grid before the coarsest, the coarsest of two: 16 x 16 tokens in SD1.5 at 512 pixels, as published."""
    return site.level == max(site.levels - 2, min(1, site.levels - 1))


def _watch_words(columns: Tensor) -> Callable[[Tensor, AttentionSite], None]:
    """Adds up, over heads, layers and steps of a run, what every cell gives to the words: {grid: [2, B, h * w]}."""

    @torch.inference_mode()  # whatever the run's own mode, which may change between steps
    def watch(probs: Tensor, site: AttentionSite) -> None:
        rows, cells = probs.shape[0], site.grid[0] * site.grid[1]
        check_rows(rows, columns.shape[1])
        grids = site.memo.setdefault(_BLENDED, {})
        if site.grid not in grids:
            grids[site.grid] = probs.new_zeros(2, rows, cells)
        key = ("local blend", id(columns), rows, probs.device)
        counted = site.kept(key, lambda: columns.repeat(1, rows // columns.shape[1], 1).to(probs))
        grids[site.grid][:, :, site.queries] += torch.einsum("bnt,rbt->rbn", probs.mean(dim=1), counted)

    return watch


def blend_mask(
    blend: LocalBlend, maps: dict[tuple[int, int], Tensor] | None, shape: Sequence[int], count: int
) -> Tensor:
    """Where each row may differ from its group's source, float32 [B, 1, h, w] in [0, 1] for latents [B, C, h, w].

    `maps` as `recorded_maps` returns them; None only without words. The union of the source's words and the row's own
    (section 4 of the paper: both objects), less the subtracted words of both, times the painted mask.
    """
    rows, (height, width) = shape[0], shape[-2:]
    mask = torch.ones(rows, 1, height, width)
    if blend.words:
        assert maps is not None
        kept = _above(blend, maps, 0, blend.pooling, (height, width), count)
        if blend.subtract:
            kept = kept & ~_above(blend, maps, 1, 0, (height, width), count)
        mask = kept.float()
    if blend.mask is not None:
        mask = mask * coverage(blend.mask, (height, width)).to(mask.device)
    return mask


def _above(
    blend: LocalBlend, maps: dict[tuple[int, int], Tensor], kind: int, pooling: int, size: tuple[int, int], count: int
) -> Tensor:
    """Cells of the latent where the words of the source or of the row lie, bool [B, 1, h, w]."""
    total: Any = 0  # a tensor from the first grid on
    for grid, values in maps.items():
        image = values[kind].unflatten(-1, grid).unsqueeze(1)
        if pooling:
            image = max_pool2d(image, 2 * pooling + 1, stride=1, padding=pooling)
        total = total + interpolate(image, size=size, mode="nearest")
    peak = total.amax(dim=(-2, -1), keepdim=True)
    own = (total > blend.threshold * peak) & (peak > 0)  # no subtracted word in this prompt: nothing to subtract
    return own | own[::count].repeat_interleave(count, dim=0)


def recorded_maps(memo: dict) -> dict[tuple[int, int], Tensor] | None:
    """What the run has seen of the blended words so far: {grid: [words and subtracted words, B, h * w]}."""
    return memo.get(_BLENDED)


def blended(latents: Tensor, mask: Tensor, count: int) -> Tensor:
    """Each row inside the mask, its group's source outside; exactly so where the mask is 1 or 0. [B, C, h, w]"""
    source = latents[::count].repeat_interleave(count, dim=0)
    return torch.lerp(source, latents, mask.to(latents).expand_as(latents))
