"""BoxwrightPromptToPrompt: change words of a prompt and keep the picture."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io, ui

from ..attention_patches.core.marks import without_orders
from ..attention_patches.core.token_alignment import Mode, alignment_report
from ..attention_patches.core.types import BoxwrightError
from ..attention_patches.host.prompt_to_prompt import edited, encode_prompts, paired_latent
from ..attention_patches.host.text.conditioning import encode, text_notes
from ..attention_patches.methods.prompt_to_prompt import (
    CROSS,
    MAX_PROMPTS,
    MAX_SIDE,
    SELF,
    LocalBlend,
    Prompts,
    PromptToPrompt,
)
from .parts import schema
from .parts.checks import shortened
from .parts.phrases import parse_phrases, parse_weights, parse_windows, window_or_none
from .parts.progress import reporter_of

FRACTION = "as a fraction of the noise schedule"


def _fraction(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class BoxwrightPromptToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightPromptToPrompt",
            display_name="Prompt to Prompt",
            category=schema.CATEGORY,
            description="Draws a picture and, beside it, the same picture with words of its prompt changed, added, "
            "removed or reweighted (Prompt-to-Prompt, arXiv 2208.01626). Wire all outputs to a KSampler: it returns "
            "source, target 1, target 2, ...",
            search_aliases=["p2p", "prompt editing", "attention replace", "attention refine", "local blend", "edit"],
            inputs=[
                schema.model_input(),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.Latent.Input(
                    "latent",
                    tooltip="One picture, or several, each with noise of its own. Empty = new pictures. Encoded, with "
                    "denoise below 1 = image to image. Inverted, without added noise = a picture you have.",
                ),
                io.String.Input(
                    "source", multiline=True, dynamic_prompts=True, tooltip="The prompt of the picture to keep."
                ),
                io.String.Input(
                    "targets",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=f"The edited prompts, one per line, at most {MAX_PROMPTS - 1}; each gives a picture.",
                ),
                io.String.Input(
                    "negative_prompt", multiline=True, default="", tooltip="The same for all; may be empty."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default="auto",
                    tooltip="What happens to words that differ. auto = replaced if there are as many on both sides "
                    "(the new word takes over the old one's place), else new. replace = always replaced, or an error. "
                    "refine = always new: only the common words keep their place.",
                ),
                _fraction("cross_start", CROSS.start, f"When words begin to keep their places, {FRACTION}."),
                _fraction(
                    "cross_end",
                    CROSS.end,
                    f"When they stop, {FRACTION}: higher = more like the source, 1 = until the last step. The same as "
                    "cross_start = never.",
                ),
                _fraction(
                    "self_start",
                    SELF.start,
                    f"When the source's shapes begin to be kept, {FRACTION}.",
                ),
                _fraction(
                    "self_end",
                    SELF.end,
                    f"When they stop to be, {FRACTION}: higher = outlines more like the source's; lower it to change "
                    "shapes. The same as self_start = never.",
                ),
                io.Int.Input(
                    "self_side",
                    default=PromptToPrompt.self_side,
                    min=1,
                    max=MAX_SIDE,
                    tooltip="Shapes are kept on attention grids of at most self_side x self_side tokens: 16 and 32 = "
                    "published (512 pixels); higher = finer outlines are kept too, more time.",
                ),
                io.String.Input(
                    "weights",
                    multiline=True,
                    default="",
                    tooltip='One "phrase: factor" per line, for words of the targets, as in Reweight Words: 1 = '
                    "unchanged, 0 = removed, up to 10. They count while words keep their places. Empty = none.",
                ),
                io.String.Input(
                    "word_windows",
                    multiline=True,
                    default="",
                    tooltip='One "phrase: start end" per line: words of the targets with times of their own instead '
                    "of cross_start and cross_end. Empty = none.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="Local blend: the targets may differ from the source only around these words. Phrases "
                    "between commas; every prompt must have one of them. Empty = off, unless blend_mask is wired.",
                ),
                io.String.Input(
                    "subtract_words", default="", tooltip="Local blend: where these words are, the source stays."
                ),
                io.Float.Input(
                    "blend_threshold",
                    default=LocalBlend.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Local blend: a word is where its attention is above this share of its strongest: 0 = "
                    "nearly everywhere, 1 = nowhere.",
                ),
                io.Int.Input(
                    "blend_pooling",
                    default=LocalBlend.pooling,
                    min=0,
                    max=8,
                    tooltip="Local blend: the places of the words grow by so many cells of the attention grid; 0 = "
                    "none.",
                ),
                _fraction(
                    "blend_start",
                    LocalBlend.start,
                    f"Local blend: when it begins, {FRACTION}; 0 = from the first step.",
                ),
                io.Mask.Input(
                    "blend_mask",
                    optional=True,
                    tooltip="Local blend: the targets may differ only inside it; with blend_words, only where both "
                    "allow it.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The patched model."),
                io.Conditioning.Output("positive", tooltip="All prompts, for the sampler's positive."),
                io.Conditioning.Output("negative", tooltip="For the sampler's negative."),
                io.Latent.Output("latent", tooltip="Every picture once for each prompt, with the same noise."),
                io.String.Output("alignment", tooltip="Which words are the same, replaced, new or removed."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        latent,
        source,
        targets,
        negative_prompt,
        mode,
        cross_start,
        cross_end,
        self_start,
        self_end,
        self_side,
        weights,
        word_windows,
        blend_words,
        subtract_words,
        blend_threshold,
        blend_pooling,
        blend_start,
        blend_mask=None,
    ) -> io.NodeOutput:
        method = PromptToPrompt(
            cross=window_or_none(cross_start, cross_end),
            self_attention=window_or_none(self_start, self_end),
            self_side=self_side,
            weights=parse_weights(weights) if weights.strip() else (),
            windows=parse_windows(word_windows, "word_windows"),
            blend=local_blend(blend_words, subtract_words, blend_threshold, blend_pooling, blend_start, blend_mask),
        )
        written = (source, *target_lines(targets))
        positive, prompts = encode_prompts(model, clip, [without_orders(text)[0] for text in written], mode)
        negative = encode(clip, without_orders(negative_prompt)[0])[1]
        names = ("source", *(f"target {number}" for number in range(1, len(written))), "negative_prompt")
        notes = text_notes(clip, list(zip(names, (*written, negative_prompt))))
        report = "\n".join([alignments_report(prompts), *notes])
        patched = edited(model, prompts, method, reporter_of(cls))
        paired = paired_latent(latent, prompts.count)
        return io.NodeOutput(patched, positive, negative, paired, report, ui=ui.PreviewText(report))


def target_lines(text: str) -> list[str]:
    """The target prompts: lines that are not empty. Raises BoxwrightError if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise BoxwrightError("There is no target prompt; write at least one, each on a line of its own.")
    return lines


def local_blend(words: str, subtract: str, threshold: float, pooling: int, start: float, mask) -> LocalBlend | None:
    """The settings of local blend, None if it is off. Raises BoxwrightError for a batch of masks."""
    phrases, removed = parse_phrases(words, "blend_words"), parse_phrases(subtract, "subtract_words")
    if not (phrases or removed) and mask is None:
        return None
    if mask is not None:
        if mask.ndim == 3 and mask.shape[0] != 1:
            raise BoxwrightError(
                f"blend_mask holds {mask.shape[0]} masks; Prompt to Prompt takes one for all pictures. Pick one."
            )
        mask = mask.reshape(mask.shape[-2:]).float().clamp(0.0, 1.0)
    return LocalBlend(phrases, removed, threshold, pooling, start, mask)


def alignments_report(prompts: Prompts) -> str:
    """How every target differs from the source, for people."""
    parts = [f"source: {shortened(prompts.layout.prompt.tokens.text, 200)}"]
    for number, (tokens, alignment) in enumerate(zip(prompts.targets, prompts.alignments, strict=True), 1):
        parts.append(f"target {number}: {shortened(tokens.text, 200)}\n{alignment_report(alignment)}")
    return "\n".join(parts)


NODES = [BoxwrightPromptToPrompt]
