"""Installing edits on a MODEL, and one sampler run with them.

The patched clone carries data only: the edits, and one wrapper around the sampler. Everything with state is made when a
run starts, lives in the options of that run and is gone with it. So edits of several nodes are one list, another
pack's attention override is found wherever it was added and called first in line, and nothing survives a run.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.types import AttentionEdit, BoxwrightError, ContextEdit, LatentGuide, Layout, TextMix, UnsupportedModelError
from . import adapter_for, guidance
from .attend import BiasCache, edited_attention, replaced_attention
from .family import (
    CALL,
    MEMO,
    Chunk,
    Extra,
    Family,
    IncompatiblePatchError,
    Installed,
    ModelCall,
    OtherPacks,
)
from .gradient import refuse_without_gradient
from .tokenizers import LAYOUT_KEY

EDITS = "boxwright_edits"  # key of a tuple of Installed in transformer_options
NOTHING = Extra({}, aside=False)
RUN = "boxwright_run"  # key of the Run in transformer_options
WRAPPER = "boxwright"
COMPILED = "torch.compile"  # key of the wrapper that the host's TorchCompileModel adds
OVERRIDE = "optimized_attention_override"


def install(model: Any, layout: Layout, edits: Sequence[AttentionEdit | ContextEdit | LatentGuide | TextMix]) -> Any:
    """A clone of the MODEL whose rows conditioned by `layout` run with `edits`, after those installed before.

    Raises UnsupportedModelError, for guides also where the family has no gradient, and for mixes where it has no
    attention to the text alone. Without edits it is the same model.
    """
    family = adapter_for(model)
    patched = model.clone()
    if not edits:
        return patched
    options = patched.model_options.setdefault("transformer_options", {})
    options[EDITS] = (*options.get(EDITS, ()), *(Installed(layout, edit) for edit in edits))
    if any(isinstance(edit, TextMix) for edit in edits) and not getattr(family, "further_texts", False):
        raise UnsupportedModelError(
            f"In {family.name} text and image are read together, so that a region cannot have a text of its own in the "
            "same pass. Use Region Conditioning, which takes a pass for each region, or a method that "
            "edits scores (Region Prompt in its dense mode, Rectified Attention)."
        )
    guides = [edit for edit in edits if isinstance(edit, LatentGuide)]
    if guides:
        refuse_without_gradient(family)
    if any(guide.moves == "latent" for guide in guides):
        _wrap(patched, WrappersMP.OUTER_SAMPLE, guidance.sample_with_guided_latents)
    if any(guide.moves == "prediction" for guide in guides):
        _wrap(patched, WrappersMP.PREDICT_NOISE, guidance.predict_with_moves)
    _wrap(patched, WrappersMP.SAMPLER_SAMPLE, _sample_with_edits)
    _wrap(patched, WrappersMP.PREDICT_NOISE, _predict_at_any_size)
    return patched


def _wrap(patched: Any, kind: str, wrapper: Any) -> None:
    if WRAPPER not in patched.wrappers.get(kind, {}):
        patched.add_wrapper_with_key(kind, WRAPPER, wrapper)


def _sample_with_edits(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kw: Any
) -> Any:
    """SAMPLER_SAMPLE wrapper: the conditioning is ready, the model is loaded, no step has been taken."""
    options = extra_args["model_options"]["transformer_options"]  # a copy that belongs to this run
    if COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        raise IncompatiblePatchError(
            "TorchCompileModel compiles the model without looking at its options, so that Boxwright's edits would be "
            "left out or stay on after their time. Remove TorchCompileModel from this model."
        )
    run = Run(adapter_for(guider.model_patcher), guider, options[EDITS], noise)
    run.attach(options)
    guidance.tell_idle_guides(run, sigmas)
    result = executor(guider, sigmas, extra_args, callback, noise, *args, **kw)
    run.report_unheard()
    return result


def _predict_at_any_size(executor: Any, x: Tensor, timestep: Tensor, model_options: dict, *args: Any, **kw: Any) -> Any:
    """PREDICT_NOISE wrapper: the latent as the sampler has it now."""
    run = model_options["transformer_options"].get(RUN)
    if run is not None:
        run.sees(x)
    return executor(x, timestep, model_options, *args, **kw)


@dataclass(frozen=True)
class _Entry:
    """A conditioning entry with edits."""

    edits: tuple[Installed, ...]
    text_length: int
    area: tuple[int, ...] | None  # (height, width, y, x) in latent cells; None = the whole latent

    def crop(self, image: tuple[int, int]) -> tuple[int, int, int, int]:
        """(height, width, y, x) of what the model sees for this entry."""
        if self.area is None:
            return (*image, 0, 0)
        height, width, y, x = self.area
        return min(height, image[0] - y), min(width, image[1] - x), y, x

    def chunk(
        self, rows: slice, progress: float, image: tuple[int, int], extra: Extra, key: Any, heard: bool
    ) -> Chunk:
        edits = (item for item in self.edits if not isinstance(item.edit, LatentGuide))
        active = (item for item in edits if item.edit.window.contains(progress))
        kept = (item for item in active if not (extra.aside and isinstance(item.edit, TextMix)))
        # A guide asks what the prompt itself does. Where a region reads a text of its own, that holds what the prompt
        # wants there, wherever the model would draw it.
        kept = (item for item in kept if not (heard and getattr(item.edit, "stage", None) == "read"))
        return Chunk(rows, (*kept, *extra.items.get(key, ())), self.text_length, self.crop(image)[2:])


class Run:
    """One run of a sampler."""

    EXTRA = "boxwright_extra"  # key of an Extra in transformer_options
    ASIDE = "boxwright_aside"  # key in transformer_options of passes that readers are not to hear

    def __init__(self, family: Family, guider: Any, installed: tuple[Installed, ...], noise: Tensor) -> None:
        self.family = family
        self.guider = guider
        self.guides = [item for item in installed if isinstance(item.edit, LatentGuide)]
        self.progress = progress_of(guider.inner_model.model_sampling)
        self.factors = family.factors(guider.inner_model.diffusion_model)
        self.batch = noise.shape[0]
        self.begun_at = self.image = tuple(noise.shape[-2:])  # (H, W) of the latent
        self.entries = _entries_with_edits(guider.conds, installed)
        self.installed = installed
        self.met: set[Any] = set()  # uuids of the entries that the model was run on
        self.heard: set[Any] = set()  # those that readers have heard in the prediction under way
        self.cache = BiasCache()

    def attach(self, options: dict[str, Any]) -> None:
        self.others = OtherPacks(frozenset(map(id, _replacements(options, self.guider.conds))))
        wrappers = options.setdefault("wrappers", {}).setdefault(WrappersMP.APPLY_MODEL, {})
        wrappers[WRAPPER] = [self.apply_model]
        options[OVERRIDE] = partial(self.attention, options.get(OVERRIDE))
        options[MEMO] = self.cache.memo
        options[RUN] = self
        # Outermost, so that it hears of every prediction that the sampler asks for, once.
        around = self.guider.model_options["transformer_options"].setdefault("wrappers", {})
        others = {key: kept for key, kept in around.get(WrappersMP.PREDICT_NOISE, {}).items() if key != WRAPPER}
        around[WrappersMP.PREDICT_NOISE] = {WRAPPER: [self.predict], **others}
        if any(item.edit.moves == "prediction" for item in self.guides):
            kinds = options["wrappers"].setdefault(WrappersMP.CALC_COND_BATCH, {})
            kinds[WRAPPER] = [partial(guidance.predict_with_guides, self)]

    def sees(self, x: Tensor) -> None:
        """What the sampler gives the model: the whole latent, which some enlarge on the way (SamplerLCMUpscale)."""
        self.batch = x.shape[0]
        size, begun_at = tuple(x.shape[-2:]), self.begun_at
        scales = [now / before for now, before in zip(size, begun_at, strict=True)]
        rounding = sum(0.5 / side for side in begun_at)
        if min(scales) >= 1 and abs(scales[0] - scales[1]) <= rounding:
            self.image = size

    def conditioning(self, layout: Layout) -> list[dict]:
        """The entries of this run that were encoded with the layout."""
        return [entry for entries in self.guider.conds.values() for entry in entries if self._carries(entry, layout)]

    def items_of(self, entries: list[dict], item: Installed) -> list[dict]:
        """Those of some entries that carry the item's layout."""
        return [entry for entry in entries if self._carries(entry, item.layout)]

    def _carries(self, entry: dict, layout: Layout) -> bool:
        known = self.entries.get(entry.get("uuid"))
        return known is not None and any(item.layout.key == layout.key for item in known.edits if _of_layout(item))

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE wrapper: readers hear each conditioning once in a prediction, when it is first evaluated.

        What other nodes evaluate it for in the same prediction, to compare or to steer, is no part of the run's own.
        """
        self.heard = set()
        return executor(*args, **kwargs)

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
        call = self._call(x, t, c_crossattn, {**kwargs, "transformer_options": options})
        if call is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        context = _edit_context(c_crossattn, call)
        inner = self.family.attached({**options, CALL: call}, call, partial(replaced_attention, self.cache))
        output = executor(x, t, c_concat, context, control, inner, **kwargs)
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
        return edited_attention(host, call, place, self.cache, args, kwargs, previous is not None, func)

    def _call(self, x: Tensor, t: Tensor, context: Tensor | None, inputs: dict[str, Any]) -> ModelCall | None:
        uuids = inputs["transformer_options"].get("uuids", ())
        entries = [self.entries.get(key) for key in uuids]
        if context is None or not any(entries):
            return None
        self.met.update(uuids)
        latent, size = tuple(x.shape[-2:]), x.shape[0] // len(entries)
        if size * len(entries) != x.shape[0] or size > self.batch:
            raise IncompatiblePatchError(
                f"Another patch runs the model on {x.shape[0]} rows for {len(entries)} prompts of {self.batch} "
                "pictures, so that Boxwright cannot tell whose they are. Remove the patch that multiplies rows."
            )
        for entry in entries:
            if entry and entry.crop(self.image)[:2] != latent:
                height, width = entry.crop(self.image)[:2]
                raise IncompatiblePatchError(
                    f"Another patch, or the sampler, runs the model on {latent[0]}x{latent[1]} latent cells instead of "
                    f"{height}x{width} and does not say which part that is, so regions would land in the wrong place. "
                    "Remove the patch that cuts the latent into tiles, or choose a sampler that keeps the latent's "
                    "size or enlarges it as a whole."
                )
        progress = self.progress(float(t.flatten()[0]))
        extra = inputs["transformer_options"].get(self.EXTRA, NOTHING)
        aside = extra.aside or self.ASIDE in inputs["transformer_options"]
        rows = [slice(i * size, (i + 1) * size) for i in range(len(entries))]
        chunks = tuple(
            entry.chunk(part, progress, self.image, extra, key, aside or key in self.heard)
            if entry
            else Chunk(part, (), context.shape[1], (0, 0))
            for part, entry, key in zip(rows, entries, uuids, strict=True)
        )
        if not aside:
            self.heard.update(uuids)
        if not any(chunk.edits for chunk in chunks):
            return None
        references = tuple(tuple(latent.shape[-2:]) for latent in inputs.get("ref_latents") or ())
        further = self._further_texts(chunks, context, x.device)
        return ModelCall(
            chunks, latent, self.image, context.shape[1], references, progress, self.factors, further, self.others
        )

    def _further_texts(self, chunks: Sequence[Chunk], context: Tensor, device: torch.device) -> Tensor | None:
        """The texts of every chunk's mixes side by side, [rows, E, C] on the device, made once while they are the same.

        Rows with fewer end in zeros that nobody reads.
        """
        texts = [[t for i in chunk.edits if isinstance(i.edit, TextMix) for t in i.edit.texts] for chunk in chunks]
        longest = max(sum(text.shape[1] for text in own) for own in texts)
        if not longest:
            return None
        rows = tuple((chunk.rows.start, *map(id, own)) for chunk, own in zip(chunks, texts, strict=True))
        # Autograd may not save what was made in inference mode.
        key = ("further texts", rows, context.shape[0], device, torch.is_inference_mode_enabled())
        if key not in self.cache.memo:
            further = context.new_zeros(context.shape[0], longest, context.shape[2])
            for chunk, own in zip(chunks, texts, strict=True):
                start = 0
                for text in own:
                    further[chunk.rows, start : start + text.shape[1]] = text.to(context)
                    start += text.shape[1]
            self.cache.memo[key] = further.to(device)
        return self.cache.memo[key]

    def report_unheard(self) -> None:
        """Mixes of the negative prompt's rows learn that this run had none: guiders decide that as they go."""
        heard = {id(item) for key, entry in self.entries.items() if key in self.met for item in entry.edits}
        for item in self.installed:
            report = None if _of_layout(item) else getattr(item.edit, "report", None)
            if report is not None and id(item) not in heard:
                report("negative phrases had no effect: this run evaluated no negative prompt (CFG 1)")


