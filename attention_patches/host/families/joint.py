"""Transformers with one joint attention over [text | image | reference images]: a table, and one adapter for all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.model_base
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import IncompatiblePatchError, ModelCall, Place, Replaced, names_of
from .beside import Beside, alone, filled, filled_up, turned, with_texts

_REPLACED, _REACHED = "blocks replaced", "layers reached"  # keys in ModelCall.notes
References = Literal["behind the image", "unread", "refused"]


@dataclass(frozen=True)
class JointFamily:
    """One row of the table."""

    name: str
    base: type  # exactly these two classes: what derives from them orders or pads its tokens in other ways
    network: type
    blocks: dict[str, str]  # the block_type that a block announces -> the network's list of such blocks, as they run
    # Blocks that announce nothing are counted (then `blocks` has one kind); some of them attend within the image, too.
    announced: bool = True
    references: References = "behind the image"  # what becomes of reference latents
    guided: tuple[float, float] = (0.25, 0.5)  # the part of its first kind of blocks whose maps guides read
    padding: str | None = None  # the network's attribute with the multiple to which it fills up text and image
    beside: Beside | None = None  # how further texts stand beside the own one; None = not known, so refused

    def supports(self, base_model: Any) -> bool:
        return type(base_model) is self.base and type(base_model.diffusion_model) is self.network

    def bind(self, base_model: Any) -> JointAdapter:
        network = base_model.diffusion_model
        counts = {kind: len(getattr(network, blocks)) for kind, blocks in self.blocks.items()}
        kind, count = next(iter(counts.items()))
        first, end = (int(part * count) for part in self.guided)
        return JointAdapter(
            name=self.name,
            guided=tuple(f"{kind}.{number}" for number in range(first, max(end, first + 1))),
            factors=(network.patch_size,),
            layers=tuple(f"{kind}.{number}" for kind, count in counts.items() for number in range(count)),
            announced=self.announced,
            references=self.references,
            multiple=(self.padding and getattr(network, self.padding)) or 1,
            beside=self.beside,
            network=network,
        )


FAMILIES = (
    JointFamily(
        "Flux.1 (dev, schnell, Fill, Kontext)", comfy.model_base.Flux, Flux,
        {"double": "double_blocks", "single": "single_blocks"}, guided=(0.5, 1.0), beside=Beside(),
    ),
    JointFamily(
        "Chroma", comfy.model_base.Chroma, Chroma,
        {"double": "double_blocks", "single": "single_blocks"}, guided=(0.5, 1.0), references="unread",
        beside=Beside(),
    ),
    JointFamily(
        "Qwen-Image (and Edit)", comfy.model_base.QwenImage, QwenImageTransformer2DModel,
        {"double": "transformer_blocks"}, beside=Beside(axes=(0, 1, 2)),
    ),
    JointFamily(
        "Z-Image, Lumina 2", comfy.model_base.Lumina2, NextDiT,
        {"double": "layers"}, references="refused", padding="pad_tokens_multiple",
        beside=Beside(axes=(0,), rotary="rope_embedder", image_behind=True, refiner="context_refiner",
                      filled_with=("cap_embedder", "cap_pad_token")),
    ),
    JointFamily(
        "Stable Diffusion 3 and 3.5", comfy.model_base.SD3, OpenAISignatureMMDITWrapper,
        {"joint": "joint_blocks"}, announced=False, references="unread",
        beside=Beside(),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class JointAdapter:
    """One model of the table."""

    name: str
    factors: tuple[int, ...]  # its patch size
    layers: tuple[str, ...]  # the blocks that see text and image, in the order they run
    announced: bool
    references: References
    multiple: int  # to which the model fills up text and image with tokens of its own; 1 = it does not
    guided: tuple[str, ...]
    beside: Beside | None
    network: Any = field(repr=False)
    text: Literal["joint"] = "joint"
    gradients: bool = True

    def last_layer(self, level: int) -> str:
        return self.guided[-1]

    def text_columns(self, length: int, own: int) -> tuple[slice]:
        """As it is: here the host never repeats a text, which would change what the model reads."""
        if own != length:
            raise IncompatiblePatchError(
                f"Another patch gives {self.name} {length} text tokens instead of the prompt's {own}, and Boxwright "
                "cannot tell which are the prompt's. Remove the patch that adds, repeats or merges text."
            )
        return (slice(0, own),)

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """As they are: the blocks announce themselves in transformer_options."""
        slots = transformer_options.get("patches_replace", {}).get("dit", {})
        call.notes[_REPLACED] = {slot: patch for slot, patch in slots.items() if id(patch) in call.others.lasting}
        if call.references and self.references == "refused":
            raise IncompatiblePatchError(
                f"{self.name} reads reference images in front of the image, where Boxwright does not place edits yet. "
                "Remove the reference latents from the conditioning, or the Boxwright node from this model."
            )
        return transformer_options

    def locate(self, call: ModelCall, attention: AttentionCall, options: dict[str, Any]) -> Place | None:
        (patch,) = self.factors
        grid = _tokens(call.latent, patch)
        extent = (grid[0] * patch, grid[1] * patch)
        text, image = call.text_length, grid[0] * grid[1] * call.frames
        if self.announced:
            layer = f"{options.get('block_type')}.{options.get('block_index')}"
            if layer not in self.layers:  # a refiner's, of the text or the image alone
                return None
        elif attention.shape == (call.rows, image, image):
            pixels = slice(0, image)
            return Place(f"image.{call.counted('image')}", grid, extent, 0, queries=pixels, text=None, image=pixels)
        else:
            layer = f"joint.{call.counted('joint')}"
        call.notes.setdefault(_REACHED, set()).add(layer)
        start = filled(text + call.further_length, self.multiple)
        expected = start + filled(image, self.multiple)
        if self.references == "behind the image":
            expected += sum(height * width for height, width in (_tokens(size, patch) for size in call.references))
        if attention.shape != (call.rows, expected, expected):
            rows, queries, keys = attention.shape
            raise IncompatiblePatchError(
                f"Another patch changed the attention of {layer}: {queries} queries and {keys} keys in "
                f"{rows} rows instead of {expected} ({text} text, {grid[0]}x{grid[1]} image and reference "
                f"tokens) in {call.rows}. Boxwright cannot tell which token lies where; remove the patch that merges "
                "or adds tokens or rows."
            )
        pixels = slice(start, start + image)
        place = Place(
            layer, grid, extent, 0, queries=pixels, text=slice(0, text), image=pixels,
            block=self.layers.index(layer), blocks=len(self.layers),
        )  # fmt: skip
        return with_texts(place, call, self.multiple)

    def prepared(self, call: ModelCall) -> AbstractContextManager:
        return filled_up(call, self.beside, self.network)

    def alone(self, call: ModelCall, attention: AttentionCall) -> Tensor | None:
        return alone(attention, call, self.beside, self.network, self.multiple, self._image_tokens(call))

    def turned(self, call: ModelCall, attention: AttentionCall, place: Place) -> AttentionCall:
        if place.further is None:
            return attention
        image = place.image.stop - place.image.start
        return turned(attention, call, self.beside, self.network, self.multiple, texts=True, image=image)

    def _image_tokens(self, call: ModelCall) -> int:
        height, width = _tokens(call.latent, *self.factors)
        return height * width * call.frames

    def finish(self, call: ModelCall) -> None:
        """A block whose attention never came by is one that another pack computes, or leaves out, all run long."""
        reached, replaced = call.notes.get(_REACHED, set()), call.notes[_REPLACED]
        missing = {layer for layer in self.layers if layer not in reached}
        if self.announced:
            lost = [patch for slot, patch in replaced.items() if f"{slot[0].split('_')[0]}.{slot[1]}" in missing]
        else:  # counted, so that the last ones are missing, whichever was replaced
            lost = list(replaced.values()) if missing else []
        if lost:
            raise IncompatiblePatchError(
                f"Another patch ({names_of(lost)}) replaces blocks of {self.name} and does not call the host's "
                "attention with its options, so Boxwright's edit would be lost there. Remove that patch."
            )


def _tokens(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Tokens down and across: the model fills up the last ones."""
    return -(-size[0] // patch), -(-size[1] // patch)
