"""Further texts behind the own one in a joint attention: what the model makes of their places, and how that is undone.

A text that the host encodes alone begins where texts begin. Behind another text it would stand further on, and where
the image's position follows the text, the image would move. Rotary positions are relative, so turning the queries and
keys of the texts once more puts every text at the distance from the image that it has when it stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.calls import ModelCall, Place
from ..attention.company import Company


@dataclass(frozen=True)
class Beside:
    """What a family has to say for that; the defaults are those of a model whose text has no positions."""

    axes: tuple[int, ...] = ()  # of the rotary positions, those that number the text's tokens; () = none do
    rotary: str = "pe_embedder"  # the network's module that makes rotations of positions [1, tokens, axes]
    image_behind: bool = False  # the image's position on these axes follows the filled up text
    refiner: str | None = None  # the network's list of blocks in which texts, all in one call, attend to themselves
    every: int = 1  # in which blocks image tokens read further texts unless the user says otherwise: 1 = all


def filled(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def with_texts(place: Place, call: ModelCall, multiple: int) -> Place:
    """The place with further texts behind its text, and what the model fills them up with behind these."""
    if not call.further_length or place.text is None:
        return place
    stop = place.text.stop + call.further_length
    end = place.text.start + filled(stop - place.text.start, multiple)
    filling = slice(stop, end) if end > stop else None
    return replace(place, further=slice(place.text.stop, stop), filling=filling)


def turned(attention: AttentionCall, call: ModelCall, beside: Beside, network: Any, multiple: int) -> AttentionCall:
    """The attention call with the queries and keys of all texts turned to where they belong."""
    if not beside.axes:
        return attention
    key = ("turns", attention.q.device)
    if key not in call.notes:
        shifts = _shifts(call, beside, multiple).to(attention.q.device)
        embedder = getattr(network, beside.rotary)
        positions = shifts.new_zeros(1, len(shifts), len(embedder.axes_dim))
        positions[..., list(beside.axes)] = shifts[:, None]
        call.notes[key] = embedder(positions)
    q, k = (_turned(t, call.notes[key], attention.token_axis) for t in (attention.q, attention.k))
    return replace(attention, q=q, k=k)


def texts_alone(
    attention: AttentionCall, call: ModelCall, beside: Beside, network: Any, multiple: int
) -> Tensor | None:
    """An attention of all texts to themselves before the blocks, each to itself alone; None where the call is none."""
    if beside.refiner is None or call.counted("texts") >= len(getattr(network, beside.refiner)):
        return None
    tokens = attention.q.shape[attention.token_axis]
    nothing, text = slice(0, 0), slice(0, call.text_length)
    place = with_texts(Place("texts", (0, 0), (0, 0), 0, nothing, text, nothing), call, multiple)
    mask = Company(place, call.spans, tokens).every_text_alone().to(attention.q)
    return turned(attention, call, beside, network, multiple).exact(mask[None, None])


def _turned(t: Tensor, turns: Tensor, axis: int) -> Tensor:
    """[rows, heads, tokens, channels] (or tokens before heads), the first tokens turned by [1, 1, n, channels / 2, 2, 2]."""
    count = turns.shape[2]
    texts, rest = t.narrow(axis, 0, count), t.narrow(axis, count, t.shape[axis] - count)
    if axis == 1:
        turns = turns.transpose(1, 2)
    return torch.cat([apply_rope1(texts, turns).to(t), rest], dim=axis)


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
