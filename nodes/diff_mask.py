"""BoxwrightDiffMask: a mask from the difference of two prompts (DiffEdit)."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.masks import MAX_RADIUS
from ..attention_patches.host.samplers.diff_mask import measure
from ..attention_patches.host.samplers.loops import picture_latent
from ..attention_patches.samplers.diff_mask import DiffMask
from .parts import editing, editing_inputs, schema

DEFAULT = DiffMask()


class BoxwrightDiffMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightDiffMask",
            display_name="Difference Mask",
            category=schema.CATEGORY,
            description="Finds what an edit would change: noises the picture, lets the model predict it from the "
            "source and from the target prompt, and makes a mask of the difference (DiffEdit, arXiv 2210.11427).",
            search_aliases=["diffedit", "automatic mask", "prompt difference", "mask from text", "segment by prompt"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is to make the edit. It stays as it is."),
                *editing_inputs.prompt_inputs(),
                *editing_inputs.draw_inputs(),
                io.Combo.Input(
                    "mode",
                    options=["paper", "cfg"],
                    default="paper",
                    tooltip='"paper" = compares what the two prompts say. "cfg" = compares what the sampler would do, '
                    "each combined with negative at cfg, patches on guidance included (more evaluations).",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip='Guidance of mode "cfg": 1 = the prompts alone, higher = as the sampler will use it. '
                    "Not used by the other mode.",
                ),
                schema.seed_input("Of the noise draws. Every picture of a batch gets the same draws."),
                io.Float.Input(
                    "clip",
                    default=DEFAULT.clip,
                    min=0.5,
                    max=1.0,
                    step=0.005,
                    tooltip="Cuts off the highest differences of each draw, from this share of the cells up: 1 = cuts "
                    "nothing (one bright spot can then hide the rest), 0.5 = the upper half becomes equal.",
                ),
                io.Float.Input(
                    "blur",
                    default=DEFAULT.blur,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    tooltip="Softens the heat before the threshold, in latent cells: 0 = not at all, 16 = to a cloud.",
                ),
                io.Combo.Input(
                    "method",
                    options=["fixed", "otsu"],
                    default=DEFAULT.method,
                    tooltip='How the mask is cut from the heat: "fixed" = above threshold, "otsu" = where the heat '
                    "falls into two groups, for each picture.",
                ),
                editing_inputs.heat_threshold_input(),
                io.Int.Input(
                    "close",
                    default=DEFAULT.close,
                    min=0,
                    max=MAX_RADIUS,
                    tooltip="Fills holes and notches up to twice as wide, in latent cells: 0 = none.",
                ),
                editing_inputs.dilate_input(DEFAULT.dilate),
                io.Boolean.Input(
                    "keep_largest",
                    default=DEFAULT.keep_largest,
                    tooltip="Off = every patch counts. On = only the largest, for edits of a single object.",
                ),
                *editing_inputs.source_inputs(),
                io.Conditioning.Input("negative", optional=True, tooltip='Negative prompt of mode "cfg".'),
            ],
            outputs=[
                io.Mask.Output("mask", tooltip="White where the edit belongs, of the picture's size."),
                io.Image.Output("heat", tooltip="The averaged difference, black = none, white = the most."),
                io.String.Output("report", tooltip="What the mask covers and what it cost."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        source,
        target,
        draws,
        noise_level,
        mode,
        cfg,
        seed,
        clip,
        blur,
        method,
        threshold,
        close,
        dilate,
        keep_largest,
        latent=None,
        image=None,
        vae=None,
        negative=None,
    ) -> io.NodeOutput:
        settings = DiffMask(draws, noise_level, clip, blur, threshold, method, close, dilate, keep_largest)
        samples = picture_latent(model, editing.one_source(latent, image, vae))
        found = measure(model, samples, source, target, settings, seed, mode, negative, cfg)
        return editing.mask_output(cls, model, found, image, f", {found.batches} draws at a time")


NODES = [BoxwrightDiffMask]
