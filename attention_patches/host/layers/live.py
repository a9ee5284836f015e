"""The LoRAs of one run: hooks on the layers they touch, there while the sampler runs and gone with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor

from ...core.seam import LayerEdit
from ..attention.cache import BiasCache
from ..attention.call import AttentionCall
from ..attention.calls import IncompatiblePatchError, Installed
from ..families.base import Adapter
from .layer import ChangedLayer, PlaceWeights
from .places import LayerCall, Weights, joint_tokens, wrong_tokens
from .streams import Stream, stream_of

# (layer, its input) of a cross-attention's keys and values
Pending = dict[str, tuple[ChangedLayer, Tensor]]


class LiveLayers:
    """Made when a run starts. Weights of the base model are never touched, nor is any attribute of its modules."""

    def __init__(
        self, adapter: Adapter, network: torch.nn.Module, items: Sequence[Installed], cache: BiasCache
    ) -> None:
        edits = [item.edit for item in items if isinstance(item.edit, LayerEdit)]
        changes = list({id(change): change for edit in edits for change in edit.changes}.values())
        self.adapter, self.network, self.cache = adapter, network, cache
        self.weights = Weights(adapter, items, changes, cache)
        self.layers: dict[str, ChangedLayer] = {}
        for name in dict.fromkeys(name for change in changes for name in change.layers):
            of_layer = [(n, change.layers[name]) for n, change in enumerate(changes) if name in change.layers]
            self.layers[name] = ChangedLayer(network.get_submodule(name), of_layer)
        self.call: LayerCall | None = None
        self.pending: Pending = {}
        self.inside = self.reached = False  # in a `calling`; whether one ever came to a layer

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, the model's layers are changed in each `calling`."""
        handles = []
        try:
            for name, layer in self.layers.items():
                hook = self._hook(name, layer, stream_of(name, self.network))
                handles.append(self.network.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
            for module in self.network.modules():
                if isinstance(module, SpatialTransformer):
                    handles.append(module.register_forward_pre_hook(self._enters))
                elif isinstance(module, ResBlock):
                    handles.append(module.in_layers[-1].register_forward_hook(self._resolves))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def calling(self, call: LayerCall) -> Iterator[None]:
        """Around one call of the model: outside, its layers are those of other nodes that share it, and unchanged."""
        self.call, self.inside = call if self.weights.active(call.progress) else None, True
        try:
            yield
            if self.pending:
                raise self._lost()
            if self.call is not None and not self.reached:
                raise IncompatiblePatchError(
                    "None of the layers that the regions' LoRAs change was run: another patch computes the model in "
                    "its own way. Remove that patch from this model, or load the LoRA for the whole picture."
                )
        finally:
            self.call, self.pending, self.inside = None, {}, False

    def _enters(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if self.call is not None:
            self.call.grid = tuple(args[0].shape[-2:])

    def _resolves(self, module: torch.nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        """The convolution of a residual block before its vector for the picture is added."""
        if self.call is not None:
            self.call.pixels = tuple(out.shape[-2:])

    def _hook(self, name: str, layer: ChangedLayer, stream: Stream) -> Callable[..., Tensor | None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
            call = self.call
            self.reached = self.reached or self.inside  # before their time, too: a cache may skip the first step of it
            if call is None:
                return None
            x = args[0] if args else next(iter(kwargs.values()))
            if stream == "keys":
                if name[-1] in self.pending:
                    raise self._lost()
                self.pending[name[-1]] = layer, x
                return None
            if stream == "spread":
                return self._spread(layer, call, x, out)
            weights = self._weights(name, stream, call, x, out)
            return None if weights is None else layer.changed(x, out, weights)

        return hook

    def _spread(self, layer: ChangedLayer, call: LayerCall, x: Tensor, out: Tensor) -> Tensor | None:
        """A vector [rows, channels] that is added to all pixels, as one for each of them, [rows, channels, h, w]."""
        weights = self.weights.of_pixels(call, call.pixels, out)
        if weights is None:
            return None
        everywhere = out[:, None, None].expand(-1, *call.pixels, -1).contiguous()
        return layer.changed(x[:, None, None], everywhere, weights).movedim(-1, 1)

    def _weights(self, name: str, stream: Stream, call: LayerCall, x: Tensor, out: Tensor) -> PlaceWeights | None:
        """For the output of a layer, as ChangedLayer wants them; None where they are all 0."""
        convolution, count = self.layers[name].shape.is_convolution, call.rows * len(call.offsets)
        if stream == "whole":
            return self.weights.of_whole(call, out)
        if convolution and out.ndim == 4 and stream == "image":
            weights, expected = self.weights.of_pixels(call, tuple(out.shape[-2:]), out), f"{count} rows"
        elif out.ndim != 3:
            raise wrong_tokens(name, out.shape, "rows x tokens x channels")
        elif self.adapter.text == "separate":
            grid, length = call.grid, out.shape[1]
            expected = f"{count} rows of {grid[0]}x{grid[1]} tokens"
            if grid[0] * grid[1] != length:
                raise wrong_tokens(name, out.shape, expected)
            weights = self.weights.of_image(call, grid, length, out)
        else:
            weights, expected = self._of_joint(name, stream, call, out)
        if weights is not None and weights.all.shape[0] != 1 and out.shape[0] != count:
            raise wrong_tokens(name, out.shape, expected)
        return weights

    def _of_joint(self, name: str, stream: Stream, call: LayerCall, out: Tensor) -> tuple[PlaceWeights | None, str]:
        grid, start, image = joint_tokens(call, self.adapter)
        length, least = out.shape[1], grid[0] * grid[1] * call.frames
        if stream == "text":
            expected, fits = f"{call.text_length} text tokens", length in (call.text_length, start)
            weights = self.weights.of_text(call, grid, length, out) if fits else None
        elif stream == "image":
            expected, fits = f"{image} image tokens", least <= length <= image
            weights = self.weights.of_image(call, grid, length, out) if fits else None
        else:
            expected, fits = f"{start} text and {image} image tokens", start + least <= length <= start + image
            weights = self.weights.of_joint(call, grid, start, length, out) if fits else None
        if not fits:
            raise wrong_tokens(name, out.shape, expected)
        return weights, expected

    # --- keys and values of a cross-attention, which each place of the image reads with its own LoRA -----------------

    def taken(self) -> Pending:
        """The projections since the last attention; the attention that asks is theirs."""
        pending, self.pending = self.pending, {}
        return pending

    def mixed(
        self, attention: AttentionCall, pending: Pending, attend: Callable[[AttentionCall], Tensor], all_queries: bool
    ) -> Tensor:
        """What the queries read where every place's keys and values have the changes of its own LoRAs.

        `attend` answers some queries with some keys; with `all_queries` it is always asked with all queries.
        """
        call = self.call
        rows, count, _ = attention.shape
        for _, x in pending.values():
            if x.shape[:2] != attention.k.shape[:2] or attention.k.ndim != 3 or call.grid[0] * call.grid[1] != count:
                raise self._lost()
        terms = self.cache.once(
            ("terms", id(self), call.grid, call.latent, call.offsets, call.image, attention.q.device),
            call.progress,
            lambda: self.weights.shares(call, call.grid),
            lambda shares: self._terms_by_rows(shares, len(call.offsets), attention.q),
        )
        by_row = any(weight is not None and len(weight) > 1 for one in terms for _, _, weight in one)
        expected = call.rows * (len(call.offsets) if by_row else len(terms))
        if (by_row or len(terms) > 1) and rows != expected:
            raise wrong_tokens("of a cross-attention", attention.q.shape, f"{expected} rows")
        if len(terms) == 1:
            return self._of_rows(attention, pending, attend, terms[0], all_queries)
        out = self._of_rows(attention, pending, attend, terms[0], True)
        for entry, own in enumerate(terms[1:], 1):  # crops differ, and with them who reads what
            part = slice(entry * call.rows, (entry + 1) * call.rows)
            theirs = self._of_rows(attention, pending, attend, own, True)[part]
            out = torch.cat([out[: part.start], theirs, out[part.stop :]])
        return out

    def _of_rows(
        self, attention: AttentionCall, pending: Pending, attend: Any, terms: list[Any], all_queries: bool
    ) -> Tensor:
        out, axis = None, attention.out_axis
        everything = all_queries or torch.is_grad_enabled()
        for strengths, where, weight in terms:
            variant = attention if strengths is None else self._with(attention, pending, strengths)
            if weight is not None and axis == 2:
                weight = weight[:, None]  # beside the heads
            if where is None or everything:
                part = attend(variant) if weight is None else attend(variant) * weight.to(attention.q.dtype)
                out = part if out is None else out + part
                continue
            part = attend(variant.chosen(where))
            if out is None:
                out = part.new_zeros([attention.shape[1] if n == axis else size for n, size in enumerate(part.shape)])
            own = weight.index_select(-2, where).to(part.dtype)
            out.index_add_(axis, where, part * own)
        return out

    def _with(self, attention: AttentionCall, pending: Pending, strengths: Tensor) -> AttentionCall:
        k, v = attention.k, attention.v
        if "k" in pending:
            layer, x = pending["k"]
            k = layer.changed(x, k.clone(), PlaceWeights(strengths.to(k.dtype)))
        if "v" in pending:
            layer, x = pending["v"]
            v = layer.changed(x, v.clone(), PlaceWeights(strengths.to(v.dtype)))
        return replace(attention, k=k, v=v)

    def _terms_by_rows(self, shares: Tensor, entries: int, like: Tensor) -> list[list[Any]]:
        """Shares [lead, N, units]: terms that are one for all rows, of each entry, or of all rows with their own."""
        parts = [shares] if len(shares) > entries else shares[:, None]
        return [self._terms(part, like) for part in parts]

    def _terms(self, shares: Tensor, like: Tensor) -> list[tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """Shares [R, N, units] as a sum over sets of units: strengths [1, 1, LoRAs], places, weights [R, N, 1] of each.

        A place with shares of several units, or part of one, reads each set's keys with that set's share. Within an
        item units exclude each other; those of different items (a chain of nodes) may be at one place together.
        """
        found: dict[frozenset[int], Tensor] = {frozenset(): torch.ones(shares.shape[:2])}
        first = 0
        for count in self.weights.units:
            own = shares[..., first : first + count]
            rest = (1.0 - own.sum(dim=-1)).clamp(0.0, 1.0)
            split: dict[frozenset[int], Tensor] = {}
            for units, weight in found.items():
                for unit, share in [(None, rest), *((first + n, own[..., n]) for n in range(count))]:
                    if bool((weight * share).any()):
                        split[units if unit is None else units | {unit}] = weight * share
            found, first = split, first + count
        made = []
        with torch.inference_mode(False), torch.no_grad():
            for units, weight in found.items():
                strengths = self.weights.strengths[sorted(units)].sum(dim=0)[None, None] if units else None
                alone = len(found) == 1
                made.append(
                    (
                        None if strengths is None else strengths.to(like.device, copy=True),
                        None if alone else weight.any(dim=0).nonzero()[:, 0].to(like.device, copy=True),
                        None if alone else weight[..., None].to(like.device, copy=True),
                    )
                )
        return made

    def _lost(self) -> IncompatiblePatchError:
        return IncompatiblePatchError(
            "Another patch replaces a cross-attention whose keys or values the regions' LoRAs change, and does not "
            "call the host's attention with its options and these keys. Remove that patch from this model."
        )
