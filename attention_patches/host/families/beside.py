"""Further texts behind the own one in a joint attention: what the model makes of their places, and how that is undone.

A text that the host encodes alone begins where texts begin. Behind another text it would stand further on, and where
the image's position follows the text, the image would move. Rotary positions are relative, so turning the queries and
keys of the texts once more puts every text at the distance from the image that it has when it stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import ModelCall, Place
from ..attention.joint_texts import JointTexts
from .blocks import filled


@dataclass(frozen=True)
class Beside:
    """What a family has to say for that; the defaults are those of a model whose text has no positions."""

    axes: tuple[int, ...] = ()  # of the rotary positions, those that number the text's tokens; () = none do
    rotary: str = "pe_embedder"  # the network's module that makes rotations of positions [1, tokens, axes]
    # The image's position on these axes follows the filled up text; what fills up the image stands at 0.
    image_behind: bool = False
    # The network's module that reads a text, and its parameter [1, channels] with which it then fills that up.
    filled_with: tuple[str, str] | None = None
    # Name of the network's list of blocks before the others in which texts, all in one call, attend to themselves.
    refiner: str | None = None


def with_texts(place: Place, call: ModelCall, multiple: int) -> Place:
    """The place with further texts behind its text, and what the model fills them up with behind these."""
    if not call.further_length or place.text is None:
        return place
    stop = place.text.stop + call.further_length
    end = place.text.start + filled(stop - place.text.start, multiple)
    filling = slice(stop, end) if end > stop else None
    return replace(place, further=slice(place.text.stop, stop), filling=filling)


def turned(
    attention: AttentionCall, call: ModelCall, beside: Beside, network: Any, multiple: int, texts: bool, image: int
) -> AttentionCall:
    """The attention call, of all `texts` or none and `image` tokens, with queries and keys where they belong."""
    if not beside.axes:
        return attention
    shifts = _shifts(call, beside, multiple)
    own, behind = len(shifts), filled(image, multiple) - image
    if not texts:
        shifts = shifts[:0]
    turns = _turns(call, shifts, beside, network, attention.q.device)
    more = None
    if behind and beside.image_behind:
        moved = torch.full((behind,), float(own - filled(call.text_length, multiple)))
        more = _turns(call, moved, beside, network, attention.q.device)
    start = len(shifts) + image
    q, k = (_turned(_turned(t, turns, 0, attention), more, start, attention) for t in (attention.q, attention.k))
    return replace(attention, q=q, k=k)


def alone(
    attention: AttentionCall, call: ModelCall, beside: Beside, network: Any, multiple: int, image: int
) -> Tensor | None:
    """An attention before the blocks: of all texts, each to itself alone, or of the image. None: as it is."""
    if beside.refiner is None:
        return None
    tokens = filled(call.text_length + call.further_length, multiple)
    of_texts = attention.shape == (call.rows, tokens, tokens)
    if not of_texts or call.counted("texts") >= len(network.get_submodule(beside.refiner)):
        if attention.shape != (call.rows, *2 * (filled(image, multiple),)):
            return None
        return turned(attention, call, beside, network, multiple, texts=False, image=image).fused()
    nothing, text = slice(0, 0), slice(0, call.text_length)
    place = with_texts(Place("texts", (0, 0), (0, 0), 0, nothing, text, nothing), call, multiple)
    mask = JointTexts(place, call.spans, tokens).every_text_alone().to(attention.q)
    return turned(attention, call, beside, network, multiple, texts=True, image=0).exact(mask[None, None])


def _turns(call: ModelCall, shifts: Tensor, beside: Beside, network: Any, device: torch.device) -> Tensor | None:
    """Rotations by so many positions, [1, 1, tokens, channels / 2, 2, 2]; None for no tokens."""
    key = ("turns", tuple(shifts.tolist()), device)
    if key not in call.notes:
        embedder = network.get_submodule(beside.rotary)
        positions = torch.zeros(1, len(shifts), len(embedder.axes_dim), device=device)
        positions[..., list(beside.axes)] = shifts.to(device)[:, None]
        call.notes[key] = embedder(positions) if len(shifts) else None
    return call.notes[key]


def _turned(t: Tensor, turns: Tensor | None, start: int, attention: AttentionCall) -> Tensor:
    """[rows, heads, tokens, channels] (or tokens before heads), the tokens from `start` on turned."""
    if turns is None:
        return t
    axis, count = attention.token_axis, turns.shape[2]
    before, some = t.narrow(axis, 0, start), t.narrow(axis, start, count)
    rest = t.narrow(axis, start + count, t.shape[axis] - start - count)
    return torch.cat([before, apply_rope1(some, turns if axis == 2 else turns.transpose(1, 2)).to(t), rest], dim=axis)


@contextmanager
def filled_up(call: ModelCall, beside: Beside | None, network: Any) -> Iterator[None]:
    """A model call in which every further text is filled up as if it stood alone.

    What the model fills up with exists only behind the module that reads the text, so that it is put there.
    """
    own = call.text_length
    blanks = [
        slice(own + span.start + length, own + span.stop)
        for span, length in zip(call.spans, call.lengths, strict=True)
        if span.start + length < span.stop
    ]
    if beside is None or beside.filled_with is None or not blanks:
        yield
        return
    module, token = (getattr(network, name) for name in beside.filled_with)

    def fill(module: Any, args: Any, texts: Tensor) -> Tensor:
        if texts.shape[1] != call.text_length + call.further_length:
            return texts  # of a reference
        texts = texts.clone()
        for blank in blanks:
            texts[:, blank] = token.to(texts)
        return texts

    hook = module.register_forward_hook(fill)
    try:
        yield
    finally:
        hook.remove()


def _shifts(call: ModelCall, beside: Beside, multiple: int) -> Tensor:
    """float32 over all text tokens: how many positions each has to be moved on."""
    own, further = call.text_length, call.further_length
    shifts = torch.zeros(filled(own + further, multiple))
    if beside.image_behind:
        moved = len(shifts) - filled(own, multiple)  # the image was: the own text follows
        shifts[:own] = moved
        shifts[own + further :] = moved - further
    for span in call.spans:
        if beside.image_behind:
            begins = len(shifts) - filled(span.stop - span.start, multiple)
        else:
            begins = 0
        shifts[own + span.start : own + span.stop] = begins - own - span.start
    return shifts
