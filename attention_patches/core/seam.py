"""The seam between methods and models: a method sees one block of attention, whatever the model.

Image queries x text keys (or image keys), [B, H, N, T]: an adapter cuts the block out, runs the edits, puts it back.
Shape letters: types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .types import Layout, StepWindow, View

NEVER = -1e4  # added to a score: its softmax is exactly 0 in every float type, and float16 can still add to it
AttentionKind = Literal["image_text", "image_image"]
Rows = Literal["layout", "negative"]  # those encoded with the layout, or those of the negative prompt


def ending(edits: Iterable[Any], end: float) -> list[Any]:
    """Edits that stop at `end` of the schedule at the latest; those that would begin there or later are left out."""
    early = [edit for edit in edits if edit.window.start < end]
    return [replace(edit, window=StepWindow(edit.window.start, min(edit.window.end, end))) for edit in early]


@dataclass(frozen=True)
class AttentionSite:
    """Where a block of attention came from. Built only by adapters."""

    kind: AttentionKind  # image queries x text keys, or image queries x image keys
    layer: str  # "input.4.0", "double.7": stable, printable, used in errors
    grid: tuple[int, int]  # (h, w) image tokens, reported by the host, never guessed
    view: View  # the part of the image the grid covers (the model may run on a crop)
    level: int  # 0 = the finest attention grid of this model ...
    levels: int  # ... levels - 1 = the coarsest
    queries: slice  # which of the h * w image tokens the block holds (scores and probs come in chunks)
    progress: float  # same scale as StepWindow
    layout: Layout
    block: int = 0  # which of the model's blocks that see text and image, in the order they run; for joint attention
    blocks: int = 1  # ... of how many
    # The pictures of a film that this block is of: from the first to before the second. None where it is the same in
    # all of them, because no region of the layout asks, or there is one picture.
    frames: tuple[int, int] | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # lives as long as the run
    # The context in which to make what outlives this block of the network; `kept` and stage "read" are in it already.
    lasting: Callable[[], AbstractContextManager] = field(default=nullcontext, repr=False, compare=False)

    def kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, worked out once in a run for this key, grid, view and frames.

        Name the device in the key.
        """
        # Autograd may not save what was made in inference mode.
        key = (key, self.grid, self.view, self.frames, torch.is_inference_mode_enabled())
        if key not in self.memo:
            with self.lasting():
                self.memo[key] = make()
        return self.memo[key]


def everywhere(site: AttentionSite) -> bool:
    """The `where` of an edit that acts on every site of its kind."""
    return True


@dataclass(frozen=True)
class AttentionEdit:
    """One pure change to a block of attention, in the rows that carry the edit's layout; or a look at it.

    The block [B, H, n, K] holds B rows of the layout's conditioning entry (the whole batch of latents, in order), the
    image queries site.queries (n of them) and, by `kind`, K = T text columns or K = h * w image tokens.
    stage, cheapest first:
      "bias"   fn(zeros [1, 1, n, K], site) -> what to add to the scaled scores; stays on the host's fused attention.
               Must depend on the site alone (not on the scores): adapters cache it for the step.
      "read"   fn(probabilities [B, H, n, K], site) -> anything: it looks at what the model attends to after all bias
               and score edits, and changes nothing: the attention itself runs as if it were not there.
      "scores" fn(scaled scores [B, H, n, K], site) -> same shape, before any bias and the softmax over the whole row.
      "probs"  fn(probabilities [B, H, n, K], site) -> same shape, after it. Rows need not sum to 1 again, and adapters
               do not renormalise them.
    All float32. Queries come in pieces (site.queries) that bound the memory; edits of one stage run in list order.
    `where` says at which sites (asked with all queries); elsewhere the edit costs nothing.
    """

    name: str
    stage: Literal["bias", "read", "scores", "probs"]
    fn: Callable[[Tensor, AttentionSite], Any]
    window: StepWindow = StepWindow()
    kind: AttentionKind = "image_text"
    where: Callable[[AttentionSite], bool] = everywhere
    rows: Rows = "layout"  # "negative": of kind image_image only, for the layout's columns are those of its own prompt


@dataclass(frozen=True)
class TextMix:
    """Image tokens read further texts beside the row's own, each by a softmax of its own, and mix what they read.

    In every image-to-text attention: (1 - sum of w) * attention to the own text + sum of w_t * softmax(q k_t) v_t.
    `weigh(site)` -> w, float32 [len(texts), h * w]: at least 0, over the texts at most 1 in sum, of the site alone.
    Edits of the row's own attention come first; the mixes of one row follow one another, each on top of those before.

    Where one attention holds text and image, the texts stand behind the own one, each seen by itself and by the image
    alone: image tokens read all texts in the one softmax, with log(w_t) added to its scores and log(1 - sum of w) to
    those of the own text; a text reads the image with log(w_t / max w_t) added. Where `where` is False, image tokens
    read their own text alone.
    """

    name: str
    texts: tuple[Tensor, ...]  # float [1, T_t, C] each, as long as they like
    weigh: Callable[[AttentionSite], Tensor]
    window: StepWindow = StepWindow()
    rows: Rows = "layout"
    where: Callable[[AttentionSite], bool] = everywhere
    kind: AttentionKind = field(default="image_text", init=False)


