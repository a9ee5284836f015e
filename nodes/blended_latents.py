"""BoxwrightBlendedLatents: redraw inside a mask, the noised original outside (Blended Latent Diffusion)."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.masks import MAX_RADIUS
from ..attention_patches.host.samplers.loops import sampler
from ..attention_patches.samplers.blended_latents import BlendedLatents
from .parts import editing_inputs, schema

DEFAULT = BlendedLatents()


class BoxwrightBlendedLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightBlendedLatents",
            display_name="Blended Latents Sampler",
            category=schema.CATEGORY,
            description="A sampler that redraws inside a mask and, after every step, puts the original back outside, "
            "with the noise of that step (Blended Latent Diffusion, arXiv 2206.02779). Thin masks can start "
            "larger and shrink.",
            search_aliases=["blended latent diffusion", "bld", "inpaint", "local edit", "thin mask"],
            inputs=[
                io.Int.Input(
                    "grow",
                    default=DEFAULT.grow,
                    min=0,
                    max=MAX_RADIUS,
                    tooltip="How much larger the mask is at first, in latent cells (8 pixels each for most models): 0 "
                    "= no larger. With a few, something new fits into a thin mask.",
                ),
                io.Float.Input(
                    "grow_until",
                    default=DEFAULT.grow_until,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps after which the mask has shrunk to its own size: near 0 = at once, "
                    "1 = at the last step.",
                ),
                editing_inputs.mask_input(
                    "White = redrawn, black = kept, any size. Without one: the latent's noise mask."
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For Sampler Custom (or Advanced), with the picture as its latent.")],
        )

    @classmethod
    def execute(cls, grow, grow_until, mask=None) -> io.NodeOutput:
        return io.NodeOutput(sampler("Blended Latents", BlendedLatents(grow, grow_until).sample, mask))


NODES = [BoxwrightBlendedLatents]
