"""Installing edits on a MODEL, and one sampler run with them.

The patched clone carries data only: the edits, and one wrapper around the sampler. Everything with state is made when a
run starts, lives in the options of that run and is gone with it. So edits of several nodes are one list, another
pack's attention override is found wherever it was added and called first in line, and nothing survives a run.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..types import AttentionEdit, BoxwrightError, ContextEdit, Layout
from . import adapter_for
from .attend import BiasCache, edited_attention
from .family import CALL, Chunk, Family, Installed, ModelCall
from .tokenizers import LAYOUT_KEY

EDITS = "boxwright_edits"  # key of a tuple of Installed in transformer_options
WRAPPER = "boxwright"
OVERRIDE = "optimized_attention_override"


def install(model: Any, layout: Layout, edits: Sequence[AttentionEdit | ContextEdit]) -> Any:
    """A clone of the MODEL whose rows conditioned by `layout` run with `edits`, after those installed before.

    Raises UnsupportedModelError. Without edits the clone is the model.
    """
    adapter_for(model)
    patched = model.clone()
    if not edits:
        return patched
    options = patched.model_options.setdefault("transformer_options", {})
    options[EDITS] = (*options.get(EDITS, ()), *(Installed(layout, edit) for edit in edits))
    if WRAPPER not in patched.wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}):
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER, _sample_with_edits)
    return patched


def _sample_with_edits(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kw: Any
) -> Any:
    """SAMPLER_SAMPLE wrapper: the conditioning is ready, the model is loaded, no step has been taken."""
    options = extra_args["model_options"]["transformer_options"]  # a copy that belongs to this run
    _Run(adapter_for(guider.model_patcher), guider, options[EDITS], tuple(noise.shape[-2:])).attach(options)
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kw)


class _Run:
    """One run of a sampler."""

    def __init__(self, family: Family, guider: Any, installed: tuple[Installed, ...], image: tuple[int, int]) -> None:
        self.family = family
        self.model_sampling = guider.inner_model.model_sampling
        self.factors = family.factors(guider.inner_model.diffusion_model)
        self.image = image
        self.entries = _entries_with_edits(guider.conds, installed)
        self.cache = BiasCache()

    def attach(self, options: dict[str, Any]) -> None:
        self.family.attach(options)
        wrappers = options.setdefault("wrappers", {}).setdefault(WrappersMP.APPLY_MODEL, {})
        wrappers[WRAPPER] = [self.apply_model]
        options[OVERRIDE] = partial(self.attention, options.get(OVERRIDE))

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper: tell the attention calls below which rows of this batch carry which edits."""
        options = transformer_options or {}
        call = self._call(x, t, c_crossattn, options)
        if call is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        context = _edit_context(c_crossattn, call)
        output = executor(x, t, c_concat, context, control, {**options, CALL: call}, **kwargs)
        self.family.finish(call)
        return output

    def attention(self, previous: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        """optimized_attention_override: ours around whatever was in the slot."""
        host = partial(previous, func) if previous else func
        options = kwargs.get("transformer_options") or {}
        call = options.get(CALL)
        place = None if call is None else self.family.locate(call, args[0], args[1], options)
        if place is None:
            return host(*args, **kwargs)
        return edited_attention(host, call, place, self.cache, args, kwargs, in_one_piece=previous is not None)

    def _call(self, x: Tensor, t: Tensor, context: Tensor | None, options: dict[str, Any]) -> ModelCall | None:
        entries = [self.entries.get(key) for key in options.get("uuids", ())]
        if context is None or not any(entries):
            return None
        progress = schedule_progress(self.model_sampling, float(t.flatten()[0]))
        size = x.shape[0] // len(entries)
        chunks = tuple(
            _chunk(slice(i * size, (i + 1) * size), entry, progress, context.shape[1])
            for i, entry in enumerate(entries)
        )
        if not any(chunk.edits for chunk in chunks):
            return None
        return ModelCall(chunks, tuple(x.shape[-2:]), self.image, context.shape[1], progress, self.factors)


def schedule_progress(model_sampling: Any, sigma: float) -> float:
    """How far the schedule has come at this sigma: the inverse of the host's `percent_to_sigma`, in [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if model_sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    # Rounded, so that a step exactly on the edge of a window falls on the same side every time.
    return round(high, 6)


def _entries_with_edits(conds: dict[str, list[dict]], installed: tuple[Installed, ...]) -> dict[Any, tuple]:
    """uuid of a conditioning entry -> (its edits, its text length, its (y, x) in the latent).

    Entries are recognised by the layout they were encoded with, never by their position in the batch. Raises
    BoxwrightError where a layout has no conditioning in this run.
    """
    found: dict[Any, tuple] = {}
    for name, entries in conds.items():
        for entry in entries:
            if "negative" in name:
                # The host copies an area, uuid and all, from a positive entry to the negative side.
                if entry.pop(LAYOUT_KEY, None) is not None:
                    entry["uuid"] = uuid.uuid4()
                continue
            edits = tuple(item for item in installed if _encoded_with(entry, item.layout))
            if edits:
                area = entry.get("area") or (0, 0, 0, 0)
                found[entry["uuid"]] = (edits, entry["cross_attn"].shape[1], tuple(area[len(area) // 2 :]))
    seen = {item.layout.key for edits, _, _ in found.values() for item in edits}
    for item in installed:
        if item.layout.key not in seen:
            raise BoxwrightError(_foreign_prompt(item.layout, conds))
    return found


def _encoded_with(entry: dict, layout: Layout) -> bool:
    text = entry.get("cross_attn")
    if text is None:
        return False
    expected = layout.prompt.embedding
    if entry.get(LAYOUT_KEY) == layout.key:
        if text.shape[1] < expected.shape[1]:
            raise BoxwrightError(
                f"The conditioning has {text.shape[1]} text tokens, its layout {expected.shape[1]}: a node in between "
                "shortened it. Wire `positive` of Layout Prompt to the sampler without that node."
            )
        return True
    return text.shape == expected.shape and torch.equal(text.to(expected), expected)


def _foreign_prompt(layout: Layout, conds: dict[str, list[dict]]) -> str:
    own = len(layout.prompt.tokens)
    lengths = {e["cross_attn"].shape[1] for e in conds.get("positive", ()) if e.get("cross_attn") is not None}
    counts = "" if own in lengths else f" ({own} text tokens; the run has {', '.join(map(str, sorted(lengths)))})"
    return (
        f'No positive conditioning of this run was encoded with the layout of "{_short(layout.prompt.tokens.text)}"'
        f"{counts}. The layout knows the words of its own prompt only: wire `positive` of the same Layout Prompt node "
        "to the sampler (other conditioning nodes may stand in between)."
    )


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _chunk(rows: slice, entry: tuple | None, progress: float, text_length: int) -> Chunk:
    if entry is None:
        return Chunk(rows, (), text_length, (0, 0))
    edits, length, offset = entry
    active = tuple(item for item in edits if item.edit.window.contains(progress))
    return Chunk(rows, active, length, offset)


def _edit_context(context: Tensor, call: ModelCall) -> Tensor:
    for chunk in call.chunks:
        for item in chunk.edits:
            if isinstance(item.edit, ContextEdit):
                context = context.clone()
                count = len(item.layout.prompt.tokens)
                for start in range(0, context.shape[1], chunk.text_length):
                    part = context[chunk.rows, start : start + count]
                    context[chunk.rows, start : start + count] = item.edit.fn(part, item.layout)
    return context