def progress_of(model_sampling: Any) -> Callable[[float], float]:
    """How far the schedule has come at a sigma: the inverse of the host's `percent_to_sigma`, in [0, 1].

    For one run. Found by bisection on a twin of the schedule in main memory, each sigma once: on a GPU every look-up in
    the host's own table waits for the device.
    """
    twin = copy.copy(model_sampling)
    twin._buffers = {name: None if table is None else table.cpu() for name, table in model_sampling._buffers.items()}

    @cache
    def progress(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if twin.percent_to_sigma(middle) > sigma:
                low = middle
            else:
                high = middle
        # Rounded, so that a step exactly on the edge of a window falls on the same side every time.
        return round(high, 6)

    return progress


def _replacements(options: dict[str, Any], conds: dict[str, list[dict]]) -> Iterator[Any]:
    """Other packs' functions in place of an attention, as a run begins with them: of the model and of hooks."""
    sources = [options]
    for entry in (entry for entries in conds.values() for entry in entries):
        hooks = getattr(entry.get("hooks"), "hooks", ())
        sources += [getattr(hook, "transformers_dict", None) or {} for hook in hooks]
    for source in sources:
        for slots in source.get("patches_replace", {}).values():
            yield from slots.values()


def schedule_progress(model_sampling: Any, sigma: float) -> float:
    """`progress_of` for a single sigma."""
    return progress_of(model_sampling)(sigma)


def _of_layout(item: Installed) -> bool:
    """Whether the edit acts in the rows that were encoded with its layout (else: in those of the negative prompt)."""
    return getattr(item.edit, "rows", "layout") == "layout"


def _entries_with_edits(conds: dict[str, list[dict]], installed: tuple[Installed, ...]) -> dict[Any, _Entry]:
    """uuid of a conditioning entry -> its edits.

    Entries are recognised by the layout they were encoded with, never by their position in the batch; edits of the
    negative rows go to every entry of the negative prompt. For an entry with an area the host adds a copy to every
    other list, which has the name, text and mark of the one and the model inputs of the other: what the model reads
    decides, and every copy gets a uuid of its own. Raises BoxwrightError where a layout has no conditioning in this
    run.
    """
    of_input: dict[int, _Entry | None] = {}  # id of what the model reads as text -> its entry
    found: dict[Any, _Entry] = {}
    for name, entries in conds.items():
        for entry in entries:
            read = id(entry["model_conds"].get("c_crossattn", entry))
            if read not in of_input:  # the original: copies come after it
                if "negative" not in name:
                    edits = tuple(i for i in installed if _of_layout(i) and _encoded_with(entry, i.layout))
                elif name == "negative" and entry.get("cross_attn") is not None:
                    edits = tuple(i for i in installed if not _of_layout(i))
                else:
                    edits = ()
                of_input[read] = _Entry(edits, entry["cross_attn"].shape[1], None) if edits else None
            else:
                entry["uuid"] = uuid.uuid4()
            if of_input[read]:
                found[entry["uuid"]] = replace(of_input[read], area=entry.get("area"))
    seen = {item.layout.key for entry in found.values() for item in entry.edits if _of_layout(item)}
    for item in installed:
        if item.layout.key not in seen:
            raise BoxwrightError(_foreign_prompt(item.layout, conds))
    return found


def _encoded_with(entry: dict, layout: Layout) -> bool:
    text = entry.get("cross_attn")
    if text is None:
        return False
    expected, key = layout.prompt.embedding, entry.get(LAYOUT_KEY)
    if key == layout.key:
        if text.shape[1] < expected.shape[1]:
            raise BoxwrightError(
                f"The conditioning has {text.shape[1]} text tokens, its layout {expected.shape[1]}: a node in between "
                "shortened it. Wire `positive` of Layout Prompt to the sampler without that node."
            )
        return True
    return key is None and text.shape == expected.shape and torch.equal(text.to(expected), expected)


def _foreign_prompt(layout: Layout, conds: dict[str, list[dict]]) -> str:
    own = len(layout.prompt.tokens)
    lengths = {e["cross_attn"].shape[1] for e in conds.get("positive", ()) if e.get("cross_attn") is not None}
    counts = "" if own in lengths else f" ({own} text tokens; the run has {', '.join(map(str, sorted(lengths)))})"
    return (
        f'No positive conditioning of this run was encoded with the layout of "{_short(layout.prompt.tokens.text)}"'
        f"{counts}. The layout knows the words of its own prompt only: wire `positive` of the same Layout Prompt node "
        "to the sampler (other conditioning nodes may stand in between). If it is the prompt of an Attention Recorder, "
        "write there exactly the text of the positive conditioning."
    )


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
