"""The node that reads the prompt of a model that reads boxes itself, or any other text with boxes."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from .parts import schema
from .parts.layout_document import Document
from .parts.layout_flux3 import uncited
from .parts.layout_formats import FORMATS, recognised, summary
from .parts.layout_formats import read as read_prompt
from .parts.layout_import import read_layout
from .parts.layout_template import EXAMPLE, TEMPLATE, read_template
from .parts.sized_regions import SizedRegions

ANY = "any"


class BoxwrightPromptToRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightPromptToRegions",
            display_name="Prompt to Regions",
            category=schema.CATEGORY,
            description=(
                "Reads boxes out of a prompt with a layout (FLUX.3, Ideogram 4, Ming-Image, a template of your own) or "
                "out of any file or text with boxes. Wire regions to Box Editor's boxes to change them, or to Layout "
                "Prompt to draw them with any model. The report says how the text was understood."
            ),
            search_aliases=[
                "json to regions",
                "ideogram json",
                "import layout",
                "bbox from text",
                "coco",
                "load boxes",
                "flux 3 layout",
                "text to layout",
                "parse bbox",
            ],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="The prompt, or any JSON with boxes.",
                ),
                io.Combo.Input(
                    "format",
                    options=["auto", *FORMATS, TEMPLATE, ANY],
                    default="auto",
                    tooltip="How to read it. auto: a prompt of FLUX.3, Ideogram 4 or Ming-Image is recognised, "
                    "everything else is read as any: lists and objects with four numbers, COCO, detectors' answers.",
                ),
                io.Boolean.Input(
                    "keep_marks",
                    default=True,
                    tooltip="FLUX.3 only. Off = the prompt in plain words, for other models. On = it keeps the <id> "
                    "marks that could not be put back otherwise.",
                ),
                schema.size_input("width"),
                schema.size_input("height"),
                io.String.Input(
                    "template",
                    multiline=True,
                    default=EXAMPLE,
                    optional=True,
                    advanced=True,
                    tooltip="For the format template: what the text was written with.",
                ),
            ],
            outputs=[
                schema.Regions.Output("regions", tooltip="The boxes. For an edit: where things shall be."),
                io.String.Output("prompt", tooltip="The whole picture in words."),
                io.String.Output("background", tooltip="What lies behind the boxes."),
                io.String.Output("style", tooltip="The style as JSON, for the style input of Layout to Prompt."),
                schema.Regions.Output("source", tooltip="For an edit: where things stand in the picture now."),
                io.String.Output("report", tooltip="How the text was understood, and what was left out."),
            ],
        )

    @classmethod
    def execute(cls, text, format, keep_marks, width=0, height=0, template=EXAMPLE) -> io.NodeOutput:
        size = schema.given_size(width, height)
        name = (recognised(text) or ANY) if format == "auto" else format
        if name == ANY:
            across, down = size or (None, None)
            read = read_layout(text, across, down, "text")
            document, lines = Document(read.regions), [f"{read.how}."]
        elif name == TEMPLATE:
            document = read_template(template, text, size)
            lines = [summary(document, "the template")]
        else:
            document = read_prompt(text, name)
            lines = [summary(document, name), *document.notes]
        report = "\n".join(lines)
        regions, source = (
            ExecutionBlocker(NOTHING.format(side)) if not boxes else SizedRegions(boxes, *size) if size else boxes
            for side, boxes in (("regions", document.regions), ("source", document.source))
        )
        prompt = document.prompt if keep_marks else uncited(document.prompt)
        style = json.dumps(dict(document.style), ensure_ascii=False) if document.style else ""
        return io.NodeOutput(regions, prompt, document.background, style, source, report, ui=ui.PreviewText(report))


NOTHING = "The text holds no box for {}; disconnect that output."
NODES = [BoxwrightPromptToRegions]
