"""BoxwrightRegionStrength: redraws a picture, every region as strongly as you say."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.core.types import BoxwrightError
from ..attention_patches.host.samplers.loops import picture_latent
from ..attention_patches.host.samplers.region_strength import redrawn_by_strength
from ..attention_patches.samplers.region_strength import RegionStrength
from .parts import editing, editing_inputs, schema
from .parts.checks import number_of, shown

DEFAULT = RegionStrength()
MOST = 10_000  # characters


class BoxwrightRegionStrength(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionStrength",
            display_name="Region Strength",
            category=schema.CATEGORY,
            description="Image to image with a strength for every region, in one run: one is kept, one gets other "
            "colours, one is drawn anew (SDEdit, arXiv 2108.01073; Differential Diffusion, arXiv 2306.00950). With any "
            "sampler, beside Region Prompt and the other patches.",
            search_aliases=[
                "differential diffusion",
                "sdedit",
                "img2img",
                "denoise per region",
                "soft inpainting",
                "variable denoise strength",
                "denoise map",
            ],
            inputs=[
                schema.model_input(),
                schema.Regions.Input("regions", tooltip="From Regions or Box Editor: the parts of the picture."),
                io.String.Input(
                    "strengths",
                    default="",
                    multiline=True,
                    tooltip="One number from 0 to 1 for each region, in order, between commas or on lines: 0 = kept, "
                    "0.3 = other colours and textures, 0.6 = other shapes, 1 = drawn anew. Or lines such as: red car: "
                    "0.8. Empty = each region's own strength.",
                ),
                io.Float.Input(
                    "background",
                    default=DEFAULT.background,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The strength outside all regions: 0 = kept exactly, 1 = drawn anew.",
                ),
                io.Float.Input(
                    "feather",
                    default=DEFAULT.feather,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How softly a region's strength passes into what is around it, as a part of the picture: "
                    "0 = a hard edge. A region's own feather replaces it.",
                ),
                *editing_inputs.source_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler, with this latent."),
                io.Latent.Output(tooltip="The picture with its strengths, for the same sampler."),
                io.Mask.Output("map", tooltip="The strengths: black = kept, white = drawn anew."),
                io.String.Output("report", tooltip="The strength of each region, and the denoise for the sampler."),
            ],
        )

    @classmethod
    def execute(
        cls, model, regions, strengths, background, feather, latent=None, image=None, vae=None
    ) -> io.NodeOutput:
        settings = RegionStrength(background, feather)
        wanted = strengths_of(strengths, regions)
        source = dict(editing.one_source(latent, image, vae))
        grid = tuple(picture_latent(model, source).shape[-2:])
        patched, redrawn = redrawn_by_strength(model, source, settings.map_of(regions, wanted, grid))
        cell = editing.cell_of(model)
        pixels = settings.map_of(regions, wanted, (grid[0] * cell, grid[1] * cell))[None]
        report = report_of(regions, wanted, background) + editing.hint_of_black(redrawn["noise_mask"])
        return io.NodeOutput(patched, redrawn, pixels, report, ui=ui.PreviewText(report))


def strengths_of(text: str, regions) -> list[float]:
    """One for each region: numbers in order, lines "phrase: number" in any order, or the regions' own. Raises
    BoxwrightError for others."""
    if len(text) > MOST:
        raise BoxwrightError(f"strengths has {len(text)} characters; at most {MOST} are allowed. Shorten it.")
    if not regions:
        raise BoxwrightError("There are no regions. Draw a box, or use the sampler's denoise for all of the picture.")
    lines = []
    for line in text.splitlines():  # one name and its number is a line as it stands: phrases may hold commas
        lines += [part.strip() for part in ([line] if line.count(":") == 1 else line.split(",")) if part.strip()]
    if not lines:
        return [min(region.strength, 1.0) for region in regions]
    if not any(":" in line for line in lines):
        return [_number(line) for line in lines]
    found = {}
    for line in lines:
        phrase, parted, number = line.rpartition(":")
        if not parted or not any(region.phrase == phrase.strip() for region in regions):
            known = ", ".join(f'"{region.phrase}"' for region in regions[:8])
            raise BoxwrightError(f"{shown(line)} names no region; there are {known}. Write one of these and a number.")
        found[phrase.strip()] = _number(number)
    return [found.get(region.phrase, min(region.strength, 1.0)) for region in regions]


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise BoxwrightError(f"The strength {shown(word.strip())} is no number. Write numbers from 0 to 1.") from None
    return number_of(number, "A strength")


def report_of(regions, strengths, background: float) -> str:
    named = [f"{region.phrase[:40]} {value:g}" for region, value in zip(regions, strengths, strict=True)]
    most = max(*strengths, background)
    return (
        f"{', '.join(named)}; elsewhere {background:g}. Nothing is redrawn above {most:g}: with denoise {most:g} the "
        "sampler leaves out the steps before it."
    )


NODES = [BoxwrightRegionStrength]
