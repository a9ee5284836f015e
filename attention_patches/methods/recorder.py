"""What the image pays attention to while it is sampled: running means of the attention to words, in bounded memory.

A value is the share of a cell's attention that words get: probabilities summed over the words' columns, averaged over
heads, layers of one grid and model calls (as in DAAM, Tang et al., arXiv 2210.04885, whose maps are sums, without its
convolution layers). Over all recorded columns and the rest a cell's values sum to 1 in models with separate
cross-attention, and to what the image leaves to the text in models with joint attention.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.masks import resized
from ..core.seam import AttentionEdit, AttentionSite
from ..core.tokens import missing, phrase_columns
from ..core.types import BoxwrightError, PhraseNotFoundError, StepWindow, TokenMap

RecordedGrids = Literal["middle", "all", "all but finest"]
Grid = tuple[int, int]  # (h, w) image tokens

MAX_MOMENTS = 64
MAX_RUNS = 256
DRAW_AGAIN = "To draw the pictures again, change the seed or a setting of the sampler."
MIB = 2**20


@dataclass(frozen=True)
class Recording:
    """What to record."""

    phrases: tuple[str, ...] = ()  # of the prompt; empty: every word
    resolutions: RecordedGrids = "middle"  # neither the finest nor the coarsest grid, where a model has more than two
    moments: int = 1  # parts of the run with maps of their own; each holds about as many steps as the others
    window: StepWindow = StepWindow()
    budget: int = 256 * MIB  # bytes: the most that the maps may take

    def columns(self, tokens: TokenMap) -> tuple[int, ...]:
        """The text columns to record. Raises PhraseNotFoundError for a phrase the prompt lacks, BoxwrightError for a
        prompt without words."""
        if not self.phrases:
            words = tuple(column for column, role in enumerate(tokens.roles) if role == "word")
            if not words:
                raise BoxwrightError(
                    "The prompt to record is empty. Write the prompt of the positive conditioning here, or wire "
                    "`layout` of its Layout Prompt."
                )
            return words
        wanted = torch.stack([_columns(tokens, phrase) for phrase in self.phrases]).any(dim=0)
        return tuple(wanted.nonzero()[:, 0].tolist())

    def wants(self, level: int, levels: int) -> bool:
        """Whether to record at this grid: 0 = the finest."""
        if self.resolutions == "all" or levels == 1:
            return True
        return level > 0 and (self.resolutions == "all but finest" or levels == 2 or level < levels - 1)


@dataclass(frozen=True)
class GraphPlace:
    """Where in the user's graph a run was made. Nodes are named by what they compute: equal names, equal results."""

    node: str  # the one that ran the sampler
    around: frozenset[str]  # the nodes that it was expanded from
    before: frozenset[str]  # the nodes whose pictures went into it
    index: int  # in the list of the node's results
    execution: Hashable  # the same for all that the node does at once


