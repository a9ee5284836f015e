"""What an adapter has to know of its model family. Everything else is shared (`run/`, `attention/`)."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..attention.calls import ModelCall, Place, Replaced


class Family(Protocol):
    """One adapter.

    A family that gradients can pass has two methods more. last_layer(diffusion_model, level) -> str: the name of the
    last attention layer on a grid that guides read, in the order the model runs them. guided_layers(diffusion_model) ->
    names of the layers that guides read where text and image share one attention; None where the text has its own. One
    whose attention to the text is separate, and takes `ModelCall.further` behind the text, says so by
    `further_texts = True`.
    """

    name: str

    def supports(self, base_model: Any) -> bool: ...

    def factors(self, diffusion_model: Any) -> tuple[int, ...]:
        """Latent cells per token side at every attention grid, finest first."""

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """The options of one model call with what this family needs in them.

        `replaced` is to be asked in place of functions that other packs put in place of the host's attention.
        """

    def locate(self, call: ModelCall, q: Tensor, k: Tensor, options: dict[str, Any]) -> Place | None:
        """Where the edits of this call's chunks find their blocks in this attention call; None if it holds none."""

    def finish(self, call: ModelCall) -> None:
        """After the model call; raises IncompatiblePatchError if an edit found no place."""
