"""One call of the diffusion model, whose rows carry which edits, and where an attention call of it holds what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...core.seam import AttentionEdit, AttentionKind, Edit, TextMix
from ...core.types import BoxwrightError, Layout, View
from .call import Attention, AttentionCall

CALL = "boxwright_call"  # key of a ModelCall in transformer_options
MEMO = "boxwright_memo"  # key of AttentionSite.memo of the run in transformer_options


class IncompatiblePatchError(BoxwrightError):
    """Another patch on the same model changed the attention so that an edit can no longer be placed."""


E = TypeVar("E", bound=Edit)


@dataclass(frozen=True)
class Installed(Generic[E]):
    """One edit, the layout whose rows it changes, and who is told what becomes of it."""

    layout: Layout
    edit: E
    graph: bool = False  # a guide's reader: wants probabilities with their autograd graph, as they are before any edit
    # Callable[[str], None] | None, which mypy misreads in a generic class: shows a line on the node that installed it
    report: Any = None


@dataclass(frozen=True)
class Extra:
    """Edits of one model call on top of the run's own."""

    items: dict[Any, tuple[Installed, ...]]  # uuid of a conditioning entry -> edits of its rows
    aside: bool  # a call beside the run's own, for a gradient: without the run's readers and further texts
    plain: bool = False  # without any edit of the run's own attention: what the model itself makes of the prompt


@dataclass(frozen=True)
class Chunk:
    """The rows of one conditioning entry in a batch."""

    rows: slice
    edits: tuple[Installed, ...]  # active now; empty for rows that must stay as they are
    text_length: int  # columns of this entry before the host repeats it to match its neighbours
    offset: tuple[int, int]  # (y, x) of the crop in latent cells
    origin: slice | None = None  # its rows in the model call, where another patch moved them for one attention

    def without_readers(self) -> Chunk:
        """The same rows where readers have heard already."""
        return replace(self, edits=tuple(i for i in self.edits if getattr(i.edit, "stage", None) != "read"))


AS_BEFORE, OTHERWISE, SETTLED = 0, 1, 2  # outcomes of a comparison; SETTLED = it need not be watched any more


@dataclass(frozen=True)
class OtherPacks:
    """What a run knows of other packs' functions."""

    # ids of the functions that replace an attention in all of the run; others are put there for a call
    lasting: frozenset[int] = frozenset()
    found: dict[Any, bool] = field(default_factory=dict)  # what they were seen to do
    watched: dict[Any, Any] = field(default_factory=dict)  # the same where each further call is compared with it

    def are_otherwise(self, comparisons: Sequence[tuple[Any, Tensor]]) -> bool:
        """Whether one of them no longer does in a model call what it did before; all is forgotten then that is watched.

        All comparisons with it are read at once, behind the call: to read each where it is made would let the CPU
        stand still in every layer.
        """
        if not comparisons:
            return False
        outcomes = torch.stack([outcome for _, outcome in comparisons]).tolist()
        for (key, _), outcome in zip(comparisons, outcomes, strict=True):
            if outcome == SETTLED:
                self.found[key] = True
        if OTHERWISE not in outcomes:
            return False
        self.watched.clear()
        return True