class Records:
    """The last runs of one recorder: one record for each, which nothing changes once the run is over.

    Memory: all records together keep to the budget, and there are at most MAX_RUNS; the oldest go first.
    """

    def __init__(self, tokens: TokenMap, recording: Recording) -> None:
        if not 1 <= recording.moments <= MAX_MOMENTS:
            raise BoxwrightError(f"{recording.moments} moments cannot be recorded; choose 1 to {MAX_MOMENTS}.")
        self.tokens = tokens
        self.recording = recording
        self.columns = recording.columns(tokens)
        self.made = 0  # runs, kept or not
        self._kept: list[tuple[GraphPlace | None, AttentionRecord]] = []  # oldest first

    # --- while a sampler runs ---

    def edit(self) -> AttentionEdit:
        """The look to install; it changes nothing. `site.memo` has the record of the run, by this object."""
        return AttentionEdit("attention recorder", "read", self._read, self.recording.window, where=self._wanted)

    def begin(self, schedule: Sequence[float], rows: int, grids: Sequence[Grid]) -> AttentionRecord:
        """An empty record for a run: progress of its steps, batch rows, the model's grids from fine to coarse.

        Raises BoxwrightError where the maps could take more than the budget.
        """
        wanted = [grid for level, grid in enumerate(grids) if self.recording.wants(level, len(grids))]
        moments = min(self.recording.moments, max(1, len(schedule)))
        needed = self.bytes_for(rows, wanted, moments)
        if needed > self.recording.budget:
            shown = ", ".join(f"{w}x{h}" for h, w in wanted)
            raise BoxwrightError(
                f"The record needs {needed / MIB:.1f} MB and its budget is {self.recording.budget / MIB:g} MB: {rows} "
                f"pictures, {len(self.columns)} tokens, grids {shown}, {moments} moments. Record fewer phrases, "
                "resolutions or moments, or raise budget_mb."
            )
        while self._kept and sum(record.bytes for _, record in self._kept) + needed > self.recording.budget:
            self._kept.pop(0)
        inside = [progress for progress in sorted(schedule) if self.recording.window.contains(progress)]
        return AttentionRecord(self, rows, inside)

    def keep(self, record: AttentionRecord, place: GraphPlace | None) -> None:
        """The record's run is over, made at `place` (None: unknown)."""
        record.close()
        self.made += 1
        if place is not None:  # what the same node made before would be found by no one any more
            self._kept = [
                (p, r) for p, r in self._kept if not p or p.node != place.node or p.execution == place.execution
            ]
        self._kept = [*self._kept, (place, record)][-MAX_RUNS:]

    def bytes_for(self, rows: int, grids: Sequence[Grid], moments: int) -> int:
        """The most that maps of these sizes take: float16 means of every moment and float32 sums of the open one."""
        values = rows * (len(self.columns) + 1) * sum(h * w for h, w in grids)
        return values * (2 * moments + 4)

    def _wanted(self, site: AttentionSite) -> bool:
        return self.recording.wants(site.level, site.levels)

    def _read(self, probs: Tensor, site: AttentionSite) -> None:
        site.memo[self].read(probs, site)

    # --- afterwards ---

    def has(self, phrase: str) -> bool:
        """Whether `map_of` of a record knows the phrase."""
        owned = phrase_columns(self.tokens, phrase).nonzero()[:, 0].tolist()
        return bool(owned) and set(self.columns).issuperset(owned)

    @property
    def latest(self) -> AttentionRecord:
        """The record of the last run. Raises BoxwrightError if there was none."""
        if not self._kept:
            raise BoxwrightError(
                "The record is empty: no picture has been sampled with this recorder's model, or the host has kept the "
                "picture and forgotten its record. Wire the model to the sampler, and the pictures that come from "
                f"there to this node. {DRAW_AGAIN}"
            )
        return self._kept[-1][1]

    def of(self, before: Set[str] | None, index: int = 0, mixed: Set[str] = frozenset()) -> AttentionRecord:
        """The record of pictures that came from the nodes `before`; of the last one that ran with the recorder's model.

        index: which of the results, where that node made several. before: None where the graph is unknown. mixed: those
        of them whose results went as one list into another node, which may have changed their order. Raises
        BoxwrightError where the record is not there, or cannot be told.
        """
        latest = self.latest
        if before is None:
            if self.made > 1:
                raise BoxwrightError(
                    f"The recorder's model has drawn {self.made} times, and outside a workflow no one knows which of "
                    "these runs drew the pictures. Use a recorder for each run."
                )
            return latest
        found = [(p, r) for p, r in self._kept if p and (p.node in before or not p.around.isdisjoint(before))]
        last = [(p, r) for p, r in found if not any(({p.node} | p.around) & other.before for other, _ in found)]
        results = max((p.index for p, _ in last), default=0)
        if results and any(({p.node} | p.around) & mixed for p, _ in last):
            raise BoxwrightError(
                "These pictures went through a node that takes a whole list, so that no one knows which of the "
                f"{results + 1} runs drew them. Wire the pictures as they come from the decoder."
            )
        chosen = [r for p, r in last if p.index == min(index, results)]
        if not chosen:
            raise BoxwrightError(
                f"None of this recorder's runs drew these pictures ({len(self._kept)} are kept of {self.made}: at most "
                f"{MAX_RUNS}, and no more than fit into budget_mb). Wire pictures from a sampler with the recorder's "
                f"model; nodes that change pictures or latents may stand in between. {DRAW_AGAIN}"
            )
        if len(chosen) > 1:
            raise BoxwrightError(
                f"These pictures come from {len(chosen)} runs of samplers with this recorder's model, and a record is "
                "of one. Wire the pictures of one sampler; or give every sampler a recorder of its own. (A node that "
                "runs a sampler several times, for tiles say, cannot be recorded.)"
            )
        return chosen[0]


