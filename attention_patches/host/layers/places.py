"""Where the tokens of a layer lie in one call of the model, and what the LoRAs weigh there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.seam import AttentionSite, LayerEdit
from ...core.types import View
from ..attention.cache import BiasCache
from ..attention.calls import IncompatiblePatchError, Installed
from ..attention.outside_blocks import outside_blocks
from ..families.base import Adapter
from ..families.blocks import filled, tokens_of
from .layer import PlaceWeights

Size = tuple[int, int]


@dataclass
class LayerCall:
    """One call of the diffusion model, as its layers see it."""

    rows: int  # of each conditioning entry in the batch
    offsets: tuple[Size, ...]  # of each entry: (y, x) of its crop in latent cells
    owned: tuple[frozenset[str], ...]  # of each entry: the keys of the layouts that it was encoded with
    latent: Size  # (H, W) of what the model sees
    image: Size  # (H, W) of the whole latent
    text_length: int
    texts: tuple[int, ...]  # of each entry: where its own text begins, behind what the host fills up in front of it
    references: tuple[Size, ...]  # of reference latents behind the image
    frames: int
    progress: float
    grid: Size | None = None  # of the transformer of a UNet that runs now
    pixels: Size | None = None  # of its residual block that runs now


class Weights:
    """What every LoRA weighs at every place of a call; worked out once for each grid in a step."""

    def __init__(self, adapter: Adapter, items: Sequence[Installed], changes: Sequence[Any], cache: BiasCache) -> None:
        self.adapter, self.cache = adapter, cache
        self.items = [item for item in items if isinstance(item.edit, LayerEdit)]
        self.units = [len(item.edit.changes) for item in self.items]  # of each item
        number = {id(change): n for n, change in enumerate(changes)}
        # [units, LoRAs]: the strengths
        self.strengths = torch.zeros(sum(self.units), len(changes))
        unit = 0
        for item in self.items:
            for change, strength in zip(item.edit.changes, item.edit.strengths, strict=True):
                self.strengths[unit, number[id(change)]] = strength
                unit += 1

    def active(self, progress: float) -> bool:
        """Whether any LoRA counts at this point of the schedule."""
        return any(item.edit.window.contains(progress) for item in self.items)

    # What follows is of the shape [lead, ..., LoRAs] and None where all of it is 0. lead = 1 where it is the same for
    # all, the number of entries where their crops differ, entries * rows where pictures of a batch differ.

    def of_pixels(self, call: LayerCall, grid: Size, like: Tensor) -> PlaceWeights | None:
        """[lead, h, w, LoRAs] of a convolution's output."""
        return self._kept(call, ("pixels", grid), lambda: self._image(call, grid).unflatten(1, grid), like)

    def of_image(self, call: LayerCall, grid: Size, length: int, like: Tensor) -> PlaceWeights | None:
        """[lead, length, LoRAs] of image tokens; what is behind them has no place in the picture."""
        key = ("image", grid, length)
        return self._kept(call, key, lambda: self._sequence(call, grid, 0, length), like)

    def of_text(self, call: LayerCall, grid: Size, length: int, like: Tensor) -> PlaceWeights | None:
        """[lead, length, LoRAs] of text tokens."""
        return self._kept(call, ("text", grid, length), lambda: self._text(call, grid, length), like)

    def of_joint(self, call: LayerCall, grid: Size, start: int, length: int, like: Tensor) -> PlaceWeights | None:
        """[lead, length, LoRAs] of text tokens and, from `start`, image tokens."""
        return self._kept(call, ("joint", grid, start, length), lambda: self._sequence(call, grid, start, length), like)

    def of_whole(self, call: LayerCall, like: Tensor) -> PlaceWeights | None:
        """[lead, (1,) LoRAs] of what has no place: as much as every place of the picture has of a LoRA."""
        axes = (slice(None), 0) if like.ndim == 2 else slice(None)
        key = ("whole", call.latent, like.ndim)
        return self._kept(call, key, lambda: self._common(call, call.latent)[axes], like)

    def shares(self, call: LayerCall, grid: Size) -> Tensor:
        """[lead, h * w, units] on the CPU."""
        crops = call.offsets[:1] if len(set(call.offsets)) == 1 else call.offsets
        view = self._extent(call, grid)
        found = []
        for y, x in crops:
            place = View(x / call.image[1], y / call.image[0], view[1] / call.image[1], view[0] / call.image[0])
            items = [self._of_item(item, call, grid, place) for item in self.items]
            rows = {len(shares) for shares in items if shares.ndim == 3}
            if rows - {call.rows}:
                raise IncompatiblePatchError(
                    f"The subjects of {max(rows)} pictures are known, and the model is run on {call.rows}: another "
                    'node runs it on parts of the batch. Remove that node, or choose masks "boxes".'
                )
            if rows:
                items = [shares.expand(call.rows, -1, -1) for shares in items]
            joined = torch.cat(items, dim=-2).transpose(-1, -2)
            found.append(joined[0] if rows == {1} else joined)
        if found[0].ndim == 2:
            return torch.stack(found)
        return torch.cat(found if len(found) > 1 else found * len(call.offsets))

    def _of_item(self, item: Installed, call: LayerCall, grid: Size, view: View) -> Tensor:
        """[units, h * w] or [rows, units, h * w]."""
        if not item.edit.window.contains(call.progress):
            return torch.zeros(len(item.edit.changes), grid[0] * grid[1])
        return item.edit.shares(self._site(item, call, grid, view))

    def _site(self, item: Installed, call: LayerCall, grid: Size, view: View) -> AttentionSite:
        return AttentionSite(
            kind="image_image",
            layer="layers",
            grid=grid,
            view=view,
            level=0,
            levels=len(self.adapter.factors),
            queries=slice(0, grid[0] * grid[1]),
            progress=call.progress,
            layout=item.layout,
            memo=self.cache.memo,
            lasting=outside_blocks,
        )

    def _extent(self, call: LayerCall, grid: Size) -> Size:
        """Latent cells under a grid. Every halving rounds up, so the last cell may reach past the latent."""
        factor = 1
        while factor <= max(call.latent):
            if grid == tuple(-(-side // factor) for side in call.latent):
                return grid[0] * factor, grid[1] * factor
            factor *= 2
        return call.latent  # a patch resized the features: they still show the whole latent

    def _image(self, call: LayerCall, grid: Size) -> Tensor:
        """[lead, h * w, LoRAs]."""
        return self.shares(call, grid) @ self.strengths

    def _common(self, call: LayerCall, grid: Size) -> Tensor:
        """[lead, 1, LoRAs]: what all places have, 0 where a LoRA is nowhere in some."""
        image = self._image(call, grid)
        return image.amin(1, keepdim=True).clamp_min(0.0) + image.amax(1, keepdim=True).clamp_max(0.0)

    def _sequence(self, call: LayerCall, grid: Size, start: int, length: int) -> Tensor:
        """[lead, length, LoRAs]: text up to `start`, then the image frame by frame, then what has no place."""
        parts = [self._text(call, grid, start)] if start else []
        parts.append(self._image(call, grid).repeat(1, call.frames, 1))
        behind = length - sum(part.shape[1] for part in parts)
        parts.append(self._common(call, grid).expand(-1, behind, -1))
        entries = max(len(part) for part in parts)
        return torch.cat([part.expand(entries, -1, -1) for part in parts], dim=1)

    def _text(self, call: LayerCall, grid: Size, length: int) -> Tensor:
        """[lead, length, LoRAs]: each region's LoRA at its own words; elsewhere as much as all places have of it."""
        common = self._common(call, grid)
        each = max(1, len(common) // len(call.offsets))  # rows of an entry
        common = common.expand(len(call.offsets) * each, length, -1).clone()
        for entry, (owned, start) in enumerate(zip(call.owned, call.texts, strict=True)):
            words = torch.zeros(length, sum(self.units))
            unit = 0
            for item, count in zip(self.items, self.units, strict=True):
                if item.layout.key in owned and item.edit.window.contains(call.progress):
                    own = item.edit.words(self._site(item, call, grid, View())).t()[: length - start]
                    words[start : start + own.shape[0], unit : unit + count] = own
                unit += count
            theirs = (words @ (self.strengths != 0).float()) > 0
            own = slice(entry * each, (entry + 1) * each)
            common[own] = torch.where(theirs, words @ self.strengths, common[own])
        return common if len(common) > 1 and not all(torch.equal(one, common[0]) for one in common) else common[:1]

    def _kept(self, call: LayerCall, key: Any, work_out: Any, like: Tensor) -> PlaceWeights | None:
        # A grid says too little: of a smaller crop it may be the finest one, of the whole latent one further up.
        place = call.latent, call.offsets, call.image
        key = ("layers", id(self), *key, *place, call.owned, call.texts, call.rows, like.device, like.dtype)

        def here(weights: Tensor) -> PlaceWeights | None:
            if not bool(weights.any()):
                return None
            with torch.inference_mode(False), torch.no_grad():  # autograd may not save what was made in inference mode
                lead = weights.shape[0]
                alone = lead in (1, call.rows * len(call.offsets))
                rows = weights if alone else weights.repeat_interleave(call.rows, dim=0)
                return PlaceWeights.of(rows.to(device=like.device, dtype=like.dtype, copy=True))

        return self.cache.once(key, call.progress, work_out, here)


def joint_tokens(call: LayerCall, adapter: Adapter) -> tuple[Size, int, int]:
    """Of a joint family: the grid of image tokens, where they begin behind the text, and how many follow that text."""
    (patch,) = adapter.factors
    grid, multiple = tokens_of(call.latent, patch), getattr(adapter, "multiple", 1)
    references = sum(height * width for height, width in (tokens_of(size, patch) for size in call.references))
    image = filled(grid[0] * grid[1] * call.frames, multiple) + references
    return grid, filled(call.text_length, multiple), image


def wrong_tokens(name: str, found: Sequence[int], expected: str) -> IncompatiblePatchError:
    """The error for a layer with other tokens or rows than the model makes."""
    return IncompatiblePatchError(
        f"Another patch gives the layer {name} the shape {'x'.join(map(str, found))} where {expected} were expected, "
        "so that Boxwright cannot tell which token lies where. Remove the patch that merges or adds tokens or rows."
    )
