"""Texts in one joint attention: who reads whom, and each group of queries that read alike with what it reads.

A mask of all tokens by all tokens would say the same in N x N numbers. Most of it says nothing: the image reads all
of itself, tokens of one text read alike, and so do a few kinds of image tokens (inside a region, outside, at an edge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...core.seam import NEVER, AttentionSite
from .calls import Installed, Place
from .sending import sent

NOBODY = -1  # of keys: columns that only make a text longer; of queries: tokens that read texts as the mean image token
_IMAGE = -2
_SMALLEST = 1e-6  # a weight below is rounding of none
_MOST_RUNS = 8  # of keys that are picked out; more are masked
_LEAST = 32  # a kind of image tokens that read alike has a call of its own if it is the 32nd part of them, or more


@dataclass(frozen=True)
class TextShares:
    """How texts and image read each other; the row's own text first, then those of its mixes in order."""

    # Both float32 [texts, n], n = h * w image tokens of every frame, or of one where all frames are the same.
    image: Tensor  # by what image tokens read each text; sums to 1 over the texts
    texts: Tensor  # how far each text reads them; at most 1

    @classmethod
    def of(cls, items: Sequence[Installed], sites: Sequence[Sequence[AttentionSite]]) -> TextShares:
        """`sites`: of every item, in every frame.

        Further texts see their places also in blocks that do not read them.
        """
        image, always = (
            torch.cat([_shares(items, frame, everywhere) for frame in sites], dim=1) for everywhere in (False, True)
        )
        seen = torch.cat([image[:1], always[1:]])
        return cls(image, seen / seen.amax(dim=1, keepdim=True).clamp_min(_SMALLEST))


def acting(items: Sequence[Installed], sites: Sequence[AttentionSite]) -> tuple[bool, ...]:
    """Which mixes image tokens read at their sites; `where` of the others is False."""
    return tuple(item.edit.where(site) for item, site in zip(items, sites, strict=True))


def _shares(items: Sequence[Installed], sites: Sequence[AttentionSite], everywhere: bool) -> Tensor:
    height, width = sites[0].grid
    shares = torch.ones(1, height * width)
    for item, site, acts in zip(items, sites, acting(items, sites), strict=True):
        weights = item.edit.weigh(site).float()
        if not (acts or everywhere):
            weights = torch.zeros_like(weights)
        shares = torch.cat([shares * (1.0 - weights.sum(dim=0)).clamp_min(0.0), weights])
    return torch.where(shares < _SMALLEST, 0.0, shares)


