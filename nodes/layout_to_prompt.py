"""The node that writes a layout as the prompt of a model that reads boxes itself."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.core.types import BoxwrightError
from .parts import schema
from .parts.checks import counted
from .parts.layout_document import Document
from .parts.layout_formats import FORMATS, boxes_only, left_out, parse_style, written
from .parts.layout_template import EXAMPLE, TEMPLATE, template_format, write_template
from .parts.sized_regions import size_of


class BoxwrightLayoutToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightLayoutToPrompt",
            display_name="Layout to Prompt",
            category=schema.CATEGORY,
            description=(
                "Writes boxes as the prompt of a model that reads boxes itself: FLUX.3 (pictures and edits), Ideogram "
                "4 (and Krea 2), Ming-Image, or a text of your own. Wire prompt to that model's text encoder or node."
            ),
            search_aliases=[
                "flux 3 layout",
                "ideogram json prompt",
                "krea 2 json",
                "ming image",
                "bbox prompt",
                "json caption",
                "structured prompt",
                "layout to text",
                "moss image",
            ],
            inputs=[
                schema.Regions.Input(
                    "regions",
                    optional=True,
                    tooltip="What shall be where. From Box Editor or Regions; not needed for an edit that only "
                    "removes.",
                ),
                io.Combo.Input(
                    "format",
                    options=[*FORMATS, TEMPLATE],
                    default="FLUX.3",
                    tooltip="Whose prompt it is. Ideogram 4's is read by Krea 2 too. template: the text below, for any "
                    "other.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="The whole picture in words; for an edit, what to change. FLUX.3: each box's <id> is put "
                    "behind its words, and words that the prompt lacks are appended.",
                ),
                io.String.Input(
                    "background",
                    multiline=True,
                    default="",
                    tooltip="What lies behind the boxes, in words. Ideogram 4 wants it; Ming-Image makes it the lowest "
                    "layer. FLUX.3 has no place for it.",
                ),
                io.String.Input(
                    "style",
                    multiline=True,
                    default="",
                    placeholder="lighting: soft daylight",
                    tooltip="Lines of key: words. Ideogram 4: aesthetics, lighting, photo or art_style, medium, "
                    "color_palette. Ming-Image: aspect_ratio, ambient_lighting, image_style. Or a JSON object.",
                ),
                io.Combo.Input(
                    "unsupported",
                    options=["refuse", "leave out"],
                    default="refuse",
                    tooltip="What the format has no place for, such as strength or negative words: refuse = an error "
                    "that names it; leave out = it is dropped, and the report says so.",
                ),
                io.String.Input(
                    "template",
                    multiline=True,
                    default=EXAMPLE,
                    optional=True,
                    advanced=True,
                    tooltip="For the format template. A line with a box's placeholder is written once for each box. "
                    "The help page lists the placeholders.",
                ),
                schema.size_input("width"),
                schema.size_input("height"),
                schema.Regions.Input(
                    "source",
                    optional=True,
                    tooltip="FLUX.3 only: what stands in the picture now. This makes the prompt an edit. The same "
                    "words at the same place = keep, at another = move, only in source = remove, only in regions = "
                    "new.",
                ),
            ],
            outputs=[
                io.String.Output("prompt", tooltip="The prompt with its boxes."),
                io.String.Output("report", tooltip="What was written, and what was left out."),
            ],
        )

    @classmethod
    def validate_inputs(cls, style=None) -> bool | str:
        """Refuse a bad style before anything runs; a connected one (None here) is checked when it arrives."""
        try:
            parse_style(style or "")
        except BoxwrightError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        format,
        prompt,
        background,
        style,
        unsupported,
        regions=None,
        template=EXAMPLE,
        width=0,
        height=0,
        source=None,
    ) -> io.NodeOutput:
        document = Document(
            tuple(regions or ()), None if source is None else tuple(source), prompt, background, parse_style(style)
        )
        size = schema.given_size(width, height) or size_of(regions, source)
        if format == TEMPLATE:
            if source is not None:
                raise BoxwrightError("A template has no place for source boxes. Disconnect source, or use FLUX.3.")
            document, boxed = boxes_only(document)
            notes = boxed + left_out(document, template_format(template), unsupported == "leave out")
            text = write_template(template, document, size)
        else:
            text, notes = written(document, format, size, unsupported == "leave out")
        report = "\n".join([f"{counted(len(document.regions), 'region')} written as {format}.", *notes])
        return io.NodeOutput(text, report, ui=ui.PreviewText(f"{text}\n\n{report}"))


NODES = [BoxwrightLayoutToPrompt]
