"""BoxwrightFindWord: where a picture shows what a word of its prompt says, as a mask."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.types import BoxwrightError
from ..attention_patches.host.samplers.loops import picture_latent
from ..attention_patches.host.text.layout import encode_layout
from ..attention_patches.host.word_mask import WordMask, attended
from ..attention_patches.samplers.diff_mask import DiffMask
from .parts import editing, editing_inputs, schema


class BoxwrightFindWord(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        draws, noise_level = editing_inputs.draw_inputs()
        return io.Schema(
            node_id="BoxwrightFindWord",
            display_name="Find Word in Picture",
            category=schema.CATEGORY,
            description="Finds what a word of a prompt names in a picture that exists: noises it, lets the model look "
            "at it with the prompt, and makes a mask of what attends to the word. For Flow Edit, DiffEdit, "
            "inpainting.",
            search_aliases=["mask from word", "mask by text", "segment by word", "attention mask", "find object"],
            inputs=[
                io.Model.Input("model", tooltip="A text-to-image model whose attention Boxwright reads."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True, tooltip="What the picture shows."
                ),
                io.String.Input("phrase", default="", tooltip="A word or phrase of it, as the prompt has it."),
                io.Int.Input(
                    "draws",
                    default=WordMask.base.draws,
                    min=draws.min,
                    max=draws.max,
                    tooltip="How many noise draws are averaged, one evaluation each: 1 = fast, 4 = steady.",
                ),
                noise_level,
                schema.threshold_input(),
                editing_inputs.dilate_input(DiffMask().dilate),
                schema.seed_input("Of the noise draws. Every picture of a batch gets the same draws."),
                *editing_inputs.source_inputs(),
            ],
            outputs=[
                io.Mask.Output("mask", tooltip="White where the word's thing is, of the picture's size."),
                io.Image.Output("heat", tooltip="The attention to the word, black = the least, white = the most."),
                io.String.Output("report", tooltip="What the mask covers and what it cost."),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, prompt, phrase, draws, noise_level, threshold, dilate, seed, latent=None, image=None, vae=None
    ) -> io.NodeOutput:
        if not phrase.strip():
            raise BoxwrightError("There is no phrase; write a word of the prompt.")
        base = DiffMask(draws=draws, noise_level=noise_level, dilate=dilate)
        samples = picture_latent(model, editing.one_source(latent, image, vae))
        positive, layout = encode_layout(clip, prompt, (), False)
        found = attended(model, samples, positive, layout, WordMask(phrase.strip(), threshold, base), seed)
        return editing.mask_output(cls, model, found, image)


NODES = [BoxwrightFindWord]
