"""BoxwrightAttentionRecorder: what the picture pays attention to while any sampler draws it."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..attention_patches.core.types import BoxwrightError, Layout, StepWindow
from ..attention_patches.host.recorder import recorded
from ..attention_patches.host.support import supports
from ..attention_patches.host.text.layout import encode_layout
from ..attention_patches.methods.recorder import MAX_MOMENTS, MIB, RecordedGrids, Recording, Records
from .parts import schema
from .parts.drawn_by import place
from .parts.phrases import parse_phrases
from .parts.progress import reporter_of, tell

DEFAULT = Recording()


class BoxwrightAttentionRecorder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightAttentionRecorder",
            display_name="Attention Recorder",
            category=schema.CATEGORY,
            description="Records which words each part of the picture looks at while it is drawn. The picture stays "
            "the same to the last bit, with any sampler. Attention Heatmap shows the record; Mask from Word makes a "
            "mask of it.",
            search_aliases=[
                "attention map",
                "inspect attention",
                "cross-attention",
                "daam",
                "heatmap",
                "attention visualizer",
            ],
            inputs=[
                schema.model_input(),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip="Words or phrases of the prompt to record, on lines or between commas. Empty = every word.",
                ),
                io.Combo.Input(
                    "resolutions",
                    options=list(get_args(RecordedGrids)),
                    default=DEFAULT.resolutions,
                    tooltip="Which attention grids: middle = neither the finest nor the coarsest (sharp enough, little "
                    "noise, cheap); all; all but finest. Models with two grids record the coarser, unless all; Flux "
                    "has one.",
                ),
                io.Int.Input(
                    "moments",
                    default=DEFAULT.moments,
                    min=1,
                    max=MAX_MOMENTS,
                    tooltip="Maps over time: 1 = one mean over the whole run, 20 = twenty, one after the other (with "
                    "20 steps one for each step).",
                ),
                *schema.window_inputs(DEFAULT.window),
                io.Int.Input(
                    "budget_mb",
                    default=DEFAULT.budget // MIB,
                    min=1,
                    max=8192,
                    tooltip="The most memory that the maps may take. A run that needs more is refused before its first "
                    "step; earlier runs are forgotten to make room.",
                ),
                schema.Layout.Input(
                    "layout",
                    optional=True,
                    tooltip="From Layout Prompt, if that makes the positive conditioning. Otherwise wire clip and "
                    "write the prompt.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Without a layout: the text encoder of the positive."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    dynamic_prompts=True,
                    tooltip="Without a layout: the same text as in the CLIP Text Encode of the positive.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model to sample with. Its pictures are those of the unpatched one."),
                schema.Record.Output(
                    "record", tooltip="Filled while the model samples. Every run has a record of its own."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, phrases, resolutions, moments, start, end, budget_mb, layout=None, clip=None, prompt=""
    ) -> io.NodeOutput:
        layout = recorded_layout(layout, clip, prompt)
        window = StepWindow(start, end)
        recording = Recording(parse_phrases(phrases, "phrases"), resolutions, moments, window, budget_mb * MIB)
        records = Records(layout.prompt.tokens, recording)
        tell(cls, supports(model))
        return io.NodeOutput(recorded(model, layout, records, place, reporter_of(cls)), records)


def recorded_layout(layout: Layout | None, clip, prompt: str) -> Layout:
    """The layout given, or one without regions of the prompt. Raises BoxwrightError for both or neither."""
    if layout is not None:
        if clip is not None or prompt.strip():
            raise BoxwrightError(
                "Both a layout and a clip or prompt are given, and the recorder follows one prompt. Unwire the layout, "
                "or unwire the clip and clear the prompt."
            )
        return layout
    if clip is None:
        raise BoxwrightError(
            "The recorder does not know the prompt. Wire `layout` of Layout Prompt; or wire clip and write the prompt "
            "of the positive conditioning."
        )
    return encode_layout(clip, prompt, (), False)[1]


NODES = [BoxwrightAttentionRecorder]
