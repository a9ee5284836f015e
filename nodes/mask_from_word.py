"""BoxwrightMaskFromWord: where a phrase of the prompt ended up, as a mask."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.masks import mask_of
from ..attention_patches.core.types import BoxwrightError
from .parts import schema
from .parts.drawn_by import record_of
from .parts.heatmaps import pictures_of


class BoxwrightMaskFromWord(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightMaskFromWord",
            display_name="Mask from Word",
            category=schema.CATEGORY,
            description="A mask of the part of the picture that looked at a word or phrase of the prompt. For "
            "inpainting, regions, or anything else that takes a mask.",
            search_aliases=["attention mask", "segment by word", "daam mask", "text mask", "auto mask"],
            inputs=[
                schema.record_input(),
                schema.recorded_pictures_input(),
                io.String.Input("phrase", default="", tooltip="A word or phrase of the prompt, as the prompt has it."),
                schema.threshold_input(),
            ],
            outputs=[io.Mask.Output("mask", tooltip="1 where the phrase is; one for each picture of the batch.")],
        )

    @classmethod
    def execute(cls, record, images, phrase, threshold) -> io.NodeOutput:
        if not phrase.strip():
            raise BoxwrightError("There is no phrase; write a word of the recorded prompt.")
        record = record_of(record, "images")
        found = record.map_of(phrase.strip())
        size = tuple(pictures_of(images, record.rows).shape[1:3])
        return io.NodeOutput(mask_of(found, threshold, size))


NODES = [BoxwrightMaskFromWord]
