"""BoxwrightColorLoss: how far a picture is from a colour, for Loss Guidance."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..attention_patches.samplers.color_loss import ColorLoss, Of
from .parts import losses, schema
from .parts.colors import colors_of


class BoxwrightColorLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightColorLoss",
            display_name="Color Loss",
            category=schema.CATEGORY,
            description="For Loss Guidance: draws the picture, or a region of it, towards a colour or a palette.",
            search_aliases=["color guidance", "palette", "tint", "match color", "colour"],
            inputs=[
                io.String.Input(
                    "colors",
                    default="#d02020",
                    tooltip='One colour or several: "#d02020", or a name (red, gold, teal), parted by commas. Of '
                    "several, the nearest counts.",
                ),
                io.Combo.Input(
                    "of",
                    options=list(get_args(Of)),
                    default=ColorLoss.of,
                    tooltip="mean = the mean colour of the region becomes the colour: light, shade and texture stay. "
                    "every pixel = each pixel becomes one of the colours: flat, as a poster.",
                ),
                *losses.sum_inputs(),
            ],
            outputs=[losses.loss_output()],
        )

    @classmethod
    def execute(cls, colors, of, weight, more=None) -> io.NodeOutput:
        return io.NodeOutput(losses.summed(ColorLoss(colors_of(colors), of), weight, more))


NODES = [BoxwrightColorLoss]