@dataclass
class ModelCall:
    """One call of the diffusion model. Travels in transformer_options; adapters may note things in `notes`."""

    chunks: tuple[Chunk, ...]
    latent: tuple[int, int]  # (H, W) of what the model sees: the whole latent, or a crop of it
    image: tuple[int, int]  # (H, W) of the whole latent
    text_length: int
    references: tuple[tuple[int, int], ...]  # (H, W) of reference latents that follow the image
    progress: float
    levels: int  # attention grids of the model
    # (text columns of this call, columns of a conditioning entry) -> where copies of the entry's text lie among them
    text_columns: Callable[[int, int], Sequence[slice]]
    further: Tensor | None = None  # texts of the rows' mixes, [rows, E, C]: to follow the text in every cross-attention
    # Of the longest row: where each of them lies among those columns with what fills it up, how many are its own.
    spans: tuple[slice, ...] = ()
    lengths: tuple[int, ...] = ()
    others: OtherPacks = field(default_factory=OtherPacks)
    # (key of OtherPacks.watched, outcome of the comparison, a number on the device)
    comparisons: list[tuple[Any, Tensor]] = field(default_factory=list)
    again: bool = False  # its prompts were run before in this prediction: a pass that another node adds
    frames: int = 1  # of the latent; a picture has one
    # Of every frame of the latent, the pictures it makes: from the first to before the second. () = not known.
    pictures: tuple[tuple[int, int], ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what else the model is given, by the host's names
    notes: dict[Any, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # attention calls met so far, by kind

    def counted(self, kind: str) -> int:
        """The number of this attention call among those of its kind, from 0: for blocks that do not say theirs."""
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        return number

    @property
    def rows(self) -> int:
        """Of the whole batch."""
        return self.chunks[-1].rows.stop

    def without_readers(self) -> ModelCall:
        """The same call for an attention that is worked out once more, whose readers have heard it."""
        return replace(self, chunks=tuple(chunk.without_readers() for chunk in self.chunks))

    def once_more(self) -> ModelCall:
        """The same call for a model that is run once more on its inputs."""
        return replace(self.without_readers(), comparisons=[], notes={}, counts={})

    def edits(self, kind: AttentionKind) -> bool:
        """Whether some row has an edit of this kind."""
        items = (item.edit for chunk in self.chunks for item in chunk.edits)
        return any(isinstance(edit, (AttentionEdit, TextMix)) and edit.kind == kind for edit in items)

    @property
    def further_length(self) -> int:
        """E: columns of further texts behind the text; 0 = there are none."""
        return 0 if self.further is None else self.further.shape[1]


@dataclass(frozen=True)
class Place:
    """Where the image's queries, and the text and image they look at, lie in one attention call."""

    layer: str
    grid: tuple[int, int]  # (h, w) image tokens
    extent: tuple[int, int]  # latent cells under the grid, down and across; past the latent where the model pads
    level: int  # 0 = the finest attention grid of the model
    queries: slice  # image tokens on the query axis, frame by frame
    text: slice | None  # text tokens on the key axis; None where the call has none
    image: slice | None  # image tokens on the key axis; None where the call has none
    chunks: tuple[Chunk, ...] | None = None  # whose the rows are where another patch made more of them
    further: slice | None = None  # further texts on both axes of a joint attention, right behind the text
    filling: slice | None = None  # what the model fills its text up with, behind them
    block: int = 0  # see AttentionSite
    blocks: int = 1

    @property
    def tokens(self) -> int:
        """Image tokens of one frame: edits see one frame at a time."""
        return self.grid[0] * self.grid[1]

    def without_readers(self) -> Place:
        """The same place where readers have heard already."""
        chunks = self.chunks and tuple(chunk.without_readers() for chunk in self.chunks)
        return replace(self, chunks=chunks)

    def keys_of(self, kind: AttentionKind) -> slice | None:
        """Where the keys of a kind of edit lie; None where the call has none."""
        return self.text if kind == "image_text" else self.image


# (call, place, the attention, the function, its options) -> the result of another pack's function in place of the
# attention, with the edits of this call
Replaced = Callable[[ModelCall, Place, AttentionCall, Attention, dict[str, Any]], Tensor]


def names_of(functions: Iterable[Any]) -> str:
    """Other packs' functions as their authors know them, for errors: module and name."""
    return ", ".join(dict.fromkeys(map(_name_of, functions))) or "unknown"


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def view_of(call: ModelCall, chunk: Chunk, place: Place) -> View:
    """The part of the whole image under the token grid, which starts at the chunk's crop."""
    height, width = call.image
    return View(
        x=chunk.offset[1] / width,
        y=chunk.offset[0] / height,
        width=place.extent[1] / width,
        height=place.extent[0] / height,
    )