class AttentionRecord:
    """The maps of one run.

    Memory: while a moment is open its sums are float32 on the model's device; then they are float16 means in main
    memory.
    """

    def __init__(self, records: Records, rows: int, schedule: Sequence[float]) -> None:
        self.tokens, self.recording, self.columns = records.tokens, records.recording, records.columns
        self.rows = rows
        self._schedule = tuple(schedule)
        self._open: int | None = None  # moment; None = nothing is in `_sums`
        self._sums: dict[Grid, tuple[Tensor, float]] = {}
        self._wanted: Tensor | None = None  # the columns, where the probabilities lie
        self._means: dict[tuple[int, Grid], tuple[Tensor, float]] = {}

    # --- while a sampler runs ---

    @torch.inference_mode()  # whatever the run's own mode: it changes, and what was made in one may be added to in any
    def read(self, probs: Tensor, site: AttentionSite) -> None:
        """[B, H, n, T] -> added to the sums."""
        self._check(probs.shape[0], site)
        moment = self._moment(site.progress)
        if moment != self._open:
            self.close()
            self._open = moment
        cells = site.grid[0] * site.grid[1]
        sums, weight = self._sums.get(site.grid, (None, 0.0))
        if sums is None:
            sums = probs.new_zeros(self.rows, len(self.columns) + 1, cells)
        shares = probs.mean(dim=1).transpose(1, 2)  # [B, T, n]
        if self._wanted is None or self._wanted.device != shares.device:
            self._wanted = torch.tensor(self.columns, device=shares.device)  # once: to send numbers waits for a device
        wanted = shares.index_select(1, self._wanted)
        sums[:, :-1, site.queries] += wanted
        sums[:, -1, site.queries] += shares.sum(dim=1) - wanted.sum(dim=1)
        self._sums[site.grid] = sums, weight + probs.shape[2] / cells

    def close(self) -> None:
        """The open moment's sums become float16 means, beside what an earlier visit left."""
        if self._open is None:
            return
        for grid, (sums, weight) in self._sums.items():
            mean = sums.cpu() / weight
            old, before = self._means.get((self._open, grid), (None, 0.0))
            if old is not None:
                mean = (old.float() * before + mean * weight) / (before + weight)
            self._means[self._open, grid] = mean.half(), before + weight
        self._open, self._sums = None, {}

    def _check(self, rows: int, site: AttentionSite) -> None:
        if rows != self.rows:
            raise BoxwrightError(
                f"The recorder was set up for {self.rows} pictures and the model is run on {rows}: another node runs "
                "it on parts of the batch. Remove that node, or the recorder."
            )
        view = site.view
        if view.x > 0 or view.y > 0 or view.x + view.width < 1 - 1e-6 or view.y + view.height < 1 - 1e-6:
            raise BoxwrightError(
                "The recorder needs a prompt for the whole image, and this one has an area (Conditioning Set Area). "
                "Remove the area, or the recorder."
            )

    def _moment(self, progress: float) -> int:
        """Which of the moments this belongs to: the steps in order, shared out evenly."""
        count = max(1, len(self._schedule))
        step = min(count - 1, max(0, bisect_right(self._schedule, progress + 1e-6) - 1))
        return step * min(self.recording.moments, count) // count

    # --- afterwards ---

    @property
    def moments(self) -> tuple[int, ...]:
        """The moments with maps, in order of time."""
        return tuple(sorted({moment for moment, _ in self._means}))

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids with maps, finest first."""
        return tuple(sorted({grid for _, grid in self._means}, reverse=True))

    @property
    def bytes(self) -> int:
        """What the maps take."""
        return sum(mean.numel() * mean.element_size() for mean, _ in self._means.values())

    def map_of(self, phrase: str, moment: int | None = None, grid: Grid | None = None) -> Tensor:
        """The share of attention that the phrase gets, float32 [B, h, w] in [0, 1].

        Of one moment, or the mean of all, weighted by their model calls; on one grid, or the mean of all, each resized
        to the finest. Raises PhraseNotFoundError for a phrase that the prompt lacks or that was not recorded,
        BoxwrightError while nothing has been recorded, or where that is no finite number.
        """
        owned = _columns(self.tokens, phrase)
        wanted = [index for index, column in enumerate(self.columns) if owned[column]]
        if len(wanted) < int(owned.sum()):
            raise PhraseNotFoundError(
                f'"{phrase}" was not recorded. Add it to the recorder\'s phrases, or clear them to record every word.'
            )
        return self._mean_over(wanted, moment, grid)

    def rest(self, moment: int | None = None, grid: Grid | None = None) -> Tensor:
        """The share of attention that all columns without maps of their own get, as `map_of`."""
        return self._mean_over([len(self.columns)], moment, grid)

    def _mean_over(self, values: list[int], moment: int | None, grid: Grid | None) -> Tensor:
        moments = self.moments if moment is None else (moment,)
        if not moments:
            raise BoxwrightError(
                "The record is empty: no step of the run lay between start and end of the recorder, or another node "
                "skipped the model there. Widen the window."
            )
        found = (self._on_grid(size, values, moments) for size in (self.grids if grid is None else (grid,)))
        images = [image for image in found if image is not None]
        mean = torch.stack([resized(image, tuple(images[0].shape[-2:])) for image in images]).mean(dim=0)
        if not bool(mean.isfinite().all()):
            raise BoxwrightError(
                "The record holds NaN: the model has computed no ordinary numbers, and the picture is none either. "
                "Choose another scheduler, more steps or another sampler, or load the model in more precision."
            )
        return mean

    def _on_grid(self, grid: Grid, values: list[int], moments: Sequence[int]) -> Tensor | None:
        parts = [self._means[moment, grid] for moment in moments if (moment, grid) in self._means]
        if not parts:
            return None
        total = sum(mean[:, values].float().sum(dim=1) * weight for mean, weight in parts)
        return (total / sum(weight for _, weight in parts)).unflatten(-1, grid)


def _columns(tokens: TokenMap, phrase: str) -> Tensor:
    columns = phrase_columns(tokens, phrase)
    if not bool(columns.any()):
        raise missing([tokens.text], phrase, "the recorded prompt", "Write it as the prompt has it.")
    return columns
