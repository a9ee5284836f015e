"""The node on which boxes are drawn. Without a browser it is a plain node that takes its drawing as JSON text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from ..attention_patches.core.grids import coverage, feathered
from ..attention_patches.core.types import Box, BoxwrightError, Region, feather_of
from .parts import schema
from .parts.boxes import from_anything
from .parts.boxes import to_bounding_boxes as pixel_boxes
from .parts.drawing import MIN_SIDE, PAPER, draw_layout, preview_size
from .parts.regions_json import parse_drawing, regions_to_json
from .parts.shapes import covered_pixels
from .parts.sized_regions import SizedRegions

MAX_PICTURE = 8192  # pixels each way
FEATHER_CELLS = 256  # each way, of the soft edge of a shape
MAX_MASK_VALUES = 2**27  # of all masks together: half a gigabyte

REGIONS_SLOT, MASKS_SLOT = 0, 3  # outputs that need boxes with words

NOTHING_DRAWN = "There is no box. Draw one in the box editor, or connect boxes."
ALL_OFF = "Every box of the box editor is switched off. Switch one on, in its list."


class BoxwrightBoxEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightBoxEditor",
            display_name="Box Editor",
            category=schema.CATEGORY,
            description=(
                "Draw boxes and say what belongs in each. Wire regions to Layout Prompt, whose own prompt stays empty. "
                "Boxes are kept as fractions of the image, so they follow when width and height change."
            ),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,  # connected boxes shall appear even while nothing uses them
            search_aliases=[
                "box",
                "draw boxes",
                "layout to image",
                "place objects",
                "bounding box editor",
                "regional prompt",
                "region editor",
                "layout",
                "bbox",
            ],
            inputs=[
                io.String.Input(
                    "regions_json",
                    default="",
                    socketless=True,
                    extra_dict={"widgetType": "BOXWRIGHT_BOX_EDITOR"},  # web/box_editor.js draws it
                    tooltip=(
                        "The drawing, as JSON in fractions of the image (see the help page of Regions). The editor "
                        "writes it; other programs may too. Empty = nothing drawn."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=MIN_SIDE,
                    max=MAX_PICTURE,
                    step=8,
                    tooltip="Width of the image to be generated, in pixels. Sets the shape of the canvas.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=MIN_SIDE,
                    max=MAX_PICTURE,
                    step=8,
                    tooltip="Height of the image to be generated, in pixels. Sets the shape of the canvas.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip=(
                        "The whole picture in words; passed on unchanged. The editor marks boxes whose words are not "
                        "in it; Layout Prompt appends those words."
                    ),
                ),
                io.Float.Input(
                    "image_opacity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly image shows behind the boxes: 0 = not at all, 1 = in full.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Shown behind the boxes, stretched to width and height; the first image of a batch.",
                ),
                io.MultiType.Input(
                    "boxes",
                    [schema.BoundingBoxes, schema.Elements, schema.Regions, io.Mask, io.String],
                    optional=True,
                    tooltip=(
                        "Boxes to start from: bounding boxes, elements, regions, masks (as painted shapes), or JSON "
                        "text. They replace the drawing once. Your edits then stay until this input changes."
                    ),
                ),
            ],
            outputs=[
                schema.Regions.Output(
                    "regions",
                    tooltip="The boxes that are switched on, with their phrases. They carry the prompt and "
                    "the size along.",
                ),
                io.String.Output("prompt", tooltip="The prompt, unchanged."),
                schema.BoundingBoxes.Output("bboxes", tooltip="The boxes in pixels of width x height, as one frame."),
                io.Mask.Output(
                    "masks",
                    tooltip="One mask per box or shape, with its feather. Very many or very large ones come at half "
                    "the size or less.",
                ),
                io.Image.Output("preview", tooltip="A picture of the layout."),
                io.Int.Output("width", tooltip="The width, for whatever else needs it."),
                io.Int.Output("height", tooltip="The height, for whatever else needs it."),
                io.Latent.Output(
                    "latent",
                    tooltip="An empty latent of this size, one picture, for the sampler. It fits every image model.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, regions_json=None) -> bool | str:
        """Refuse bad text before anything runs."""
        try:
            parse_drawing(regions_json or "")
        except BoxwrightError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, regions_json, width, height, prompt, image_opacity, image=None, boxes=None) -> io.NodeOutput:
        drawing = parse_drawing(regions_json)
        regions, messages = drawing.regions, {"boxwright_size": [width, height]} | workflow_of(cls.hidden)
        if boxes is not None:
            incoming = from_anything(boxes, width, height)
            mark = fingerprint(incoming)
            if mark != drawing.upstream:
                regions = incoming
                messages["boxwright_upstream"] = [regions_to_json(incoming), mark]
        if image is not None:
            messages["boxwright_image"] = ui.PreviewImage(image[:1], cls=cls).as_dict()["images"]
        named = named_or_blocked(regions, drawing.count)
        if isinstance(named, ExecutionBlocker) and is_used(cls.hidden):
            tell_browser(cls.hidden.unique_id, messages, named.message)  # what came in must be seen to be mended
            raise BoxwrightError(named.message)
        preview = draw_layout(regions, *preview_size(width, height), faded(image, image_opacity))
        return io.NodeOutput(
            SizedRegions(named, width, height, prompt) if isinstance(named, tuple) else named,
            prompt,
            pixel_boxes(regions, width, height),
            box_masks(regions, width, height) if regions else ExecutionBlocker(NOTHING_DRAWN),
            preview,
            width,
            height,
            empty_latent(width, height),
            ui=messages,
        )


def empty_latent(width: int, height: int) -> dict[str, Any]:
    """What the host's Empty Latent Image makes: its samplers give it the channels and the grain of their model."""
    return {"samples": torch.zeros(1, 4, height // 8, width // 8), "downscale_ratio_spacial": 8}


def fingerprint(regions: Sequence[Region]) -> str:
    """A short text that is the same for the same boxes and phrases."""
    return hashlib.sha256(regions_to_json(regions).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def workflow_of(hidden: io.HiddenHolder | None) -> dict[str, list[str]]:
    """The number of the workflow that runs, for the browser: by the end of the run it may show another one."""
    extra = hidden.extra_pnginfo if hidden is not None else None
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    number = workflow.get("id") if isinstance(workflow, dict) else None
    return {"boxwright_workflow": [number]} if isinstance(number, str) else {}


def tell_browser(unique_id: str, messages: dict, refusal: str) -> None:
    """What a node that ends well would tell by itself, and why it does not; nothing where no browser asked."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:  # without one, all browsers would be told
        told = {"node": unique_id, "output": messages, "refusal": refusal}
        server.send_sync("boxwright.output", told, server.client_id)


def is_used(hidden: io.HiddenHolder | None) -> bool:
    """Whether another node of the prompt takes the regions or the masks of this one."""
    if hidden is None or not hidden.prompt:
        return False
    wires = ([hidden.unique_id, REGIONS_SLOT], [hidden.unique_id, MASKS_SLOT])
    return any(value in wires for node in hidden.prompt.values() for value in node["inputs"].values())


def named_or_blocked(regions: Sequence[Region], drawn: int) -> tuple[Region, ...] | ExecutionBlocker:
    """The regions, or what stops whoever wants to use them, and says why."""
    if not regions:
        return ExecutionBlocker(ALL_OFF if drawn else NOTHING_DRAWN)
    unnamed = [str(number) for number, region in enumerate(regions, 1) if not region.phrase]
    if unnamed:
        return ExecutionBlocker(
            f"{'Box' if len(unnamed) == 1 else 'Boxes'} {', '.join(unnamed)} of the box editor (counting those that "
            "are switched on): nothing is written there. Double-click it and write what belongs there, or switch it "
            "off."
        )
    return tuple(regions)


def box_masks(regions: Sequence[Region], width: int, height: int) -> Tensor:
    """How much of each pixel each box covers, float32 [R, height, width] in [0, 1], feather included.

    Both sides are halved as often as it takes to stay within MAX_MASK_VALUES: masks are stretched wherever they are
    used.
    """
    while len(regions) * width * height > MAX_MASK_VALUES:
        width, height = -(-width // 2), -(-height // 2)
    return torch.stack([_mask(region, width, height) for region in regions])


def _mask(region: Region, width: int, height: int) -> Tensor:
    share, feather = covered_pixels(region, height, width), feather_of(region, 0.0)
    if not feather:
        return share
    if isinstance(region.area, Box):
        # A box is the product of its sides, and the ramp works along one axis at a time.
        box = region.area
        down = feathered(coverage(Box(0.0, box.y, 1.0, box.height), (height, 1)), feather)
        across = feathered(coverage(Box(box.x, 0.0, box.width, 1.0), (1, width)), feather)
        return (down + across - 1.0).clamp_min(0.0)
    rows, columns = min(height, FEATHER_CELLS), min(width, FEATHER_CELLS)  # a ramp is smooth: few cells hold it
    soft = feathered(coverage(region.area, (rows, columns)), feather)
    ramp = torch.nn.functional.interpolate(soft[None, None], (height, width), mode="bilinear", align_corners=False)
    return torch.maximum(share, ramp[0, 0])


def faded(image: Tensor | None, opacity: float) -> Tensor | None:
    """The first image of a batch over the colour of the paper."""
    if image is None or opacity == 0.0:
        return None
    paper = torch.tensor(PAPER, dtype=image.dtype, device=image.device) / 255.0
    return paper + (image[:1, ..., :3] - paper) * opacity


NODES = [BoxwrightBoxEditor]
