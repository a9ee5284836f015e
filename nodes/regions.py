"""The node that turns boxes, elements and masks with phrases into regions."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.core.types import MAX_REGIONS, BoxwrightError
from .parts import schema
from .parts.boxes import EXAMPLE_REGIONS, collect_regions
from .parts.checks import shortened
from .parts.layout_import import read_layout
from .parts.regions_json import is_ours, parse_regions_json, regions_to_json


class BoxwrightRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegions",
            display_name="Regions",
            category=schema.CATEGORY,
            description=(
                f"Says what belongs where: 1 to {MAX_REGIONS} areas of the image, each with a phrase of the prompt. "
                "Areas come from text, bounding boxes, elements and masks, in this order, all together."
            ),
            search_aliases=[
                "regional prompt",
                "bounding box",
                "layout",
                "box to region",
                "mask to region",
                "bbox",
                "import boxes",
                "coco",
            ],
            inputs=[
                io.String.Input(
                    "regions_json",
                    multiline=True,
                    default="",
                    placeholder=regions_to_json(EXAMPLE_REGIONS),
                    tooltip=(
                        "Regions as text, in fractions of the image: x and y of the left upper corner from 0 to 1, "
                        "width, height, a phrase, and optionally a strength from 0 (off) to 1 (full). Or boxes as "
                        "other programs write them (see the help page); the report says how they were read. May stay "
                        "empty when all areas come from the sockets; what stands here is added before theirs."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=1,
                    max=16384,
                    tooltip="Only for boxes in pixels: the width of the picture that they were measured on.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=1,
                    max=16384,
                    tooltip="Only for boxes in pixels: the height of the picture that they were measured on.",
                ),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip=(
                        "The words of areas that have none: one line for each, in this order: regions_json of another "
                        "program, bounding_boxes, elements, masks. Or a line for every area, to name them all anew."
                    ),
                ),
                schema.BoundingBoxes.Input(
                    "bounding_boxes",
                    optional=True,
                    extra_dict={"forceInput": True},  # a socket, not the host's four-number widget
                    tooltip=(
                        "Boxes in pixels: one, a list, or a list per frame. A label or description is the phrase. "
                        "Boxes that reach over the edge are cut there; boxes outside are refused."
                    ),
                ),
                schema.Elements.Input(
                    "elements",
                    optional=True,
                    tooltip="Elements of Create Bounding Boxes: boxes on a scale of 0 to 1000, with descriptions.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One region per mask of the batch, soft edges kept. Any size: stretched to the image.",
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=99999,
                    optional=True,
                    advanced=True,
                    tooltip="Which frame of bounding_boxes to take, from 0, when it holds a list per frame.",
                ),
            ],
            outputs=[
                schema.Regions.Output("regions", tooltip="For Layout Prompt, Regions Preview and the methods."),
                io.String.Output(
                    "report", tooltip="How a text of another program was read, and a list of the regions."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, regions_json=None) -> bool | str:
        """Refuse bad text before anything runs; a connected text (None here) is checked when it arrives."""
        if not (regions_json or "").strip():
            return True
        try:
            if is_ours(regions_json):
                parse_regions_json(regions_json)
            else:
                read_layout(regions_json, None, None, "regions_json", strict=False)
        except BoxwrightError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, regions_json, width, height, phrases, bounding_boxes=None, elements=None, masks=None, frame=0
    ) -> io.NodeOutput:
        regions = collect_regions(regions_json, phrases, width, height, bounding_boxes, elements, masks, frame)
        lines = [f"{number}. {shortened(region.phrase, 60)}" for number, region in enumerate(regions, 1)]
        if regions_json.strip() and not is_ours(regions_json):
            lines.insert(0, read_layout(regions_json, width, height, "regions_json").how + ".")
        report = "\n".join(lines)
        return io.NodeOutput(regions, report, ui=ui.PreviewText(report))


NODES = [BoxwrightRegions]
