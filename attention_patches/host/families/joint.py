"""Transformers with one joint attention over [text | image | reference images]: a table, and one adapter for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import IncompatiblePatchError, ModelCall, Place, Replaced
from .beside import Beside, alone, filled_up, turned, with_texts
from .blocks import (
    changed,
    filled,
    is_exactly,
    note_reached,
    note_replaced,
    other_text,
    patch_of,
    refuse_lost,
    tokens_of,
)

References = Literal["behind the image", "behind the image if a method is named", "unread", "refused"]
Inputs = Mapping[str, Any]  # what the host gives the model besides latent, time and text
_FLUX_BLOCKS = {"double": "double_blocks", "single": "single_blocks"}


def _none(network: Any, inputs: Inputs) -> tuple[int, int]:
    return 0, 0


def _length(inputs: Inputs, name: str, axis: int = 1) -> int:
    value = inputs.get(name)
    return 0 if value is None else value.shape[axis]


@dataclass(frozen=True)
class JointFamily:
    """One row of the table."""

    name: str
    base: str  # exactly these two classes of the host: what derives from them orders or pads its tokens in other ways
    network: str
    blocks: dict[str, str]  # the block_type that a block announces -> the network's list of such blocks, as they run
    # Blocks that announce nothing are counted; some of them attend within the image, too.
    announced: bool = True
    references: References = "behind the image"  # what becomes of reference latents
    # The part of one kind of blocks (the first if it is not said) whose maps guides read.
    guided: tuple[float, float] = (0.25, 0.5)
    guided_kind: str | None = None
    padding: str | None = None  # the network's attribute with the multiple to which it fills up text and image
    beside: Beside | None = None  # how further texts stand beside the own one; None = not known, so they are refused
    left: int = 0  # columns to which the host fills up a shorter text, in front of it
    image_first: bool = False
    # (network, inputs) -> tokens that the model puts before and behind the text, which are not the conditioning's.
    around: Callable[[Any, Inputs], tuple[int, int]] = _none
    # Inputs -> text tokens behind the conditioning's that the model reads from there; Layout Prompt maps them, too.
    further: Callable[[Inputs], int] | None = None
    refused_inputs: tuple[str, ...] = ()  # inputs that put other tokens elsewhere, and are refused

    def supports(self, base_model: Any) -> bool:
        return is_exactly(base_model, f"model_base.{self.base}") and is_exactly(
            base_model.diffusion_model, f"ldm.{self.network}"
        )

    def bind(self, base_model: Any) -> JointAdapter:
        network = base_model.diffusion_model
        counts = {kind: len(getattr(network, blocks)) for kind, blocks in self.blocks.items()}
        kind = self.guided_kind or next(iter(counts))
        first, end = (int(part * counts[kind]) for part in self.guided)
        named = getattr(network, "default_ref_method", None) is not None
        return JointAdapter(
            family=self,
            network=network,
            name=self.name,
            guided=tuple(f"{kind}.{number}" for number in range(first, max(end, first + 1))),
            factors=(patch_of(network),),
            layers=tuple(f"{kind}.{number}" for kind, count in counts.items() for number in range(count)),
            references="behind the image" if self.references.startswith("behind") and named else self.references,
            multiple=(self.padding and getattr(network, self.padding)) or 1,
            own_text=self.further is None,
            beside=self.beside,
        )


FAMILIES = (
    JointFamily(
        "Flux.1 (dev, schnell, Fill, Kontext)", "Flux", "flux.model.Flux", _FLUX_BLOCKS, guided=(0.5, 1.0),
        beside=Beside(),
    ),
    JointFamily(
        "Flux.2 (dev, Klein)", "Flux2", "flux.model.Flux", _FLUX_BLOCKS, guided=(0.0, 0.2), guided_kind="single",
        left=512, beside=Beside(axes=(3,)),
    ),
    JointFamily(
        "Chroma", "Chroma", "chroma.model.Chroma", _FLUX_BLOCKS, guided=(0.5, 1.0), references="unread",
        beside=Beside(),
    ),
    JointFamily(
        "Qwen-Image (and Edit)", "QwenImage", "qwen_image.model.QwenImageTransformer2DModel",
        {"double": "transformer_blocks"}, beside=Beside(axes=(0, 1, 2)),
    ),
    JointFamily(
        "Z-Image, Lumina 2", "Lumina2", "lumina.model.NextDiT", {"double": "layers"}, references="refused",
        padding="pad_tokens_multiple",
        beside=Beside(
            axes=(0,), rotary="rope_embedder", image_behind=True, refiner="context_refiner",
            filled_with=("cap_embedder", "cap_pad_token"),
        ),
    ),
    JointFamily(
        "Krea 2", "Krea2", "krea2.model.SingleStreamDiT", {"single": "blocks"},
        references="behind the image if a method is named", beside=Beside(refiner="txtfusion.refiner_blocks"),
    ),
    JointFamily(
        "Stable Diffusion 3 and 3.5", "SD3", "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        {"joint": "joint_blocks"}, announced=False, references="unread", beside=Beside(),
    ),
    JointFamily(
        "AuraFlow", "AuraFlow", "aura.mmdit.MMDiT", {"double": "double_layers", "single": "single_layers"},
        announced=False, references="unread", guided=(0.2, 0.45), guided_kind="single",
        around=lambda network, inputs: (network.register_tokens.shape[1], 0), beside=Beside(),
    ),
    JointFamily(
        "HunyuanImage 2.1", "HunyuanImage21", "hunyuan_video.model.HunyuanVideo", _FLUX_BLOCKS, guided=(0.5, 1.0),
        references="unread", around=lambda network, inputs: (0, _length(inputs, "txt_byt5")),
    ),
    JointFamily(
        "HunyuanVideo", "HunyuanVideo", "hunyuan_video.model.HunyuanVideo", _FLUX_BLOCKS, guided=(0.5, 1.0),
        references="unread", refused_inputs=("ref_latent",),
    ),
    JointFamily(
        "HunyuanVideo 1.5", "HunyuanVideo15", "hunyuan_video.model.HunyuanVideo", _FLUX_BLOCKS, guided=(0.5, 1.0),
        references="unread", refused_inputs=("ref_latent",),
        around=lambda network, inputs: (_length(inputs, "txt_byt5") + _length(inputs, "clip_fea"), 0),
    ),
    JointFamily(
        "HiDream-I1", "HiDream", "hidream.model.HiDreamImageTransformer2DModel",
        {"double": "double_stream_blocks", "single": "single_stream_blocks"}, announced=False, references="unread",
        guided=(0.5, 1.0), image_first=True, refused_inputs=("image_cond",),
        further=lambda inputs: 2 * _length(inputs, "encoder_hidden_states_llama3", 2),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class JointAdapter:
    """One model of the table."""

    family: JointFamily
    network: Any
    name: str
    factors: tuple[int, ...]  # its patch size
    layers: tuple[str, ...]  # the blocks that see text and image, in the order they run
    references: References
    multiple: int  # to which the model fills up text and image with tokens of its own; 1 = it does not
    guided: tuple[str, ...]
    own_text: bool
    beside: Beside | None
    text: Literal["joint"] = "joint"
    gradients: bool = True
    bottleneck: bool = False
    frame: int = 4

    def last_layer(self, level: int) -> str:
        return self.guided[-1]

    def room(self, length: int) -> tuple[int, int]:
        if length < self.family.left:
            return self.family.left, self.family.left - length
        return filled(length, self.multiple), 0

    def text_columns(self, length: int, own: int) -> tuple[slice]:
        """As it is: here the host never repeats a text, which would change what the model reads."""
        if self.family.further is not None:
            return (slice(0, length),)
        if own < length == self.family.left:
            return (slice(length - own, length),)
        if own != length:
            raise other_text(self.name, length, own)
        return (slice(0, own),)

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        """As they are: the blocks announce themselves in transformer_options."""
        note_replaced(call, transformer_options)
        found = [name for name in self.family.refused_inputs if call.inputs.get(name) is not None]
        if found or (call.references and self.references == "refused"):
            raise IncompatiblePatchError(
                f"{self.name} reads reference images ({', '.join(found) or 'reference latents'}) in front of or beside "
                "the image, where Boxwright does not place edits yet. Remove the reference latents from the "
                "conditioning, or the Boxwright node from this model."
            )
        return transformer_options

    def locate(self, call: ModelCall, attention: AttentionCall, options: dict[str, Any]) -> Place | None:
        (patch,) = self.factors
        grid = tokens_of(call.latent, patch)
        extent = (grid[0] * patch, grid[1] * patch)
        image = grid[0] * grid[1] * call.frames
        if self.family.announced:
            layer = f"{options.get('block_type')}.{options.get('block_index')}"
            if layer not in self.layers:  # a refiner's, of the text or the image alone
                return None
        elif attention.shape == (call.rows, image, image):
            pixels = slice(0, image)
            return Place(f"image.{call.counted('image')}", grid, extent, 0, queries=pixels, text=None, image=pixels)
        else:
            number = call.counted("joint")
            layer = self.layers[number] if number < len(self.layers) else f"block {number}"
        note_reached(call, layer)
        before, behind = self.family.around(self.network, call.inputs)
        own = call.text_length + (self.family.further(call.inputs) if self.family.further else 0)
        texts = before + own + call.further_length + behind
        text, pictures = filled(texts, self.multiple), filled(image, self.multiple)
        expected = text + pictures + self._reference_tokens(call, patch)
        if attention.shape != (call.rows, expected, expected) or layer not in self.layers:
            tokens = f"({own} text, {grid[0]}x{grid[1]} image and reference tokens)"
            raise changed(layer, attention.shape, f"{expected} {tokens} in {call.rows}")
        if self.family.image_first:
            before, text = before + pictures, 0
        pixels = slice(text, text + image)
        place = Place(
            layer,
            grid,
            extent,
            0,
            queries=pixels,
            text=slice(before, before + own),
            image=pixels,
            block=self.layers.index(layer),
            blocks=len(self.layers),
        )
        return with_texts(place, call, self.multiple)

    def prepared(self, call: ModelCall) -> AbstractContextManager:
        return filled_up(call, self.beside, self.network)

    def alone(self, call: ModelCall, attention: AttentionCall) -> Tensor | None:
        height, width = tokens_of(call.latent, *self.factors)
        image = height * width * call.frames
        return alone(attention, call, self.beside, self.network, self.multiple, image)

    def turned(self, call: ModelCall, attention: AttentionCall, place: Place) -> AttentionCall:
        if place.further is None:
            return attention
        image = place.image.stop - place.image.start
        return turned(attention, call, self.beside, self.network, self.multiple, texts=True, image=image)

    def _reference_tokens(self, call: ModelCall, patch: int) -> int:
        named = call.inputs.get("ref_latents_method") is not None
        if self.references != "behind the image" and not (self.references.startswith("behind") and named):
            return 0
        return sum(height * width for height, width in (tokens_of(size, patch) for size in call.references))

    def finish(self, call: ModelCall) -> None:
        refuse_lost(call, self.name, self.layers, self.family.announced)
