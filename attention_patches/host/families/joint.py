"""Flux.1: one joint attention over [text | image | reference images], in double and single blocks."""

from __future__ import annotations

from typing import Any

import comfy.model_base
from comfy.ldm.flux.model import Flux
from torch import Tensor

from ..attention.calls import IncompatiblePatchError, ModelCall, Place, Replaced


class FluxJoint:
    name = "Flux.1 (dev, schnell, Fill, Kontext)"

    def supports(self, base_model: Any) -> bool:
        # Exactly: Flux.2, Chroma and LongCat derive from these classes but order or pad their tokens in other ways.
        return type(base_model) is comfy.model_base.Flux and type(base_model.diffusion_model) is Flux

    def factors(self, diffusion_model: Flux) -> tuple[int, ...]:
        return (diffusion_model.patch_size,)

    def last_layer(self, diffusion_model: Flux, level: int) -> str:
        return self.guided_layers(diffusion_model)[-1]

    def guided_layers(self, diffusion_model: Flux) -> tuple[str, ...]:
        """The later half of the double blocks: text and image are still two streams there, and know of each other."""
        count = len(diffusion_model.double_blocks)
        return tuple(f"double.{i}" for i in range(count // 2, count))

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """As they are: the blocks announce themselves in transformer_options."""
        return transformer_options

    def locate(self, call: ModelCall, q: Tensor, k: Tensor, options: dict[str, Any]) -> Place | None:
        if options.get("block_type") not in ("double", "single"):
            return None
        layer = f"{options['block_type']}.{options['block_index']}"
        (patch,) = call.factors
        grid = tuple((side + patch // 2) // patch for side in call.latent)
        text, image = call.text_length, grid[0] * grid[1]
        references = sum(-(-height // patch) * -(-width // patch) for height, width in call.references)
        expected = text + image + references
        if (q.shape[0], q.shape[2], k.shape[2]) != (call.rows, expected, expected):
            raise IncompatiblePatchError(
                f"Another patch changed the attention of {layer}: {q.shape[2]} queries and {k.shape[2]} keys in "
                f"{q.shape[0]} rows instead of {expected} ({text} text, {grid[0]}x{grid[1]} image and reference "
                f"tokens) in {call.rows}. Boxwright cannot tell which token lies where; remove the patch that merges "
                "or adds tokens or rows."
            )
        extent = (grid[0] * patch, grid[1] * patch)
        pixels = slice(text, text + image)
        return Place(layer, grid, extent, 0, queries=pixels, text=slice(0, text), image=pixels)

    def finish(self, call: ModelCall) -> None:
        """Every block passes through the host's attention; there is nothing that could be missed."""


FAMILY = FluxJoint()
