"""Prompt-to-Prompt on a MODEL: prompts side by side in one conditioning, and what a run with them needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.token_alignment import Mode, token_alignment
from ..core.types import BoxwrightError, EncodedText, Layout, TokenMap
from ..methods.prompt_to_prompt import (
    MAX_PROMPTS,
    LocalBlend,
    Prompts,
    PromptToPrompt,
    blend_mask,
    blended,
    check_rows,
    recorded_maps,
)
from .attention.calls import MEMO
from .families import adapter_for
from .install import install
from .run.schedule import progress_of
from .samplers.same_noise import SameNoise, same_rows
from .text.conditioning import encode
from .text.layout import LAYOUT_KEY

WRAPPER = "boxwright_prompt_to_prompt"


# --- prompts ----------------------------------------------------------------------------------------------------------


def encode_prompts(model: Any, clip: Any, texts: Sequence[str], mode: Mode) -> tuple[list, Prompts]:
    """The conditioning of all prompts as the rows of one entry, and what they have in common. The first is the source.

    Raises BoxwrightError for fewer than 2 or more than MAX_PROMPTS prompts, and for prompts that cannot stand side by
    side.
    """
    if not 2 <= len(texts) <= MAX_PROMPTS:
        raise BoxwrightError(
            f"There are {len(texts) - 1} target prompts; write 1 to {MAX_PROMPTS - 1} of them, one per line."
        )
    encoded, conditionings = zip(*(encode(clip, text) for text in texts), strict=True)
    if any(len(conditioning) != 1 for conditioning in conditionings):
        raise BoxwrightError(
            "The text encoder is scheduled by hooks, so each prompt has several conditionings. Prompt to Prompt needs "
            "one of each: remove the hooks from the CLIP."
        )
    lengths = [len(text.tokens) for text in encoded]
    columns = max(lengths)
    _check_lengths(model, lengths)
    repeats = [columns // length for length in lengths]
    embeddings = [text.embedding.repeat(1, n, 1) for text, n in zip(encoded, repeats, strict=True)]
    maps = [_repeated(text.tokens, n) for text, n in zip(encoded, repeats, strict=True)]
    alignments = [
        token_alignment(encoded[0].tokens, text.tokens, mode).repeated(repeats[0], n)
        for text, n in zip(encoded[1:], repeats[1:], strict=True)
    ]
    key = _key(embeddings)
    extra = _side_by_side([conditioning[0][1] for conditioning in conditionings])
    layout = Layout(EncodedText(maps[0], embeddings[0]), (), torch.zeros(0, columns, dtype=torch.bool), (), key)
    positive = [[torch.cat(embeddings), {**extra, LAYOUT_KEY: key}]]
    return positive, Prompts(layout, tuple(maps[1:]), tuple(alignments))


def _check_lengths(model: Any, lengths: list[int]) -> None:
    """Repeating a prompt's columns is exact only where the image attends to the text alone."""
    separate = adapter_for(model).text == "separate"
    if any(max(lengths) % length for length in lengths) or (len(set(lengths)) > 1 and not separate):
        raise BoxwrightError(
            f"The prompts have {', '.join(map(str, lengths))} text tokens, and with this model they must have the same "
            "number. Shorten the longer ones, or lengthen the others."
        )


def _repeated(tokens: TokenMap, count: int) -> TokenMap:
    return TokenMap(tokens.text, tokens.spans * count, tokens.roles * count)


def _side_by_side(extras: list[dict[str, Any]]) -> dict[str, Any]:
    """The options of the prompts' conditionings as one: tensors of one row each become rows. Raises BoxwrightError."""
    joined = dict(extras[0])
    for name in {name for extra in extras for name in extra}:
        values = [extra.get(name) for extra in extras]
        if not any(isinstance(value, Tensor) for value in values):
            continue
        tensors = [value for value in values if isinstance(value, Tensor)]
        if len(tensors) == len(values) and all(one.shape == (1, *tensors[0].shape[1:]) for one in tensors):
            joined[name] = torch.cat(tensors)
        else:
            raise BoxwrightError(
                f'The text encoder gives "{name}" in different forms for these prompts, so that they cannot stand side '
                "by side. Use prompts of similar length, or another text encoder."
            )
    return joined


