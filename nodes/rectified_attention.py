"""BoxwrightRectifiedAttention: a region's words are invisible outside it."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..attention_patches.core.types import StepWindow
from ..attention_patches.host.install import install
from ..attention_patches.host.support import supports
from ..attention_patches.methods.rectified_attention import EndTokens, RectifiedAttention, Resolutions
from .parts import schema
from .parts.checks import check_some_acts
from .parts.progress import reporter_of, tell

DEFAULT = RectifiedAttention()


class BoxwrightRectifiedAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRectifiedAttention",
            display_name="Rectified Attention",
            category=schema.CATEGORY,
            description="Hides the words of each region from the rest of the image (rectified cross-attention, RCA, "
            "arXiv 2303.14412). Costs next to nothing and works with every sampler. It confines words; it does not "
            "push objects into place. As published: strength 1, start 0, end 1, feather 0.",
            search_aliases=["rca", "rectified cross-attention", "freestyle", "regional prompt", "attention mask"],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.Float.Input(
                    "strength",
                    default=DEFAULT.strength,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How well the words are hidden outside their region: 0 = off (the picture is exactly the "
                    "unpatched one), 1 = not seen at all. Each region's own strength multiplies it.",
                ),
                *schema.window_inputs(DEFAULT.window),
                schema.feather_input(DEFAULT.feather),
                io.Combo.Input(
                    "resolutions",
                    options=list(get_args(Resolutions)),
                    default=DEFAULT.resolutions,
                    tooltip="On which attention grids words are hidden: all (published), the finer or the coarser "
                    "half, or all but the coarsest. Models with a single grid (Flux) always use it.",
                ),
                io.Combo.Input(
                    "end_tokens",
                    options=list(get_args(EndTokens)),
                    default=DEFAULT.end_tokens,
                    tooltip="End and padding tokens carry a summary of the whole prompt. visible = seen everywhere "
                    "(published); hidden = seen nowhere; own = each region sees the end tokens of its own phrase.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, layout, strength, start, end, feather, resolutions, end_tokens) -> io.NodeOutput:
        method = RectifiedAttention(strength, StepWindow(start, end), feather, resolutions, end_tokens)
        if strength > 0:
            check_some_acts(layout)
        tell(cls, supports(model))
        return io.NodeOutput(install(model, layout, method.edits(layout), reporter_of(cls)))


NODES = [BoxwrightRectifiedAttention]
