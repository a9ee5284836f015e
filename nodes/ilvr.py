"""BoxwrightILVR: pictures that share the coarse content of a reference."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.types import StepWindow
from ..attention_patches.host.samplers.loops import sampler
from ..attention_patches.samplers.ilvr import ILVR, MAX_FACTOR
from .parts import editing_inputs, schema
from .parts.progress import reporter_of

DEFAULT = ILVR()


class BoxwrightILVR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightILVR",
            display_name="ILVR Sampler",
            category=schema.CATEGORY,
            description="A sampler whose pictures keep the coarse shapes and colours of a reference and invent the "
            "rest: after each step the coarse part is taken from the reference (ILVR, arXiv 2108.02938).",
            search_aliases=["ilvr", "reference image", "low frequency", "variation", "composition from image"],
            inputs=[
                io.Int.Input(
                    "factor",
                    default=DEFAULT.factor,
                    min=1,
                    max=MAX_FACTOR,
                    tooltip="How coarse the likeness is: so many latent cells (8 pixels each for most models) count "
                    "as one. 1 = the reference itself, 2 to 8 = its layout, 64 = hardly more than its mean colour.",
                ),
                *schema.window_inputs(DEFAULT.window),
                editing_inputs.mask_input(
                    "White = like the reference, black = free, any size. Without one: everywhere."
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For Sampler Custom (or Advanced), with the reference as its latent.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, factor, start, end, mask=None) -> io.NodeOutput:
        method = ILVR(factor, StepWindow(start, end))
        return io.NodeOutput(
            sampler("ILVR", method.sample, mask, whole=True, window=method.window, tell=reporter_of(cls))
        )


NODES = [BoxwrightILVR]
