"""SD1.x, SD2.x, SDXL and relatives: separate self-attention and cross-attention layers in a UNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import comfy.model_base
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from torch import Tensor

from ...core.seam import AttentionKind
from ..attention.call import AttentionCall
from ..attention.calls import Chunk, IncompatiblePatchError, ModelCall, Place, Replaced, names_of
from ..attention.saveable import saveable
from .base import NoTextsBeside

# UNets without a text prompt: their cross-attention reads an image embedding.
_IMAGE_CONDITIONED = (comfy.model_base.SVD_img2vid, comfy.model_base.Stable_Zero123)
_SELF, _CROSS = "self-attention", "cross-attention"
# Keys in ModelCall.notes:
_PENDING = "attention announced"  # an _Announced
_BEFORE = "before other patches"  # (queries, text) of the attention to come
_MOVED = "rows of other patches"  # the chunks of a cross-attention with more rows, until its result is back
_PATCHES = "other patches"  # {slot: names of other packs' functions there}


@dataclass(frozen=True)
class _Announced:
    """The attention call that comes next."""

    layer: str
    which: str
    text_length: int  # of its keys, without further texts
    chunks: tuple[Chunk, ...] | None  # whose its rows are, where they are not the call's


class UNets:
    """Every UNet of the host whose blocks read a text in an attention of its own."""

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

    def bind(self, base_model: Any) -> UNetAdapter:
        network, factor = base_model.diffusion_model, 1
        last: dict[int, str] = {}  # latent cells per token side -> the last layer that has them
        blocks = [
            *(("input", i, block) for i, block in enumerate(network.input_blocks)),
            ("middle", 0, network.middle_block),
            *(("output", i, block) for i, block in enumerate(network.output_blocks)),
        ]
        for part, number, block in blocks:
            for layer in block or ():
                if isinstance(layer, SpatialTransformer):
                    last[factor] = f"{part}.{number}.{len(layer.transformer_blocks) - 1}"
                factor = _next_factor(layer, part, factor)
        return UNetAdapter(self.name, tuple(sorted(last)), tuple(name for _, name in sorted(last.items())))


FAMILY = UNets()


@dataclass(frozen=True)
class UNetAdapter(NoTextsBeside):
    """One UNet."""

    name: str
    factors: tuple[int, ...]
    last_layers: tuple[str, ...]  # of every grid
    text: Literal["separate"] = "separate"
    gradients: bool = True
    guided: None = None
    beside: None = None
    own_text: bool = True
    bottleneck: bool = True
    frame: int = 1

    def last_layer(self, level: int) -> str:
        return self.last_layers[level]

    def room(self, length: int) -> tuple[int, int]:
        return length, 0

    def text_columns(self, length: int, own: int) -> list[slice]:
        """The host repeats a short prompt beside a longer one."""
        return [slice(i, i + own) for i in range(0, length, own)]

    def attached(self, transformer_options: dict[str, Any], call: ModelCall, replaced: Replaced) -> dict[str, Any]:
        others = transformer_options.get("patches", {})
        call.notes[_PATCHES] = {slot: names_of(functions) for slot, functions in others.items()}
        patches = {slot: [*map(_saveable, functions)] for slot, functions in others.items()}
        for slot, first, last in (
            ("attn1_patch", (), (_announce_self,)),
            ("attn2_patch", (_before,), (_announce_cross,)),
            ("attn2_output_patch", (_result,), (_returned,)),
        ):
            ours = [[partial(patch, call) for patch in place] for place in (first, last)]
            patches[slot] = [*ours[0], *patches.get(slot, []), *ours[1]]
        replacements = {
            kind: {key: _Replacement(self, call, patch, replaced) for key, patch in slots.items()}
            if kind in ("attn1", "attn2")
            else slots
            for kind, slots in transformer_options.get("patches_replace", {}).items()
        }
        return {**transformer_options, "patches": patches, "patches_replace": replacements}

    def locate(self, call: ModelCall, attention: AttentionCall, options: dict[str, Any]) -> Place | None:
        announced: _Announced | None = call.notes.pop(_PENDING, None)
        if announced is None:
            return None
        grid = tuple(options["activations_shape"][-2:])
        image, cross = grid[0] * grid[1], announced.which == _CROSS
        keys, name = (announced.text_length + call.further_length, "text") if cross else (image, "image")
        rows = announced.chunks[-1].rows.stop if announced.chunks else call.rows
        if attention.shape != (rows, image, keys):
            found, queries, others = attention.shape
            raise IncompatiblePatchError(
                f"Another patch ({_others(call, announced.which)}) changed the {announced.which} of {announced.layer}: "
                f"{queries} image tokens and {others} {name} tokens in {found} rows instead of "
                f"{grid[0]}x{grid[1]} and {keys} in {rows}. Boxwright cannot tell which token lies where; remove the "
                "patch that merges or adds tokens or rows."
            )
        return Place(
            layer=announced.layer,
            grid=grid,
            extent=self._extent(call, grid),
            level=self._level(call, grid),
            queries=slice(0, image),
            text=slice(0, announced.text_length) if cross else None,
            image=None if cross else slice(0, keys),
            chunks=announced.chunks,
        )

    def finish(self, call: ModelCall) -> None:
        _refuse_pending(call)

    def _extent(self, call: ModelCall, grid: tuple[int, int]) -> tuple[int, int]:
        """Latent cells under the grid. Every halving rounds up, so the last cell may reach past the latent."""
        for factor in self.factors:
            if grid == tuple(-(-side // factor) for side in call.latent):
                return grid[0] * factor, grid[1] * factor
        return call.latent  # a patch resized the features (Deep Shrink): they still show the whole latent

    def _level(self, call: ModelCall, grid: tuple[int, int]) -> int:
        ratio = call.latent[0] * call.latent[1] / (grid[0] * grid[1])
        return min(range(len(self.factors)), key=lambda level: abs(ratio / self.factors[level] ** 2 - 1))


def _next_factor(layer: Any, part: str, factor: int) -> int:
    """Latent cells per feature cell behind a layer."""
    if isinstance(layer, Upsample) or (part == "output" and getattr(layer, "updown", False)):
        return factor // 2
    if isinstance(layer, Downsample) or getattr(layer, "updown", False):
        return factor * 2
    return factor


class _Replacement:
    """Another pack's function in place of an attention."""

    def __init__(self, adapter: UNetAdapter, call: ModelCall, patch: Callable[..., Tensor], replaced: Replaced) -> None:
        self.adapter, self.call, self.patch, self.replaced = adapter, call, patch, replaced
        lasting = id(patch) in call.others.lasting
        self.aside = call.again and not lasting
        self.key = ("calls the host", id(patch) if lasting else _code_of(patch))  # of what is gone, ids come again

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        announced: _Announced | None = self.call.notes.get(_PENDING)
        if announced is None:
            return saveable(self.patch, q, k, v, extra_options)
        if self.aside:  # guidance by a spoilt attention (PAG): there is nothing to edit
            del self.call.notes[_PENDING]
            own = k.shape[1] - (self.call.further_length if announced.which == _CROSS else 0)
            return saveable(self.patch, q, k[:, :own], v[:, :own], extra_options)
        found = self.call.others.found
        if found.get(self.key, True):
            out = saveable(self.patch, q, k, v, extra_options)
            found[self.key] = _PENDING not in self.call.notes
            if found[self.key]:  # by the host's attention, which knew of the edits
                return out
        attention = AttentionCall(attention_pytorch, q, k, v, extra_options["n_heads"], None, (), {})
        place = self.adapter.locate(self.call, attention, extra_options)
        return self.replaced(self.call, place, attention, self.patch, extra_options)


