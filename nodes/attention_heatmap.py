"""BoxwrightAttentionHeatmap: a record as pictures and as a mask."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from comfy_api.latest import io

from ..attention_patches.core.masks import mask_of
from ..attention_patches.core.token_alignment import words_of
from ..attention_patches.core.types import BoxwrightError
from ..attention_patches.methods.recorder import AttentionRecord, Records
from .parts import schema
from .parts.drawn_by import record_of
from .parts.heatmaps import Tile, draw_grid, pictures_of
from .parts.phrases import MAX_PHRASES, parse_phrases

Columns = Literal["mean", "moments", "resolutions"]


class BoxwrightAttentionHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightAttentionHeatmap",
            display_name="Attention Heatmap",
            category=schema.CATEGORY,
            description="Shows over the picture where it looked at each phrase. Each phrase has a row; the columns "
            "are the mean, the moments of the run or the resolutions. Also makes a mask of where the phrases are.",
            search_aliases=[
                "attention map",
                "inspect attention",
                "daam",
                "cross-attention",
                "visualize attention",
                "word heatmap",
            ],
            inputs=[
                schema.record_input(),
                schema.recorded_pictures_input(),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip="Words or phrases of the prompt, on lines or between commas; each becomes a row. Empty = "
                    "the phrases given to the recorder, or every word of the prompt.",
                ),
                io.Combo.Input(
                    "columns",
                    options=list(get_args(Columns)),
                    default="mean",
                    tooltip="mean = one tile for each phrase; moments = one for each recorded moment, in order; "
                    "resolutions = one for each recorded grid, finest first.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of the colours over the picture: 0 = the picture alone, 1 = the colours alone.",
                ),
                schema.threshold_input(),
            ],
            outputs=[
                io.Image.Output("heatmaps", tooltip="One grid for each picture of the batch."),
                io.Mask.Output("mask", tooltip="Where any of the phrases is, for each picture of the batch."),
            ],
        )

    @classmethod
    def execute(cls, record, images, phrases, columns, opacity, threshold) -> io.NodeOutput:
        named = parse_phrases(phrases, "phrases") or recorded_phrases(record)
        record = record_of(record, "images")
        maps = [record.map_of(phrase) for phrase in named]
        pictures = pictures_of(images, record.rows)
        grids = draw_grid(pictures, [tiles_of(record, phrase, columns) for phrase in named], opacity)
        size = tuple(pictures.shape[1:3])
        return io.NodeOutput(grids, torch.stack([mask_of(image, threshold, size) for image in maps]).amax(dim=0))


def recorded_phrases(records: Records) -> tuple[str, ...]:
    """The phrases the recorder was given, or the words of its prompt; at most MAX_PHRASES. Raises BoxwrightError where
    there are none."""
    names = dict.fromkeys(word.name for word in words_of(records.tokens) if records.has(word.name))
    spoken = [name for name in names if any(map(str.isalnum, name))]
    found = records.recording.phrases or tuple(spoken or names)[:MAX_PHRASES]  # a prompt may be signs alone
    if not found:
        raise BoxwrightError("No word of the recorded prompt can be told from its neighbours. Write phrases of it.")
    return found


def tiles_of(record: AttentionRecord, phrase: str, columns: Columns) -> list[Tile]:
    """One row of the grid."""
    if columns == "moments":
        return [Tile(f"{phrase} [{number + 1}]", record.map_of(phrase, number)) for number in record.moments]
    if columns == "resolutions":
        return [Tile(f"{phrase} {w}x{h}", record.map_of(phrase, grid=(h, w))) for h, w in record.grids]
    return [Tile(phrase, record.map_of(phrase))]


NODES = [BoxwrightAttentionHeatmap]
