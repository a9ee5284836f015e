"""SD1.x, SD2.x, SDXL and relatives: separate cross-attention layers in a UNet."""

from __future__ import annotations

from typing import Any

import comfy.model_base
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

from .family import CALL, IncompatiblePatchError, ModelCall, Place

# UNets without a text prompt: their cross-attention reads an image embedding.
_IMAGE_CONDITIONED = (comfy.model_base.SVD_img2vid, comfy.model_base.Stable_Zero123)
_PENDING = "cross-attention announced"


class UNetCross:
    name = "Stable Diffusion UNets (SD 1.x, SD 2.x, SDXL and relatives)"

    def supports(self, base_model: Any) -> bool:
        unet = getattr(base_model, "diffusion_model", None)
        return (
            isinstance(unet, UNetModel)
            and not isinstance(base_model, _IMAGE_CONDITIONED)
            and any(isinstance(module, SpatialTransformer) for module in unet.modules())
            # There the "self-attention" reads the text too, and would be left unedited.
            and not any(getattr(module, "disable_self_attn", False) for module in unet.modules())
        )

    def factors(self, diffusion_model: UNetModel) -> tuple[int, ...]:
        factor, found = 1, set()
        for block in [*diffusion_model.input_blocks, diffusion_model.middle_block]:
            for layer in block or ():
                if isinstance(layer, SpatialTransformer):
                    found.add(factor)
                elif isinstance(layer, Downsample) or getattr(layer, "updown", False):
                    factor *= 2
        return tuple(sorted(found))

    def attach(self, transformer_options: dict[str, Any]) -> None:
        patches = transformer_options.setdefault("patches", {})
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), _announce]

    def locate(self, call: ModelCall, q: Tensor, k: Tensor, options: dict[str, Any]) -> Place | None:
        layer = call.notes.pop(_PENDING, None)
        if layer is None:
            return None
        grid = tuple(options["activations_shape"][-2:])
        if q.shape[1] != grid[0] * grid[1] or k.shape[1] != call.text_length:
            raise IncompatiblePatchError(
                f"Another patch changed the cross-attention of {layer}: {q.shape[1]} image tokens and {k.shape[1]} "
                f"text tokens instead of {grid[0]}x{grid[1]} and {call.text_length}. Boxwright cannot tell which token "
                "lies where; remove the patch that merges or adds tokens."
            )
        return Place(
            layer=layer,
            grid=grid,
            extent=_extent(call, grid),
            level=_level(call, grid),
            queries=slice(0, q.shape[1]),
            keys=slice(0, k.shape[1]),
        )

    def finish(self, call: ModelCall) -> None:
        _refuse_pending(call)


FAMILY = UNetCross()


def _announce(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """attn2_patch: the next attention call is a cross-attention (its shapes alone do not always tell)."""
    call = extra_options.get(CALL)
    if call is not None:
        _refuse_pending(call)
        block, index = extra_options["block"], extra_options.get("block_index", 0)
        call.notes[_PENDING] = f"{block[0]}.{block[1]}.{index}"
    return n, context, value


def _refuse_pending(call: ModelCall) -> None:
    layer = call.notes.get(_PENDING)
    if layer is not None:
        raise IncompatiblePatchError(
            f"Another patch replaces the cross-attention of {layer} and does not call the host's attention with its "
            "options, so Boxwright's edit would be lost there. Remove that patch (an attn2 replace) from this model."
        )


def _extent(call: ModelCall, grid: tuple[int, int]) -> tuple[int, int]:
    """Latent cells under the grid. Every halving of the model rounds up, so the last cell may reach past the latent."""
    for factor in call.factors:
        if grid == tuple(-(-side // factor) for side in call.latent):
            return grid[0] * factor, grid[1] * factor
    return call.latent  # a patch resized the features (Deep Shrink): they still show the whole latent


def _level(call: ModelCall, grid: tuple[int, int]) -> int:
    ratio = call.latent[0] * call.latent[1] / (grid[0] * grid[1])
    return min(range(len(call.factors)), key=lambda level: abs(ratio / call.factors[level] ** 2 - 1))