def _code_of(function: Any) -> Any:
    """What a function that is made anew for each call has in common with the one before."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__code__", type(function))


def _before(call: ModelCall, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple:
    """attn2_patch, the first of all."""
    call.notes[_BEFORE] = n, context
    return n, context, value


def _announce_self(call: ModelCall, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple:
    """attn1_patch, the last of all: the next attention call is a self-attention."""
    _announce(call, _Announced(_layer(extra_options), _SELF, 0, None), "image_image")
    return n, context, value


def _announce_cross(call: ModelCall, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple:
    """attn2_patch, the last of all: the next attention call is a cross-attention (its shapes alone do not always tell).

    Further texts are added here, behind what other packs' patches have made of the text.
    """
    chunks, layer = None, _layer(extra_options)
    before, text = call.notes.pop(_BEFORE)
    if (n.shape[0], context.shape[:2]) != (before.shape[0], text.shape[:2]):
        chunks = _followed(call.chunks, (before, text), (n, context))
        if chunks is None and call.edits("image_text"):
            raise IncompatiblePatchError(
                f"Another patch ({_others(call, _CROSS)}) gives the cross-attention of {layer} {n.shape[0]} rows of "
                f"{context.shape[1]} text tokens instead of {call.rows} of {text.shape[1]}, and Boxwright cannot tell "
                "which of them read its prompt. Remove that patch (Region Prompt gives regions texts of their own), "
                "or wire the prompt of the layout into it as it is, with strength 1."
            )
    call.notes[_MOVED] = chunks
    _announce(call, _Announced(layer, _CROSS, context.shape[1], chunks), "image_text")
    if call.further is None:
        return n, context, value
    further = call.further if chunks is None else _moved(call, chunks)
    further = further.to(context)
    longer = torch.cat([context, further], dim=1)
    return n, longer, longer if value is context else torch.cat([value, further], dim=1)


def _layer(extra_options: dict[str, Any]) -> str:
    block = extra_options["block"]
    return f"{block[0]}.{block[1]}.{extra_options.get('block_index', 0)}"


def _announce(call: ModelCall, announced: _Announced, kind: AttentionKind) -> None:
    _refuse_pending(call)
    if call.edits(kind):
        call.notes[_PENDING] = announced


def _followed(
    chunks: tuple[Chunk, ...], before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> tuple[Chunk, ...] | None:
    """Whose the rows are that another patch made of the chunks' rows, by what they hold; None where that is unclear.

    A chunk stays itself where its queries stand beside its own text (or repeats of it); other rows are nobody's, and of
    a chunk that stands there several times readers hear once.
    """
    (n, text), (many, texts) = before, after
    size = chunks[0].rows.stop - chunks[0].rows.start
    repeats, rest = divmod(texts.shape[1], text.shape[1])
    if rest or many.shape[0] % size or texts.shape[0] != many.shape[0]:
        return None
    found: list[Chunk] = []
    met: set[int] = set()
    for start in range(0, many.shape[0], size):
        rows = slice(start, start + size)
        fits = [
            number
            for number, chunk in enumerate(chunks)
            if torch.equal(texts[rows], text[chunk.rows].repeat(1, repeats, 1))
            and torch.equal(many[rows], n[chunk.rows])
        ]
        if len(fits) > 1 and any(chunks[number].edits for number in fits):
            return None
        if not fits:
            found.append(Chunk(rows, (), text.shape[1], (0, 0)))
            continue
        chunk = chunks[fits[0]]
        edits = (i for i in chunk.edits if fits[0] not in met or getattr(i.edit, "stage", None) != "read")
        found.append(replace(chunk, rows=rows, edits=tuple(edits), origin=chunk.rows))
        met.add(fits[0])
    lost = any(chunk.edits and number not in met for number, chunk in enumerate(chunks))
    return None if lost else tuple(found)


def _moved(call: ModelCall, chunks: tuple[Chunk, ...]) -> Tensor:
    """The further texts of the call beside the rows that other patches made."""
    moved = call.further.new_zeros(chunks[-1].rows.stop, *call.further.shape[1:])
    for chunk in chunks:
        if chunk.origin is not None:
            moved[chunk.rows] = call.further[chunk.origin]
    return moved


def _result(call: ModelCall, n: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """attn2_output_patch, the first of all."""
    call.notes[_BEFORE] = n, None
    return n


def _returned(call: ModelCall, n: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """attn2_output_patch, the last of all: rows that were made for this attention are gone, and the others in place."""
    before, _ = call.notes.pop(_BEFORE)
    chunks = call.notes.pop(_MOVED, None)
    if n.shape[0] != call.rows or (chunks and _swapped(chunks, before, n)):
        raise IncompatiblePatchError(
            f"Another patch ({call.notes[_PATCHES].get('attn2_output_patch', 'unknown')}) returns the rows of "
            f"{_layer(extra_options)} in another number or order than it got them ({n.shape[0]} for {call.rows}): the "
            "prompts of this run change places. Remove that patch from this model."
        )
    return n


def _swapped(chunks: tuple[Chunk, ...], before: Tensor, after: Tensor) -> bool:
    """Whether what a chunk's attention returned ended in the place of another."""
    own = [(chunk.origin, before[chunk.rows]) for chunk in chunks if chunk.origin is not None]
    places = [origin for origin, _ in own]
    return any(
        not torch.equal(after[origin], result)
        and any(torch.equal(after[other], result) for other in places if other != origin)
        for origin, result in own
    )


def _others(call: ModelCall, which: str) -> str:
    return call.notes[_PATCHES].get("attn1_patch" if which == _SELF else "attn2_patch", "unknown")


def _refuse_pending(call: ModelCall) -> None:
    announced: _Announced | None = call.notes.get(_PENDING)
    if announced is not None:
        raise IncompatiblePatchError(
            f"Another patch replaces the {announced.which} of {announced.layer} and does not call the host's attention "
            "with its options, so Boxwright's edit would be lost there. Remove that patch from this model."
        )


def _saveable(patch: Any) -> Any:
    """A list patch of another pack as autograd can pass it; some are pairs (class of a layer, its handler)."""
    return (*patch[:-1], partial(saveable, patch[-1])) if isinstance(patch, tuple) else partial(saveable, patch)