@dataclass(frozen=True)
class ContextEdit:
    """One pure change to the encoded prompt itself: fn([B, T, C], layout) -> same shape, in the caller's dtype."""

    name: str
    fn: Callable[[Tensor, Layout], Tensor]
    window: StepWindow = StepWindow()


@dataclass(frozen=True)
class LayerEdit:
    """Changes of linear and convolution layers (LoRAs) that count by place, in every row of a run.

    A unit is a change, its strength and where it counts. In every layer that one touches, with x its input, y its
    output: y += sum over units of share_u(place) * strength_u * change_u(x). The layout's rows must be in the run.
    """

    name: str
    changes: tuple[Any, ...]  # one for each unit, the same object for the same change: what the host applies
    strengths: tuple[float, ...]  # one for each unit, any sign
    # shares(site) -> float32 [units, h * w] on any grid, or [B, units, h * w] for each picture of the batch: of the
    # site alone, the same all through a step, at least 0, at most 1 in sum over the units
    shares: Callable[[AttentionSite], Tensor]
    # words(site) -> float32 [units, T]: the share for the layout's own text columns; 0 = not the unit's word
    words: Callable[[AttentionSite], Tensor]
    window: StepWindow = StepWindow()


@dataclass(frozen=True)
class AttentionLoss:
    """How far attention maps are from what is wanted."""

    total: Tensor  # float32 [B], with a graph: each row's own loss, the gradient of which is followed
    per_phrase: Tensor  # float32 [B, phrases] in 0..1, without one: 0 = the phrase is where it should be
    phrases: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what a user should know about this grid
    blind: Tensor | None = None  # bool [B, phrases]: it misses its place, and no gradient to speak of leads there


@dataclass(frozen=True)
class LatentGuide:
    """Moves the latent (or the prediction) of the layout's rows down the gradient of a loss on attention maps.

    loss(maps [B, T, h, w], site) -> AttentionLoss. The maps are the mean over heads and layers of the layout's
    image-to-text probabilities on one grid, float32; site says which grid. They are taken before the layer's own edits,
    and for a latent's move without TextMix edits: a method that confines a phrase to its box, or lets the box read the
    phrase alone, would hide from the loss that the model wants it elsewhere.
    Step sizes are in the units of the diffusers latent, z = x / sqrt(1 + sigma^2), whatever the host's scale.
    """

    name: str
    loss: Callable[[Tensor, AttentionSite], AttentionLoss]
    step_size: Callable[[float], float]  # of the progress of the schedule
    window: StepWindow = StepWindow()
    iterations: int = 1  # gradient steps for each step of the sampler
    # Limit of one gradient step on each latent value, in sigmas, 0 = none. Of a prediction: in units of 1, at most 4.
    max_change: float = 0.0
    moves: Literal["latent", "prediction"] = "latent"
    refine_loss: Callable[[Tensor, AttentionSite], AttentionLoss] | None = None
    targets: tuple[tuple[float, float], ...] = ()  # (progress, p): then refine once, until no miss is above 1 - p
    refine_iterations: int = 0  # at most, at each target
    smallest_side: int = 16  # cells the shorter side of the coarsest grid should have; of other grids, half as many
    early_exit: bool = True  # keep no more than the last layer that is read needs; off to measure what that saves


@dataclass(frozen=True)
class Start:
    """What a NoiseEdit knows of the run that is about to start."""

    # Of each grid that was read, finest first: image-to-text probabilities before any edit, float32 [B, T, h, w], mean
    # over heads and layers, and where they are from.
    maps: tuple[tuple[Tensor, AttentionSite], ...]
    size: tuple[int, int]  # (H, W) of the latent
    free: Tensor | None = None  # bool [B, H, W]: cells that are drawn anew; None = all of them


@dataclass(frozen=True)
class NoiseEdit:
    """Changes the noise that a run starts from, once, before the sampler scales it.

    fn(noise [B, C, H, W] or [B, C, F, H, W], start) -> (same shape, one line of text for the user). The maps are those
    of one model call on the layout's own rows with the noise as it came. A run without noise, or one that begins when
    more than `latest` of its schedule is over, is left as it is.
    """

    name: str
    fn: Callable[[Tensor, Start], tuple[Tensor, str]]
    latest: float = 0.5
    smallest_side: int = 16  # cells the shorter side of the coarsest grid that is read should have; see LatentGuide


Edit = AttentionEdit | ContextEdit | LatentGuide | LayerEdit | NoiseEdit | TextMix
