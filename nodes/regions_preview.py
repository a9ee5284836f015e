"""The node that shows a layout: a picture, and a report on what it covers."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .parts import schema
from .parts.drawing import MAX_SIDE, draw_layout, preview_size
from .parts.layout_report import layout_report
from .parts.sized_regions import size_of


class BoxwrightRegionsPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionsPreview",
            display_name="Regions Preview",
            category=schema.CATEGORY,
            description=(
                "Draws regions, numbered and labelled, and reports how much of the image they cover, where they "
                "overlap, and which are too small for the model to notice."
            ),
            search_aliases=["show regions", "draw boxes", "layout preview", "coverage", "overlap"],
            is_output_node=True,
            inputs=[
                schema.Regions.Input("regions", tooltip="The regions to show."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="Width of the image to be generated, in pixels; the preview has the same. 0 = that of the "
                    "Box Editor that the regions come from; for others 512.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="Height of the image to be generated, in pixels; the preview has the same. 0 = that of "
                    "the Box Editor that the regions come from; for others 512.",
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="Drawn behind the regions, stretched to width and height; the first image of a batch.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture of the layout."),
                io.String.Output("report", tooltip="Areas, overlaps, uncovered share, regions too small to work."),
            ],
        )

    @classmethod
    def execute(cls, regions, width, height, background=None) -> io.NodeOutput:
        width, height = schema.given_size(width, height) or size_of(regions) or (512, 512)
        image = draw_layout(regions, *preview_size(width, height), background)
        report = layout_report(regions, width, height)
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(report).as_dict()
        return io.NodeOutput(image, report, ui=shown)


NODES = [BoxwrightRegionsPreview]