def _key(embeddings: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(b"prompt to prompt")
    for embedding in embeddings:
        digest.update(embedding.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- latents ----------------------------------------------------------------------------------------------------------


def paired_latent(latent: dict[str, Any], count: int) -> dict[str, Any]:
    """A LATENT whose every picture stands `count` times in a row, with the same noise: batch_index tells the host.

    Raises BoxwrightError for latents that are not [B, C, h, w] or [B, C, 1, h, w].
    """
    samples = latent["samples"]
    _check_shape(samples)
    index = latent.get("batch_index") or list(range(samples.shape[0]))
    paired = {**latent, "samples": samples.repeat_interleave(count, dim=0)}
    paired["batch_index"] = [number for number in index for _ in range(count)]
    mask = latent.get("noise_mask")
    if mask is not None and mask.shape[0] > 1:  # of several: each picture's own, as the host deals them out
        mask = comfy.utils.repeat_to_batch_size(mask, samples.shape[0])
        paired["noise_mask"] = mask.repeat_interleave(count, dim=0)
    return paired


def _check_shape(samples: Tensor) -> None:
    one_picture = ((), (1,))  # between channels and height: some models' pictures are films of one frame
    if getattr(samples, "is_nested", False) or samples.ndim < 4 or samples.shape[2:-2] not in one_picture:
        raise BoxwrightError(
            f"The latent has {samples.ndim} dimensions: Prompt to Prompt takes pictures [batch, channels, height, "
            "width], not videos or packed latents."
        )


# --- runs -------------------------------------------------------------------------------------------------------------


def edited(model: Any, prompts: Prompts, method: PromptToPrompt, report: Callable[[str], None] | None = None) -> Any:
    """A clone of the MODEL that draws each group's targets after its source; `report`: see `install`.

    Raises BoxwrightError.
    """
    # A local blend acts without an edit, too.
    patched = install(model, prompts.layout, method.edits(prompts), None if method.blend else report)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, partial(_check_conditioning, prompts.layout))
    run = partial(_sample_groups, prompts.count, method.blend)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER, run)
    return patched


def _check_conditioning(layout: Layout, executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: the text of the source alone reads like the conditioning of all prompts, and is not."""
    conds = executor.class_obj.conds
    if not any(entry.get(LAYOUT_KEY) == layout.key for entries in conds.values() for entry in entries):
        raise BoxwrightError(
            "The positive conditioning of this run is not that of Prompt to Prompt, which holds the source and all "
            "targets. Wire `positive` of the same Prompt to Prompt node to the sampler, instead of a CLIP Text Encode."
        )
    return executor(*args, **kwargs)


def _sample_groups(
    count: int,
    blend: LocalBlend | None,
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict,
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kw: Any,
) -> Any:
    """SAMPLER_SAMPLE wrapper: equal noise in each group, now and whenever the sampler draws more; and local blend."""
    _check_shape(noise)
    check_rows(noise.shape[0], count)
    handler = guider.model_options.get("context_handler")
    if handler is not None and handler.dim == 0 and noise.shape[0] > handler.context_length:
        raise BoxwrightError(
            f"This model is run in context windows of {handler.context_length} rows, and Prompt to Prompt needs each "
            "source with its targets in one. Remove the context windows from the model."
        )
    if blend is not None:
        options = extra_args["model_options"]  # a copy that belongs to this run
        after = _Blending(blend, count, guider.inner_model.model_sampling)
        options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", ()), after]
    with SameNoise(noise.shape, count):
        return executor(guider, sigmas, extra_args, callback, same_rows(noise, count), *args, **kw)


class _Blending:
    """Post-CFG function of one run: what the sampler takes for the clean picture is blended."""

    def __init__(self, blend: LocalBlend, count: int, model_sampling: Any) -> None:
        self.blend, self.count, self.progress = blend, count, progress_of(model_sampling)

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised = args["denoised"]
        if self.progress(float(args["sigma"].flatten()[0])) < self.blend.start:
            return denoised
        memo = args["model_options"]["transformer_options"].get(MEMO, {})
        maps = recorded_maps(memo)
        if self.blend.words and not maps:
            return denoised  # another node skipped the model's first steps, and there is nothing to go by yet
        mask = blend_mask(self.blend, maps, denoised.shape, self.count)
        return blended(denoised, mask if denoised.ndim == 4 else mask.unsqueeze(2), self.count)
