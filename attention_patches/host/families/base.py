"""What an adapter has to know of its model family. Everything else is shared (`run/`, `attention/`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import ModelCall, Place, Replaced
from .beside import Beside


class Family(Protocol):
    """Models that one kind of adapter fits."""

    @property
    def name(self) -> str:
        """What users call them."""

    def supports(self, base_model: Any) -> bool:
        """Whether its adapter fits this model (the host's BaseModel)."""

    def bind(self, base_model: Any) -> Adapter:
        """The adapter of this very model: what was read from it once, and never changes."""


class Adapter(Protocol):
    """How edits reach the attention of one model, and what it can do. Immutable; notes of a call go into the call."""

    # Read only: an adapter is frozen.
    @property
    def name(self) -> str:
        """What users call its family."""

    @property
    def text(self) -> Literal["separate", "joint"]:
        """separate = image tokens attend to the text in an attention of its own, and `ModelCall.further` may stand
        behind the text; joint = one attention holds text and image."""

    @property
    def gradients(self) -> bool:
        """Whether autograd passes the model here; then the next two can be asked."""

    @property
    def guided(self) -> tuple[str, ...] | None:
        """Names of the layers whose maps guides read, in order; None = all of a grid."""

    @property
    def factors(self) -> tuple[int, ...]:
        """Latent cells per token side at every attention grid, finest first."""

    @property
    def beside(self) -> Beside | None:
        """How further texts stand beside the own one in a joint attention; None = they cannot, and mixes are refused
        there. Then `prepared`, `alone` and `turned` are never asked."""

    @property
    def own_text(self) -> bool:
        """Whether the conditioning's embedding is what image tokens read. Where the model reads more, or makes
        something else of it, other embeddings cannot stand in for it: edits of it and further texts are refused."""

    @property
    def frame(self) -> int:
        """Pictures that a frame of a film's latent makes, but for the first, which makes one."""

    @property
    def bottleneck(self) -> bool:
        """Whether it is a UNet, in whose middle H-Space Edit acts."""

    def last_layer(self, level: int) -> str:
        """Name of the last layer on a grid that guides read, in the order the model runs them."""

    def room(self, length: int) -> tuple[int, int]:
        """Columns that a text of `length` takes with what fills it up, and how many of those lie in front of it."""

    def text_columns(self, length: int, own: int) -> Sequence[slice]:
        """Where a conditioning entry's text of `own` columns lies among the `length` of a call: every copy of it."""

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """The options of one model call with what this family needs in them.

        `replaced` is to be asked in place of functions that other packs put in place of the host's attention.
        """

    def locate(self, call: ModelCall, attention: AttentionCall, options: dict[str, Any]) -> Place | None:
        """Where the edits of this call's chunks find their blocks in this attention call; None if it holds none."""

    def alone(self, call: ModelCall, attention: AttentionCall) -> Tensor | None:
        """What an attention call without a Place returns, of texts each to itself alone; None if it stays as it is."""

    def turned(self, call: ModelCall, attention: AttentionCall, place: Place) -> AttentionCall:
        """The attention call with every further text where it would stand if it were alone."""

    def prepared(self, call: ModelCall) -> AbstractContextManager:
        """The context in which the model is called with further texts."""

    def finish(self, call: ModelCall) -> None:
        """After the model call; raises IncompatiblePatchError if an edit found no place."""


class NoTextsBeside:
    """The part of an adapter whose `beside` is None: no text of an attention call stands beside another."""

    def alone(self, call: ModelCall, attention: AttentionCall) -> Tensor | None:
        return None

    def turned(self, call: ModelCall, attention: AttentionCall, place: Place) -> AttentionCall:
        return attention

    def prepared(self, call: ModelCall) -> AbstractContextManager:
        return nullcontext()
