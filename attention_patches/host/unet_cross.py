"""SD1.x, SD2.x, SDXL and relatives: separate self-attention and cross-attention layers in a UNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_base
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from torch import Tensor

from ..types import AttentionKind
from .family import CALL, IncompatiblePatchError, Listener, ModelCall, Place

# UNets without a text prompt: their cross-attention reads an image embedding.
_IMAGE_CONDITIONED = (comfy.model_base.SVD_img2vid, comfy.model_base.Stable_Zero123)
_SELF, _CROSS = "self-attention", "cross-attention"
_PENDING = "attention announced"  # key of (layer, which attention) in ModelCall.notes


class UNetCross:
    name = "Stable Diffusion UNets (SD 1.x, SD 2.x, SDXL and relatives)"
    further_texts = True

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
                factor = _next_factor(layer, "input", factor)
        return tuple(sorted(found))

    def last_layer(self, diffusion_model: UNetModel, level: int) -> str:
        """Name of the last cross-attention layer on one of the grids, in the order they run."""
        grids, factor, last = self.factors(diffusion_model), 1, ""
        blocks = [
            *(("input", i, block) for i, block in enumerate(diffusion_model.input_blocks)),
            ("middle", 0, diffusion_model.middle_block),
            *(("output", i, block) for i, block in enumerate(diffusion_model.output_blocks)),
        ]
        for part, number, block in blocks:
            for layer in block or ():
                if isinstance(layer, SpatialTransformer) and grids.index(factor) == level:
                    last = f"{part}.{number}.{len(layer.transformer_blocks) - 1}"
                factor = _next_factor(layer, part, factor)
        return last

    def attach(self, transformer_options: dict[str, Any], listen: Listener) -> None:
        patches = transformer_options.setdefault("patches", {})
        patches["attn1_patch"] = [*patches.get("attn1_patch", []), _announce_self]
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), _announce_cross]
        replaced = transformer_options.get("patches_replace", {})
        transformer_options["patches_replace"] = {
            kind: {key: _Heard(patch, listen) for key, patch in slots.items()} if kind in ("attn1", "attn2") else slots
            for kind, slots in replaced.items()
        }

    def locate(self, call: ModelCall, q: Tensor, k: Tensor, options: dict[str, Any]) -> Place | None:
        layer, which = call.notes.pop(_PENDING, (None, None))
        if layer is None:
            return None
        grid = tuple(options["activations_shape"][-2:])
        image = grid[0] * grid[1]
        keys, name = (image, "image") if which == _SELF else (call.text_length + call.further_length, "text")
        if q.shape[1] != image or k.shape[1] != keys:
            raise IncompatiblePatchError(
                f"Another patch changed the {which} of {layer}: {q.shape[1]} image tokens and {k.shape[1]} {name} "
                f"tokens instead of {grid[0]}x{grid[1]} and {keys}. Boxwright cannot tell which token lies where; "
                "remove the patch that merges or adds tokens."
            )
        return Place(
            layer=layer,
            grid=grid,
            extent=_extent(call, grid),
            level=_level(call, grid),
            queries=slice(0, q.shape[1]),
            text=None if which == _SELF else slice(0, call.text_length),
            image=slice(0, keys) if which == _SELF else None,
        )

    def finish(self, call: ModelCall) -> None:
        _refuse_pending(call)


FAMILY = UNetCross()


def _next_factor(layer: Any, part: str, factor: int) -> int:
    """Latent cells per feature cell behind a layer."""
    if isinstance(layer, Upsample) or (part == "output" and getattr(layer, "updown", False)):
        return factor // 2
    if isinstance(layer, Downsample) or getattr(layer, "updown", False):
        return factor * 2
    return factor


class _Heard:
    """A replaced attention of another pack (IPAdapter): readers see its queries and keys, then it does as it likes."""

    def __init__(self, patch: Callable[..., Tensor], listen: Listener) -> None:
        self.patch, self.listen = patch, listen

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        call = extra_options.get(CALL)
        announced = None if call is None else call.notes.get(_PENDING)
        if announced is not None and not self.listen(q, k, extra_options):
            call.notes[_PENDING] = announced  # an edit would change it: to be refused, or made in the host's attention
        return self.patch(q, k, v, extra_options)


def _announce_self(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """attn1_patch: the next attention call is a self-attention."""
    _announce(_SELF, "image_image", extra_options)
    return n, context, value


def _announce_cross(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """attn2_patch: the next attention call is a cross-attention (its shapes alone do not always tell).

    Further texts are added here, behind what other packs' patches have made of the text.
    """
    _announce(_CROSS, "image_text", extra_options)
    call = extra_options.get(CALL)
    if call is None or call.further is None:
        return n, context, value
    further = call.further.to(context)
    longer = torch.cat([context, further], dim=1)
    return n, longer, longer if value is context else torch.cat([value, further], dim=1)


def _announce(which: str, kind: AttentionKind, extra_options: dict[str, Any]) -> None:
    call = extra_options.get(CALL)
    if call is None:
        return
    _refuse_pending(call)
    if call.edits(kind):
        block, index = extra_options["block"], extra_options.get("block_index", 0)
        call.notes[_PENDING] = (f"{block[0]}.{block[1]}.{index}", which)


def _refuse_pending(call: ModelCall) -> None:
    layer, which = call.notes.get(_PENDING, (None, None))
    if layer is not None:
        slot = "attn1" if which == _SELF else "attn2"
        raise IncompatiblePatchError(
            f"Another patch replaces the {which} of {layer} and does not call the host's attention with its "
            f"options, so Boxwright's edit would be lost there. Remove that patch (an {slot} replace) from this model."
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
