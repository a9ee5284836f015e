"""One run of a sampler with edits: which rows of which model call carry what. One file, since its wrappers share notes.

Everything with state is made when a run starts, lives in the options of that run and is gone with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.seam import ContextEdit, LayerEdit, TextMix
from ..attention.cache import BiasCache
from ..attention.call import AttentionCall
from ..attention.calls import CALL, MEMO, Chunk, Extra, IncompatiblePatchError, Installed, ModelCall, OtherPacks
from ..attention.edited import edited_attention
from ..attention.others import replaced_attention
from ..attention.sending import sent
from ..families.base import Adapter
from ..layers.live import LiveLayers
from ..layers.places import LayerCall
from .entries import areas_of, crop_of, edits_by_entry, entries_with_edits, of_layout, part_copies
from .inputs import further_texts, rows_of, runs_of_equals, spans_of, texts_of, with_longer_mask
from .schedule import progress_of

NOTHING = Extra({}, aside=False)
RUN = "boxwright_run"  # key of the Run in transformer_options, and of its own wrapper
WRAPPER = "boxwright"
PROGRESS = "boxwright_progress"  # key of the schedule's progress in a call's transformer_options, once it is known
OVERRIDE = "optimized_attention_override"


class Run:
    """One run of a sampler."""

    EXTRA = "boxwright_extra"  # key of an Extra in transformer_options
    ASIDE = "boxwright_aside"  # key in transformer_options of passes that readers are not to hear

    def __init__(
        self, adapter: Adapter, guider: Any, installed: tuple[Installed, ...], noise: Tensor, sigmas: Tensor
    ) -> None:
        self.adapter = adapter
        self.guider = guider
        self.progress = progress_of(guider.inner_model.model_sampling, sigmas.tolist())
        self.batch = noise.shape[0]
        self.pictures = _pictures(_frames(noise), adapter.frame)
        self.begun_at = self.image = tuple(noise.shape[-2:])  # (H, W) of the latent
        part_copies(guider.conds)
        self.entries = entries_with_edits(guider.conds, installed)
        self.installed = installed
        self.met: set[Any] = set()  # uuids of the entries that the model was run on
        self.heard: set[Any] = set()  # those that readers have heard in the prediction under way
        self.evaluated: set[Any] = set()  # those that it has run, but for gradients
        self.cache = BiasCache()
        self.areas = areas_of(guider.conds)  # of every entry, with edits or not
        self.layers: LiveLayers | None = None
        if any(isinstance(item.edit, LayerEdit) for item in installed):
            if guider.model_options.get("multigpu_clones"):
                raise IncompatiblePatchError(
                    "This model runs on several GPUs, and the LoRAs of regions are put into the copy on one of them. "
                    "Remove the node that spreads the model, or load the LoRA for the whole picture."
                )
            self.layers = LiveLayers(adapter, guider.inner_model.diffusion_model, installed, self.cache)

    def with_layers(self) -> AbstractContextManager:
        """Around the sampler: the changes of layers are there inside, and gone outside, however it ends."""
        return self.layers.hooked() if self.layers else nullcontext()

    def attach(self, options: dict[str, Any]) -> None:
        """Put the run into the transformer_options of its sampler, around what other packs have put there."""
        self.others = OtherPacks(frozenset(map(id, _replacements(options, self.guider.conds))))
        wrappers = options.setdefault("wrappers", {}).setdefault(WrappersMP.APPLY_MODEL, {})
        wrappers[WRAPPER] = [self.apply_model]
        self.previous = options.get(OVERRIDE)
        self.override = options[OVERRIDE] = partial(self.attention, self.previous)
        options[MEMO] = self.cache.memo
        options[RUN] = self
        # Outermost, so that it hears of every prediction that the sampler asks for, once; and what guides add is added
        # after other nodes that compare predictions (H-Space Edit).
        around = self.guider.model_options["transformer_options"].setdefault("wrappers", {})
        before = around.get(WrappersMP.PREDICT_NOISE, {})
        own = {WRAPPER: before[WRAPPER]} if WRAPPER in before else {}
        order = {RUN: [self.predict], **own}
        around[WrappersMP.PREDICT_NOISE] = order | {key: kept for key, kept in before.items() if key not in order}

    def adopt(self, conds: dict[str, list[dict]]) -> None:
        """Conditioning that a sampler adds to its run, prepared by the host; it carries edits as the others do."""
        part_copies(conds)
        self.entries.update(edits_by_entry(conds, self.installed))
        self.areas.update(areas_of(conds))

    def sees(self, x: Tensor) -> None:
        """What the sampler gives the model: the whole latent, which some enlarge on the way (SamplerLCMUpscale)."""
        self.batch = x.shape[0]
        size, begun_at = tuple(x.shape[-2:]), self.begun_at
        scales = [now / before for now, before in zip(size, begun_at, strict=True)]
        rounding = sum(0.5 / side for side in begun_at)
        if min(scales) >= 1 and abs(scales[0] - scales[1]) <= rounding:
            self.image = size

    def conditioning(self, item: Installed) -> list[dict]:
        """The entries of this run that were encoded with the item's layout, or carry the item for less."""
        return [entry for entries in self.guider.conds.values() for entry in self.items_of(entries, item)]

    def items_of(self, entries: list[dict], item: Installed) -> list[dict]:
        """Those of some entries that `conditioning` has for the item."""
        return [entry for entry in entries if self._carries(entry, item)]

    def _carries(self, entry: dict, item: Installed) -> bool:
        known = self.entries.get(entry.get("uuid"))
        return known is not None and (item.layout.key in known.layouts or any(own is item for own in known.edits))

    def predict(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE wrapper: the latent as the sampler has it now.

        And readers hear each conditioning once in a prediction, when it is first evaluated. What other nodes evaluate
        it for in the same prediction, to compare or to steer, is no part of the run's own.
        """
        self.begins(x)
        return executor(x, *args, **kwargs)

    def begins(self, x: Tensor) -> None:
        """A prediction at x, by whoever asks for one without the sampler's guider too."""
        self.sees(x)
        self.heard, self.evaluated = set(), set()

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper: tell the attention calls below which rows of this batch carry which edits."""
        options = transformer_options or {}
        ours = any(key in self.entries for key in options.get("uuids", ()))
        if ours or self.layers:
            options = {**options, PROGRESS: self._progress(t, {"transformer_options": options})}
        inputs = {**kwargs, "transformer_options": options}
        groups = self._rows_with_equal_texts(t, inputs) if ours and self.adapter.text == "joint" else ()
        if len(groups) > 1:
            given = (x, t, c_concat, c_crossattn, control, options, *args), kwargs
            parts = [rows_of(given, group, x.shape[0], options) for group in groups]
            return torch.cat([self.apply_model(executor, *some, **named) for some, named in parts])
        call = self._call(x, t, c_crossattn, inputs)
        beside = call is not None and self._beside(call)
        with ExitStack() as around:
            if self.layers:
                further = call.further_length if beside else 0
                around.enter_context(self.layers.calling(self._layer_call(x, t, c_crossattn, inputs, further)))
            if call is None:
                options = options if self.layers else self._without_override(options)
                return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)
            context = _edit_context(c_crossattn, call)
            if beside:
                context = sent(context, call.further.device, call.further.dtype)
                context = torch.cat([context, call.further], dim=1)
                kwargs = with_longer_mask(kwargs, c_crossattn.shape[1], call.further_length)
                around.enter_context(self.adapter.prepared(call))

            def run(call: ModelCall) -> Tensor:
                inner = self.adapter.attached({**options, CALL: call}, call, partial(replaced_attention, self.cache))
                # The host's UNets take what a ControlNet made out of its lists.
                spare = control
                if isinstance(control, dict):
                    spare = {name: [*each] if isinstance(each, list) else each for name, each in control.items()}
                output = executor(x, t, c_concat, context, spare, inner, *args, **kwargs)
                self.adapter.finish(call)
                return output

            output = run(call)
            if self.others.are_otherwise(call.comparisons):  # what was taken for granted of other packs was wrong
                output = run(call.once_more())
            return output

    def attention(self, previous: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        """optimized_attention_override: ours around whatever was in the slot."""
        host = partial(previous, func) if previous else func
        options = kwargs.get("transformer_options") or {}
        call = options.get(CALL)
        pending = self.layers.taken() if self.layers else None
        if call is None and not pending:
            return host(*args, **kwargs)
        attention = AttentionCall.of(host, args, kwargs)
        place = None if call is None else self.adapter.locate(call, attention, options)
        if call is not None and self._beside(call):
            if place is None:
                alone = self.adapter.alone(call, attention)
                return host(*args, **kwargs) if alone is None else alone
            attention = self.adapter.turned(call, attention, place)
        if not pending:
            if place is None:
                return host(*args, **kwargs)
            return edited_attention(attention, call, place, self.cache, previous is not None, func)
        if place is None:
            return self.layers.mixed(attention, pending, AttentionCall.fused, previous is not None)
        heard = iter([call])  # readers hear once, and first: of the keys as they come without a region's LoRA

        def edited(variant: AttentionCall) -> Tensor:
            first = next(heard, None)
            own, where = (call, place) if first else (call.without_readers(), place.without_readers())
            return edited_attention(variant, own, where, self.cache, previous is not None, func)

        return self.layers.mixed(attention, pending, edited, True)

    def _without_override(self, options: dict[str, Any]) -> dict[str, Any]:
        """For a call in which nothing acts: from 0.37 on, any override takes a checkpoint's own attention away."""
        override = options.get(OVERRIDE)
        if override is not self.override:  # another's around it, which may ask for ours
            return options
        rest = {key: value for key, value in options.items() if key != OVERRIDE}
        return rest if self.previous is None else {**rest, OVERRIDE: self.previous}

    def _call(self, x: Tensor, t: Tensor, context: Tensor | None, inputs: dict[str, Any]) -> ModelCall | None:
        uuids = inputs["transformer_options"].get("uuids", ())
        entries = [self.entries.get(key) for key in uuids]
        if context is None or not any(entries):
            return None
        self.met.update(uuids)
        latent, size = tuple(x.shape[-2:]), self._rows_each(x, len(entries))
        for entry in entries:
            if entry:
                _check_crop(entry.crop(self.image), latent)
        progress = self._progress(t, inputs)
        chunks = tuple(
            self._chunk(slice(i * size, (i + 1) * size), key, progress, inputs)
            or Chunk(slice(i * size, (i + 1) * size), (), context.shape[1], (0, 0))
            for i, key in enumerate(uuids)
        )
        again = all(key in self.evaluated for key, entry in zip(uuids, entries, strict=True) if entry)
        if not self._aside(inputs):
            self.heard.update(uuids)
        if not self._aside(inputs) or self.EXTRA not in inputs["transformer_options"]:
            self.evaluated.update(uuids)
        if not any(chunk.edits for chunk in chunks):
            return None
        texts = max(map(texts_of, chunks), key=lambda own: sum(text.shape[1] for text in own))
        return ModelCall(
            chunks=chunks,
            latent=latent,
            image=self.image,
            text_length=context.shape[1],
            references=_references(inputs),
            progress=progress,
            levels=len(self.adapter.factors),
            text_columns=self.adapter.text_columns,
            further=further_texts(chunks, context, x.device, self.adapter, self.cache.memo),
            spans=spans_of(texts, self.adapter),
            lengths=tuple(text.shape[1] for text in texts),
            others=self.others,
            again=again,
            frames=_frames(x),
            pictures=self.pictures if _frames(x) == len(self.pictures) else (),
            inputs=inputs,
        )

    def _progress(self, t: Tensor, inputs: dict[str, Any]) -> float:
        """Of a model call; to ask a device for it once is to wait for it once."""
        known = inputs["transformer_options"].get(PROGRESS)
        return self.progress(float(t.flatten()[0])) if known is None else known

    def _beside(self, call: ModelCall) -> bool:
        """Whether further texts are part of the text that the model is given."""
        return call.further is not None and self.adapter.text == "joint"

    def _aside(self, inputs: dict[str, Any]) -> bool:
        options = inputs["transformer_options"]
        return options.get(self.EXTRA, NOTHING).aside or self.ASIDE in options

    def _chunk(self, rows: slice, key: Any, progress: float, inputs: dict[str, Any]) -> Chunk | None:
        """The rows of one conditioning entry with the edits that act now; None for an entry without."""
        entry, extra = self.entries.get(key), inputs["transformer_options"].get(self.EXTRA, NOTHING)
        heard = self._aside(inputs) or key in self.heard
        return None if entry is None else entry.chunk(rows, progress, self.image, extra, key, heard)

    def _rows_with_equal_texts(self, t: Tensor, inputs: dict[str, Any]) -> list[slice]:
        """Which conditioning entries of a call go together: one attention has one number of text tokens."""
        progress = self._progress(t, inputs)
        chunks = (self._chunk(slice(0, 0), key, progress, inputs) for key in inputs["transformer_options"]["uuids"])
        return runs_of_equals([[*map(id, texts_of(chunk))] if chunk else [] for chunk in chunks])

    def _layer_call(
        self, x: Tensor, t: Tensor, context: Tensor | None, inputs: dict[str, Any], further: int
    ) -> LayerCall:
        """Every row of the call, with edits or not: a LoRA is no matter of one prompt."""
        uuids = inputs["transformer_options"].get("uuids") or (None,)
        crops = [crop_of(self.areas.get(key), self.image) for key in uuids]
        for crop in crops:
            _check_crop(crop, tuple(x.shape[-2:]))
        entries = [self.entries.get(key) for key in uuids]
        return LayerCall(
            rows=self._rows_each(x, len(uuids)),
            offsets=tuple(crop[2:] for crop in crops),
            owned=tuple(entry.layouts if entry else frozenset() for entry in entries),
            latent=tuple(x.shape[-2:]),
            image=self.image,
            text_length=0 if context is None else context.shape[1] + further,
            texts=tuple(self.adapter.room(entry.text_length)[1] if entry else 0 for entry in entries),
            references=_references(inputs),
            frames=_frames(x),
            progress=self._progress(t, inputs),
        )

    def _rows_each(self, x: Tensor, entries: int) -> int:
        """Rows of each conditioning entry in a call."""
        size = x.shape[0] // entries
        if size * entries != x.shape[0] or size > self.batch:
            raise IncompatiblePatchError(
                f"Another patch runs the model on {x.shape[0]} rows for {entries} prompts of {self.batch} "
                "pictures, so that Boxwright cannot tell whose they are. Remove the patch that multiplies rows."
            )
        return size

    def report_unheard(self) -> None:
        """Mixes of the negative prompt's rows learn that this run had none: guiders decide that as they go."""
        heard = {id(item) for key, entry in self.entries.items() if key in self.met for item in entry.edits}
        for item in self.installed:
            mixes = isinstance(item.edit, TextMix) and not of_layout(item)
            if mixes and item.report is not None and id(item) not in heard:
                item.report("negative phrases had no effect: this run evaluated no negative prompt (CFG 1)")


def _replacements(options: dict[str, Any], conds: dict[str, list[dict]]) -> Iterator[Any]:
    """Other packs' functions in place of an attention, as a run begins with them: of the model and of hooks."""
    sources = [options]
    for entry in (entry for entries in conds.values() for entry in entries):
        hooks = getattr(entry.get("hooks"), "hooks", ())
        sources += [getattr(hook, "transformers_dict", None) or {} for hook in hooks]
    for source in sources:
        for slots in source.get("patches_replace", {}).values():
            yield from slots.values()


def _edit_context(context: Tensor, call: ModelCall) -> Tensor:
    for chunk in call.chunks:
        for item in chunk.edits:
            if isinstance(item.edit, ContextEdit):
                context = context.clone()
                count = len(item.layout.prompt.tokens)
                for text in call.text_columns(context.shape[1], chunk.text_length):
                    own = slice(text.start, text.start + count)
                    context[chunk.rows, own] = item.edit.fn(context[chunk.rows, own], item.layout)
    return context


def _pictures(frames: int, each: int) -> tuple[tuple[int, int], ...]:
    """The pictures that each frame of a latent makes: the first one, the others `each`."""
    return tuple((max(0, 1 + (k - 1) * each), 1 + k * each) for k in range(frames))


def _check_crop(crop: tuple[int, int, int, int], latent: tuple[int, int]) -> None:
    """Raises IncompatiblePatchError unless the model sees what the crop (height, width, y, x) says."""
    if crop[:2] != latent:
        raise IncompatiblePatchError(
            f"Another patch, or the sampler, runs the model on {latent[0]}x{latent[1]} latent cells instead of "
            f"{crop[0]}x{crop[1]} and does not say which part that is, so regions would land in the wrong place. "
            "Remove the patch that cuts the latent into tiles, or choose a sampler that keeps the latent's "
            "size or enlarges it as a whole."
        )


def _references(inputs: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """(H, W) of every frame of the reference latents."""
    latents = inputs.get("ref_latents") or ()
    return tuple(tuple(latent.shape[-2:]) for latent in latents for _ in range(_frames(latent)))


def _frames(latent: Tensor) -> int:
    """Of a latent [B, C, H, W] or [B, C, T, H, W]."""
    return latent.shape[2] if latent.ndim == 5 else 1
