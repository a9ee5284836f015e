"""The edits of one chunk's rows that act in one attention call, and which queries and keys each of them sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...core.seam import NEVER, AttentionEdit, AttentionSite, TextMix, everywhere
from ...core.types import Layout, is_timed
from .cache import BiasCache
from .call import AttentionCall
from .calls import Chunk, IncompatiblePatchError, Installed, ModelCall, Place, view_of
from .joint_texts import JointTexts, QueryGroups, TextShares, acting
from .outside_blocks import outside_blocks
from .sending import sent


@dataclass(frozen=True)
class Block:
    """The edits of one chunk's rows that act in one attention call, in order."""

    call: ModelCall
    chunk: Chunk
    place: Place
    cache: BiasCache
    text_bias: list[Installed] = field(default_factory=list)
    image_bias: list[Installed] = field(default_factory=list)
    read: list[Installed] = field(default_factory=list)
    guides: list[Installed] = field(default_factory=list)  # readers for gradients: before any edit
    scores: list[Installed] = field(default_factory=list)
    probs: list[Installed] = field(default_factory=list)
    mixes: list[Installed] = field(default_factory=list)

    @property
    def coupled(self) -> bool:
        """Whether further texts stand beside the own one in this very attention."""
        return bool(self.mixes) and self.place.further is not None

    @property
    def differs_in_text_bias(self) -> bool:
        """Whether image tokens of a joint attention differ in a bias on the text and in nothing else.

        Then those that are biased alike share one row of bias, and no mask of tokens by tokens is made.
        """
        joint = self.place.image is not None and self.place.text is not None and self.place.further is None
        return joint and bool(self.text_bias) and not (self.image_bias or self.explicit or self.mixes)

    @property
    def biased(self) -> bool:
        """Whether something is added to scores: what an attention mask can hold."""
        return bool(self.text_bias or self.image_bias) or self.coupled

    @property
    def explicit(self) -> bool:
        """Whether scores or probabilities themselves are edited, which no fused kernel lets see."""
        return bool(self.scores or self.probs)

    @property
    def edited(self) -> bool:
        """Whether the attention to the row's own text, or of the image to itself, changes."""
        return self.biased or self.explicit

    @property
    def changes(self) -> bool:
        """Whether what the attention returns changes; else its edits only read."""
        return self.edited or bool(self.mixes)

    def site(self, item: Installed, tokens: slice, frame: int = 0) -> AttentionSite:
        """Of these tokens of one frame. Its number counts where a region holds in some frames only."""
        return AttentionSite(
            kind=item.edit.kind,
            layer=self.place.layer,
            grid=self.place.grid,
            view=view_of(self.call, self.chunk, self.place),
            level=self.place.level,
            levels=self.call.levels,
            queries=tokens,
            progress=self.call.progress,
            layout=item.layout,
            block=self.place.block,
            blocks=self.place.blocks,
            frames=self._pictures(item.layout, frame),
            memo=self.cache.memo,
            lasting=outside_blocks,
        )

    def frames(self) -> Iterator[slice]:
        """The frames on the query axis; a picture has one."""
        return _every(self.place.queries, self.place.tokens)

    def _pictures(self, layout: Layout, frame: int) -> tuple[int, int] | None:
        if self.call.frames == 1 or not is_timed(layout):
            return None
        if not self.call.pictures:
            raise IncompatiblePatchError(
                f"The model runs on a part of the film ({self.call.frames} latent frames), and nobody says which, so "
                "that start_frame and end_frame of regions cannot be followed. Remove them from the regions, or the "
                "context windows from the model."
            )
        return self.call.pictures[frame]

    def frame(self, part: slice) -> int:
        """Which frame a part of the query axis is of."""
        return (part.start - self.place.queries.start) // self.place.tokens

    def tokens(self, part: slice) -> slice:
        """Which tokens of its frame a part of the query axis holds."""
        start = (part.start - self.place.queries.start) % self.place.tokens
        return slice(start, start + part.stop - part.start)

    def columns(self, item: Installed) -> list[slice]:
        """Where an edit's keys lie on the key axis: every copy of the prompt's text, or every frame of the image."""
        place = self.place
        if item.edit.kind == "image_image":
            return [*_every(place.image, place.tokens)]
        count, start = len(item.layout.prompt.tokens), place.text.start
        texts = self.call.text_columns(place.text.stop - start, self.chunk.text_length)
        return [slice(start + text.start, start + text.start + count) for text in texts]

    def bias(self, queries: AttentionCall, part: slice) -> Tensor:
        """The sum of all bias edits for some queries of one frame, [1, 1, n, keys of the call]."""
        place, keys, tokens = self.place, queries.k.shape[queries.token_axis], self.tokens(part)
        frame = self.frame(part)
        if self.coupled:
            columns, of_texts = self.joint_texts(keys).columns, self._image_bias_of_texts(keys, queries.q)
            first = tokens.start + frame * place.tokens % of_texts.shape[2]
            text = of_texts[:, :, first : first + tokens.stop - tokens.start]
        else:
            columns = place.text
            text = self._cached_text_bias(queries.q, frame)[:, :, tokens] if self.text_bias else None
        if text is not None and columns == slice(0, keys):
            return text
        if text is not None and not self.image_bias:
            return pad(text, (columns.start, keys - columns.stop))
        total = queries.q.new_zeros(1, 1, part.stop - part.start, keys)
        if text is not None:
            total[..., columns] = text
        for item in self.image_bias:
            for columns in self.columns(item):
                zeros = torch.zeros(1, 1, part.stop - part.start, place.tokens, device=queries.q.device)
                total[..., columns] += item.edit.fn(zeros, self.site(item, tokens, frame)).to(total)
        return total.clamp_min(NEVER)

    def joint_texts(self, tokens: int) -> JointTexts:
        """The texts of a joint attention of so many tokens."""
        return JointTexts(self.place, self.call.spans, tokens)

    def query_groups_by_bias(self, like: AttentionCall) -> QueryGroups:
        """The queries of a joint attention by their bias on the text, on the device of `like`."""
        texts, timed = self.joint_texts(like.shape[1]), any(self._pictures(item.layout, 0) for item in self.text_bias)
        frames = range(self.call.frames if timed else 1)

        def work_out() -> Tensor:
            return torch.cat([self._text_bias(frame)[0, 0] for frame in frames])

        def make(found: Tensor) -> QueryGroups:
            return QueryGroups.of(texts.undisturbed(), texts.image(found, pick=False), self.place, like.q)

        own = (self.place.text.start, self.place.text.stop, self.chunk.text_length)
        key = ("by bias", *self._key(self.text_bias, like.q), like.q.dtype, like.shape[1], len(frames), *own)
        return self.cache.once(key, self.call.progress, work_out, make)

    def query_groups(self, like: AttentionCall, image: bool = True) -> QueryGroups:
        """The queries of a joint attention by what they read, on the device of `like`.

        Those of the image only with `image`, and not where each of them has scores or a bias of its own.
        """
        tokens, image = like.q.shape[like.token_axis], image and not (self.explicit or self.image_bias)
        texts = self.joint_texts(tokens)

        def work_out() -> Tensor:
            return torch.cat([self._joint_bias(texts), self._text_shares.texts.T], dim=1)

        def make(found: Tensor) -> QueryGroups:
            groups = texts.image(found[:, : len(texts.owners)]) if image else ()
            return QueryGroups.of(texts.outside(self._text_shares), groups, self.place, like.q)

        key = ("query groups", *self._joint_key(like.q), tokens, image)
        return self.cache.once(key, self.call.progress, work_out, make)

    def _image_bias_of_texts(self, tokens: int, like: Tensor) -> Tensor:
        """For image tokens of all different frames, all texts of a joint attention, [1, 1, frames * h * w, columns]."""
        key = ("texts", *self._joint_key(like), tokens)
        work_out = partial(self._joint_bias, self.joint_texts(tokens))
        return self.cache.once(
            key, self.call.progress, work_out, lambda bias: sent(bias[None, None], like.device, like.dtype)
        )

    def _joint_key(self, like: Tensor) -> tuple[Any, ...]:
        spans = tuple((span.start, span.stop) for span in self.call.spans)
        acts, frames = acting(self.mixes, self._mix_sites[0]), len(self._mix_sites)
        own = (self.place.text.start, self.place.text.stop, self.chunk.text_length)
        return (*self._key([*self.text_bias, *self.mixes], like), like.dtype, acts, frames, *own, *spans)

    def _joint_bias(self, texts: JointTexts) -> Tensor:
        bias = texts.image_bias(self._text_shares)
        own = torch.cat([self._text_bias(frame)[0, 0] for frame in range(len(self._mix_sites))])
        bias[:, : own.shape[1]] += own
        return bias.clamp_min(NEVER)

    @cached_property
    def _mix_sites(self) -> list[list[AttentionSite]]:
        """Of every mix in every frame; one frame where all are the same."""
        timed = any(self._pictures(item.layout, 0) for item in (*self.mixes, *self.text_bias))
        whole = slice(0, self.place.tokens)
        frames = range(self.call.frames if timed else 1)
        return [[self.site(item, whole, frame) for item in self.mixes] for frame in frames]

    @cached_property
    def _text_shares(self) -> TextShares:
        return TextShares.of(self.mixes, self._mix_sites)

    def shares(self, item: Installed, rows: AttentionCall) -> Shares:
        """Who reads which text of a mix at this site, in every frame."""
        count = rows.q.shape[rows.token_axis]
        acts = item.edit.where(self.site(item, slice(0, self.place.tokens)))

        def weights() -> Tensor:
            whole = slice(0, self.place.tokens)
            different = self.call.frames if self._pictures(item.layout, 0) else 1
            each = [item.edit.weigh(self.site(item, whole, frame)).float() for frame in range(different)]
            return torch.cat(each * (self.call.frames // different), dim=1) * float(acts)

        key = (*self._key([item], rows.q), self.place.queries.start, self.call.frames, count, acts)
        return self.cache.once(key, self.call.progress, weights, lambda w: _shares(w, self.place, count, rows.q.device))

    def _cached_text_bias(self, like: Tensor, frame: int) -> Tensor:
        """The sum of the bias edits on text, [1, 1, h * w, text keys], in the dtype and device of `like`."""
        columns = (self.place.text.start, self.place.text.stop, self.chunk.text_length)
        pictures = [self._pictures(item.layout, frame) for item in self.text_bias]
        key = (*self._key(self.text_bias, like), *columns, *pictures, like.dtype)
        work_out = partial(self._text_bias, frame)
        return self.cache.once(key, self.call.progress, work_out, lambda bias: sent(bias, like.device, like.dtype))

    def _key(self, items: list[Installed], like: Tensor) -> tuple[Any, ...]:
        edits = tuple(id(item.edit) for item in items)
        return edits, self.place.grid, self.place.extent, self.chunk.offset, like.device

    def _text_bias(self, frame: int) -> Tensor:
        text, count = self.place.text, self.place.tokens
        total = torch.zeros(1, 1, count, text.stop - text.start)
        for item in self.text_bias:
            site = self.site(item, slice(0, count), frame)
            values = item.edit.fn(torch.zeros(1, 1, count, len(item.layout.prompt.tokens)), site)
            for columns in self.columns(item):
                total[..., columns.start - text.start : columns.stop - text.start] += values
        return total.clamp_min(NEVER)


def _every(whole: slice, width: int) -> Iterator[slice]:
    return (slice(i, i + width) for i in range(whole.start, whole.stop, width))


def blocks_of(call: ModelCall, place: Place, cache: BiasCache) -> list[Block]:
    """One for each chunk of the call's rows, in order."""
    return [_block(call, chunk, place, cache) for chunk in place.chunks or call.chunks]


def of_own_text(attention: AttentionCall, call: ModelCall, place: Place) -> AttentionCall:
    """The call without the keys of further texts."""
    if place.text is None or place.further is not None or not call.further_length:
        return attention
    return attention.keys(slice(0, attention.shape[2] - call.further_length))


def _block(call: ModelCall, chunk: Chunk, place: Place, cache: BiasCache) -> Block:
    block = Block(call, chunk, place, cache)
    everything = slice(0, place.tokens)
    for item in chunk.edits:
        edit = item.edit
        if not isinstance(edit, (AttentionEdit, TextMix)) or place.keys_of(edit.kind) is None:
            continue
        if isinstance(edit, TextMix):
            block.mixes.append(item)
            continue
        if edit.where is everywhere or edit.where(block.site(item, everything)):
            stage: str = edit.stage
            if stage == "bias":
                stage = "text_bias" if edit.kind == "image_text" else "image_bias"
            elif item.graph:
                stage = "guides"
            getattr(block, stage).append(item)
    return block


@dataclass(frozen=True)
class Shares:
    """Who reads which text of a mix at one site; places are on the query axis."""

    own: Tensor  # float32 [queries, 1]: what is left of the attention to the row's own text
    readers: tuple[tuple[Tensor | None, Tensor], ...]  # for each text: places (None = everywhere), their weights [n, 1]


def _shares(weights: Tensor, place: Place, count: int, device: torch.device) -> Shares:
    """Of weights [texts, image tokens], on a query axis of `count`: what is no image token reads its own text alone."""
    own, readers = torch.ones(count, 1), []
    own[place.queries] = (1.0 - weights.sum(dim=0)).clamp_min(0.0)[:, None]
    for weight in weights:
        index = weight.nonzero()[:, 0]
        everywhere = len(index) == count
        where = None if everywhere else sent(index + place.queries.start, device)
        readers.append((where, sent(weight[index, None], device)))
    return Shares(sent(own, device), tuple(readers))