@dataclass(frozen=True)
class JointTexts:
    """Which tokens of one joint attention belong to which text; queries and keys are the same tokens."""

    place: Place
    spans: tuple[slice, ...]  # of the further texts, from the first column behind the own one
    tokens: int  # of the whole attention

    @property
    def columns(self) -> slice:
        """All texts, and what the model fills them up with behind further ones."""
        place = self.place
        return slice(place.text.start, (place.filling or place.further or place.text).stop)

    @cached_property
    def owners(self) -> Tensor:
        """int64 over `columns`: whose each is; 0 = the own text, 1 ... = the further ones, NOBODY."""
        place, start = self.place, self.place.text.start
        owners = torch.full((self.columns.stop - start,), NOBODY)
        owners[: place.text.stop - start] = 0
        for number, span in enumerate(self.spans, 1):
            first = place.further.start - start
            owners[first + span.start : first + span.stop] = number
        if place.filling is not None:
            owners[place.filling.start - start :] = 0
        return owners

    def every_text_alone(self) -> Tensor:
        """A mask for an attention of all texts to themselves, float32 [tokens, tokens]."""
        owners = self.owners.clamp_min(0)
        return torch.where(owners[:, None] == self.owners[None], 0.0, NEVER)

    def image_bias(self, shares: TextShares) -> Tensor:
        """What is added to the scores of image tokens, float32 [n, columns]."""
        return self._by_owner(_log(shares.image).T)

    def _by_owner(self, values: Tensor) -> Tensor:
        """[..., texts] -> [..., columns]; nobody's are never read."""
        nothing = values.new_full((*values.shape[:-1], 1), NEVER)
        return torch.cat([values, nothing], dim=-1)[..., self.owners]  # NOBODY is the last

    def outside(self, shares: TextShares) -> list[QueryGroup]:
        """The queries beside the image, by what they read."""
        place, columns = self.place, self.columns
        kinds = torch.full((self.tokens,), NOBODY)
        kinds[columns] = self.owners
        kinds[place.queries] = _IMAGE
        groups = []
        for kind in kinds.unique().tolist():
            if kind == _IMAGE:
                continue
            row = torch.zeros(self.tokens)
            if kind == NOBODY:
                row[columns] = self._by_owner(_log(shares.image.mean(dim=1)))
            else:
                row[columns] = torch.where(self.owners == kind, 0.0, NEVER)
                seen = _log(shares.texts[kind])
                row[place.image] = seen.repeat((place.image.stop - place.image.start) // len(seen))
            groups.append(_alike((kinds == kind).nonzero()[:, 0], row))
        return groups

    def undisturbed(self) -> list[QueryGroup]:
        """The queries beside the image, where they read everything as it is."""
        beside = torch.ones(self.tokens, dtype=torch.bool)
        beside[self.place.queries] = False
        return [QueryGroup(beside.nonzero()[:, 0], None, None)] if bool(beside.any()) else []

    def image(self, bias: Tensor, pick: bool = True) -> list[QueryGroup]:
        """The image's queries, sorted by equal rows of their bias [n, columns].

        With `pick` they get the keys alone that they read: worth the copy where those are much fewer than all.
        """
        place, count = self.place, len(bias)
        frames = (place.queries.stop - place.queries.start) // count
        first = place.queries.start + count * torch.arange(frames)[:, None]
        mark = torch.rand(bias.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        _, kinds, counts = (bias.double() @ mark).unique(return_inverse=True, return_counts=True)
        groups, left = [], torch.ones(count, dtype=torch.bool)
        for kind in (counts * _LEAST >= count).nonzero()[:, 0].tolist():
            alike = kinds == kind
            row = bias[alike.nonzero()[0, 0]]
            if not torch.equal(bias[alike], row.expand(int(alike.sum()), -1)):
                continue  # two kinds of one mark
            queries, row = (first + alike.nonzero()[:, 0]).flatten(), self._widened(row)
            bias_of_all = row[None] if bool(row.any()) else None
            groups.append(_alike(queries, row) if pick else QueryGroup(queries, None, bias_of_all))
            left &= ~alike
        if bool(left.any()):
            rest = left.nonzero()[:, 0]
            if len(rest) == 1:  # alike, too
                return [*groups, QueryGroup((first + rest).flatten(), None, self._widened(bias[rest[0]])[None])]
            groups.append(QueryGroup((first + rest).flatten(), None, bias[rest].repeat(frames, 1), self.columns.start))
        return groups

    def _widened(self, row: Tensor) -> Tensor:
        return pad(row, (self.columns.start, self.tokens - self.columns.stop))


@dataclass(frozen=True)
class QueryGroup:
    """Some queries of a joint attention and what they read."""

    queries: Tensor  # int64, places on the query axis
    keys: tuple[slice, ...] | None  # None = all
    # float32 [1, keys] for all of them alike, or [queries, columns] of the texts, from key `start` on; None = nothing
    bias: Tensor | None
    start: int = 0

    run: slice | None = None  # the queries as a slice, if they are one

    def over_all(self, tokens: int) -> Tensor:
        """The bias of queries that are alike over all keys, [1, tokens]."""
        if self.keys is None:
            return self.bias if self.bias is not None else torch.zeros(1, tokens, device=self.queries.device)
        row = torch.full((1, tokens), NEVER, device=self.queries.device)
        first = 0
        for run in self.keys:
            width = run.stop - run.start
            row[:, run] = 0.0 if self.bias is None else self.bias[:, first : first + width].to(row)
            first += width
        return row

    def to(self, like: Tensor) -> QueryGroup:
        """The same on the device of `like`, the bias in its dtype."""
        first, last = int(self.queries[0]), int(self.queries[-1])
        run = slice(first, last + 1) if last - first == len(self.queries) - 1 else None
        bias = None if self.bias is None else sent(self.bias, like.device, like.dtype)
        return QueryGroup(sent(self.queries, like.device), self.keys, bias, self.start, run)


def _alike(queries: Tensor, row: Tensor) -> QueryGroup:
    """Queries that share one row of bias over all keys."""
    kept = row > NEVER / 2
    runs = _runs(kept)
    if bool(kept.all()) or not 1 <= len(runs) <= _MOST_RUNS:
        return QueryGroup(queries, None, row[None] if bool(row.any()) else None)
    bias = row[kept]
    return QueryGroup(queries, runs, bias[None] if bool(bias.any()) else None)


def _runs(kept: Tensor) -> tuple[slice, ...]:
    """The runs of True in bool [n]."""
    edges = torch.diff(pad(kept.int(), (1, 1))).nonzero()[:, 0].tolist()
    return tuple(slice(first, stop) for first, stop in zip(edges[::2], edges[1::2], strict=True))


def _log(weights: Tensor) -> Tensor:
    return weights.log().clamp_min(NEVER)


@dataclass(frozen=True)
class QueryGroups:
    """All queries of a joint attention in groups, on the device."""

    groups: tuple[QueryGroup, ...]
    image_apart: bool  # whether the image's are among them; else they follow in their order
    order: Tensor  # int64: brings the groups' results, one behind the other, back to the query axis

    @classmethod
    def of(cls, outside: list[QueryGroup], image: Sequence[QueryGroup], place: Place, like: Tensor) -> QueryGroups:
        """Of groups on the CPU: those outside the image, and the image's; none = they stay in their order."""
        groups = (*outside, *image)
        places = [group.queries for group in groups]
        if not image:
            places.append(torch.arange(place.queries.start, place.queries.stop))
        order = sent(torch.cat(places).argsort(), like.device)
        return cls(tuple(group.to(like) for group in groups), bool(image), order)
