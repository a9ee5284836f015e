"""BoxwrightRegionConditioning: regions as the host's own masked conditioning, for any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from comfy_api.latest import io, ui

from ..attention_patches.core.marks import notes_on
from ..attention_patches.core.types import Region, StepWindow
from ..attention_patches.host.region_conditioning import (
    Base,
    Method,
    RegionConditioning,
    encoded_phrases,
    texts_in_order,
)
from .parts import schema
from .parts.phrases import texts_of

DEFAULT = RegionConditioning()


class BoxwrightRegionConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionConditioning",
            display_name="Region Conditioning",
            category=schema.CATEGORY,
            description="Gives every region its own words with ComfyUI's own conditioning (Conditioning Set Mask or "
            "Set Area, combined). For models that Region Prompt cannot patch, for a LoRA per region, and to compare. "
            "Every region costs a pass of the model.",
            search_aliases=[
                "regional prompt",
                "area",
                "conditioning set mask",
                "set area",
                "region",
                "regional lora",
                "per region lora",
                "lora per region",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="Encodes the phrases of the regions."),
                schema.Regions.Input("regions", tooltip="From Regions or Box Editor: what belongs where."),
                io.Conditioning.Input("positive", tooltip="The prompt for the whole image."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt. Regions with a negative phrase get theirs in the same way as the "
                    "positive ones.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(get_args(Method)),
                    default=DEFAULT.method,
                    tooltip="mask = the model sees the whole image for each region, and its answer counts inside "
                    "(painted regions too). area = the model sees only the box: faster, with less coherence.",
                ),
                io.Float.Input(
                    "strength",
                    default=DEFAULT.strength,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Weight of the regions against the prompt: 0 = none, 1 = equal, 10 = the prompt hardly "
                    "counts inside. Each region's own strength multiplies it.",
                ),
                io.Combo.Input(
                    "base",
                    options=list(get_args(Base)),
                    default=DEFAULT.base,
                    tooltip="Where the prompt counts: everywhere, or only outside the regions.",
                ),
                io.Float.Input(
                    "base_strength",
                    default=DEFAULT.base_strength,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="Weight of the prompt against the regions: near 0 = only where there is no region, 1 = as "
                    "it comes.",
                ),
                io.Float.Input(
                    "feather",
                    default=DEFAULT.feather,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="mask: soft edge outside each region, as a fraction of the image: 0 = hard edge.",
                ),
                *schema.window_inputs(DEFAULT.window),
                io.Conditioning.Input(
                    "region_texts",
                    optional=True,
                    tooltip="Texts instead of the phrases, one for each region in order, joined with Conditioning "
                    "(Combine). Their hooks (a LoRA each) are kept.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt and the regions, combined."),
                io.Conditioning.Output("negative", tooltip="The negative prompt and the regions' negative phrases."),
                io.String.Output("notes", tooltip="What it costs, and which options have no effect here."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,
        regions,
        positive,
        negative,
        method,
        strength,
        base,
        base_strength,
        feather,
        start,
        end,
        region_texts=None,
    ) -> io.NodeOutput:
        settings = RegionConditioning(method, strength, base, base_strength, feather, StepWindow(start, end))
        texts: Sequence[list | None]
        if region_texts is None:
            texts = encoded_phrases(clip, regions, negative=False)
        else:
            texts = texts_in_order(region_texts, regions)
        combined = settings.combined(positive, regions, texts)
        opposed = settings.combined(negative, regions, encoded_phrases(clip, regions, negative=True))
        said = [note for name, text in texts_of(regions) for note in notes_on(name, text)]
        report = "\n".join([*notes(settings, regions, combined, opposed), *said])
        return io.NodeOutput(combined, opposed, report, ui=ui.PreviewText(report))


def notes(settings: RegionConditioning, regions: Sequence[Region], positive: list, negative: list) -> list[str]:
    """What it costs and what has no effect, a sentence each."""
    found = [
        f"Passes of the model in each step: {len(positive)}, and at CFG above 1 {len(negative)} more for the negative."
    ]
    if settings.method == "area":
        found.append(
            "Areas are for models of pictures: where latents have frames (Qwen-Image, Wan, ...), ComfyUI stops with "
            '"tuple index out of range". Choose mask there.'
        )
    if settings.method == "area" and settings.feather:
        found.append("feather has no effect on areas: the host fades their edges by itself.")
    if any(region.start_frame is not None or region.end_frame is not None for region in regions):
        found.append("start_frame and end_frame have no effect: masked conditioning holds in all frames of a film.")
    return found


NODES = [BoxwrightRegionConditioning]
