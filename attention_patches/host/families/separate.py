"""Transformers whose blocks attend to the image and then, apart, to the text: a table, and one adapter for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import IncompatiblePatchError, ModelCall, Place, Replaced
from .base import NoTextsBeside
from .blocks import changed, is_exactly, note_reached, note_replaced, other_text, patch_of, refuse_lost, tokens_of

Inputs = Mapping[str, Any]  # what the host gives the model besides latent, time and text
What = Literal["image", "text", "other"]  # what one attention call of a block reads
_FURTHER = "boxwright_further_texts"  # key of a wrapper


def _image_then_text(network: Any, inputs: Inputs) -> tuple[What, ...]:
    return "image", "text"


def _of_wan(network: Any, inputs: Inputs) -> tuple[What, ...]:
    """Image-to-video models read a picture's features too; without a picture that attention gets the text."""
    if network.model_type != "i2v":
        return "image", "text"
    return "image", "text" if inputs.get("clip_fea") is None else "other", "text"


def _none(network: Any, inputs: Inputs, grid: tuple[int, int]) -> tuple[int, int]:
    return 0, 0


def _around_wan(network: Any, inputs: Inputs, grid: tuple[int, int]) -> tuple[int, int]:
    """A reference picture as a frame in front; further latents and frames behind."""
    patch, before, behind = patch_of(network), 0, 0
    reference = inputs.get("reference_latent")
    if network.ref_conv is not None and reference is not None:
        height, width = (side // patch for side in reference.shape[-2:])
        before = height * width
    added = inputs.get("time_dim_concat")
    if added is not None:
        behind += added.shape[2] * grid[0] * grid[1]
    for latent in inputs.get("context_latents") or ():
        height, width = tokens_of(latent.shape[-2:], patch)
        behind += latent.shape[2] * height * width
    return before, behind


@dataclass(frozen=True)
class SeparateFamily:
    """One row of the table."""

    name: str
    bases: tuple[str, ...]  # exactly one of these classes of the host, and exactly this network
    network: str
    blocks: str  # the network's list of blocks, as they run
    # The number of its block stands beside an attention call; else calls are counted (older hosts tell none of Cosmos).
    announced: bool = True
    reads: Callable[[Any, Inputs], tuple[What, ...]] = _image_then_text  # a block's attention calls, as they run
    # (network, inputs, grid) -> tokens of other pictures before and behind the image's.
    around: Callable[[Any, Inputs, tuple[int, int]], tuple[int, int]] = _none
    guided: tuple[float, float] = (0.25, 0.5)  # the part of the blocks whose maps guides read
    gradients: bool = True  # not where blocks write into what the backward pass needs
    own_text: bool = True
    frame: int = 4  # pictures that a frame of a film's latent makes, but for the first, which makes one
    masked: bool = False  # the model takes a mask of the text as the argument behind it
    refused_inputs: tuple[str, ...] = ()  # inputs that put tokens elsewhere, and are refused

    def supports(self, base_model: Any) -> bool:
        return any(is_exactly(base_model, f"model_base.{base}") for base in self.bases) and is_exactly(
            base_model.diffusion_model, f"ldm.{self.network}"
        )

    def bind(self, base_model: Any) -> SeparateAdapter:
        network = base_model.diffusion_model
        count = len(getattr(network, self.blocks))
        first, end = (int(part * count) for part in self.guided)
        layers = tuple(f"double.{number}" for number in range(count))
        return SeparateAdapter(
            family=self,
            network=network,
            name=self.name,
            factors=(patch_of(network),),
            layers=layers,
            guided=layers[first : max(end, first + 1)],
            gradients=self.gradients,
            own_text=self.own_text,
            frame=self.frame,
        )


FAMILIES = (
    SeparateFamily(
        "Wan 2.1 and 2.2", ("WAN21", "WAN22"), "wan.model.WanModel", "blocks", reads=_of_wan, around=_around_wan,
    ),
    SeparateFamily(
        "Cosmos-Predict2", ("CosmosPredict2",), "cosmos.predict2.MiniTrainDIT", "blocks", announced=False,
    ),
    SeparateFamily(
        "Anima", ("Anima",), "anima.model.Anima", "blocks", announced=False, own_text=False,
    ),
    SeparateFamily(
        "LTX-Video (up to 0.9.8)", ("LTXV",), "lightricks.model.LTXVModel", "transformer_blocks", announced=False,
        masked=True, refused_inputs=("keyframe_idxs", "guide_attention_entries"), gradients=False, frame=8,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SeparateAdapter(NoTextsBeside):
    """One model of the table."""

    family: SeparateFamily
    network: Any
    name: str
    factors: tuple[int, ...]  # its patch size
    layers: tuple[str, ...]  # its blocks, in the order they run
    guided: tuple[str, ...]
    gradients: bool
    own_text: bool
    frame: int
    beside: None = None
    text: Literal["separate"] = "separate"
    bottleneck: bool = False

    def last_layer(self, level: int) -> str:
        return self.guided[-1]

    def room(self, length: int) -> tuple[int, int]:
        return length, 0

    def text_columns(self, length: int, own: int) -> tuple[slice]:
        """As it is: here the host never repeats a text."""
        if own != length and self.own_text:
            raise other_text(self.name, length, own)
        return (slice(0, length),)

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """With further texts behind the text as the model gets it, behind what other packs do to its inputs."""
        note_replaced(call, transformer_options)
        found = [name for name in self.family.refused_inputs if call.inputs.get(name) is not None]
        if found:
            raise IncompatiblePatchError(
                f"{self.name} puts guiding pictures ({', '.join(found)}) among its frames, where Boxwright cannot tell "
                "which token lies where. Remove the guides from the conditioning, or the Boxwright node from this "
                "model."
            )
        if call.further is None:
            return transformer_options
        wrappers = transformer_options.get("wrappers", {})
        longer = partial(_with_further_texts, call, self.family.masked)
        around = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), _FURTHER: [longer]}
        return {**transformer_options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: around}}

    def locate(self, call: ModelCall, attention: AttentionCall, options: dict[str, Any]) -> Place | None:
        reads = self.family.reads(self.network, call.inputs)
        if self.family.announced:
            number = options.get("block_index")
            if number is None:
                return None
            turn = call.counted(f"block {number}")
        else:
            number, turn = divmod(call.counted("block"), len(reads))
        layer = f"double.{number}"
        if layer not in self.layers or turn >= len(reads):
            raise changed(layer, attention.shape, f"{len(reads)} attention calls in each of {len(self.layers)} blocks")
        if reads[turn] == "other":
            return None
        (patch,) = self.factors
        grid = tokens_of(call.latent, patch)
        image = grid[0] * grid[1] * call.frames
        before, behind = self.family.around(self.network, call.inputs, grid)
        cross, total = reads[turn] == "text", before + image + behind
        keys = call.text_length + call.further_length if cross else total
        if attention.shape != (call.rows, total, keys):
            raise changed(layer, attention.shape, f"{total} image and {keys} {reads[turn]} tokens in {call.rows}")
        if cross:
            note_reached(call, layer)
        pixels = slice(before, before + image)
        return Place(
            layer=layer,
            grid=grid,
            extent=(grid[0] * patch, grid[1] * patch),
            level=0,
            queries=pixels,
            text=slice(0, call.text_length) if cross else None,
            image=None if cross else pixels,
        )

    def finish(self, call: ModelCall) -> None:
        refuse_lost(call, self.name, self.layers, self.family.announced)


def _with_further_texts(
    call: ModelCall, masked: bool, executor: Any, x: Any, time: Tensor, text: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """DIFFUSION_MODEL wrapper."""
    text = torch.cat([text, call.further.to(text)], dim=1)
    if masked and args and args[0] is not None:
        args = (torch.cat([args[0], args[0].new_ones(*args[0].shape[:-1], call.further_length)], dim=-1), *args[1:])
    return executor(x, time, text, *args, **kwargs)
