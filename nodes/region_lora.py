"""BoxwrightRegionLora: a LoRA for each region, in one pass."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io, ui

from ..attention_patches.core.types import MAX_LORA, MAX_REGIONS, BoxwrightError, Layout, StepWindow
from ..attention_patches.host.region_lora import with_loras, without_place
from ..attention_patches.methods.region_lora import Masks, RegionLora
from ..attention_patches.methods.region_prompt import Overlap
from .parts import lora_files, schema
from .parts.checks import counted, shortened
from .parts.progress import reporter_of

FROM_LAYOUT = "as the layout says"
DEFAULT = RegionLora()


class BoxwrightRegionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionLora",
            display_name="Region LoRA",
            category=schema.CATEGORY,
            description="A LoRA for each region, which counts only inside it; all of them in one pass of the model. "
            "Choose each region's LoRA in Box Editor, or one in this node; put several nodes in a row for more. "
            "Region Prompt with the same layout gives each region its own words, too.",
            search_aliases=[
                "regional lora",
                "masked lora",
                "lora mask",
                "lora per region",
                "per region lora",
                "lora loader",
                "attention couple lora",
                "two characters",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.Combo.Input(
                    "lora",
                    options=[FROM_LAYOUT, *lora_files.listed()],
                    default=FROM_LAYOUT,
                    tooltip="as the layout says = each region has the LoRA that was chosen for its box in the Box "
                    "Editor. A file = this one, for the region below.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-MAX_LORA,
                    max=MAX_LORA,
                    step=0.01,
                    tooltip="Strength of the LoRAs: 0 = off, 1 = as trained. It multiplies the LoRA strength that Box "
                    "Editor has for a region. A region whose own strength is 0 takes no part.",
                ),
                io.Int.Input(
                    "region",
                    default=0,
                    min=0,
                    max=MAX_REGIONS,
                    tooltip="The number of the region that the chosen file is for; 0 = all of them. Has no effect "
                    "where the layout says which LoRA is whose.",
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(get_args(Overlap)),
                    default=DEFAULT.overlap,
                    tooltip="Where regions overlap: order = later ones lie on earlier ones, those without a LoRA too; "
                    "blend = they share, in proportion to their strengths; occlude = later ones hide what is behind "
                    "them as much as their opacity says.",
                ),
                schema.feather_input(DEFAULT.feather),
                *schema.window_inputs(DEFAULT.window),
                io.Combo.Input(
                    "masks",
                    options=list(get_args(Masks)),
                    default=DEFAULT.masks,
                    optional=True,
                    tooltip="boxes = a LoRA counts in all of its region, as drawn. subject = at first in all of it, "
                    "then only where its words are seen, so that background inside a box keeps the base model.",
                ),
                io.Float.Input(
                    "subject_after",
                    default=DEFAULT.subject_after,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    tooltip="For masks subject: how long the node looks first, as a fraction of the noise schedule "
                    "from the first step in which the LoRAs count. Longer = better masks, but more is painted by then.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The patched model."),
                io.String.Output("notes", tooltip="Which LoRA is whose, and what of it has no effect here."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        layout,
        lora,
        lora_strength,
        region,
        overlap,
        feather,
        start,
        end,
        masks=DEFAULT.masks,
        subject_after=DEFAULT.subject_after,
    ) -> io.NodeOutput:
        named = lora == FROM_LAYOUT
        chosen = of_layout(layout, lora_strength) if named else of_widgets(layout, lora, lora_strength, region)
        settings = RegionLora(overlap, feather, StepWindow(start, end), masks, subject_after)
        patched, loras = with_loras(model, layout, settings, chosen, reporter_of(cls))
        lines = notes(model, layout, chosen, loras, named)
        if masks == "subject":
            lines.append(
                f"Masks follow the subject: for {subject_after:g} of the schedule every region holds as drawn, then "
                "where in it its words are seen. The node says how much of it that is."
            )
        report = "\n".join(lines)
        return io.NodeOutput(patched, report, ui=ui.PreviewText(report))


def of_layout(layout: Layout, strength: float) -> dict[int, tuple[str, str, float]]:
    """Number of the region, from 0 -> (name, path, strength) of the LoRA that it names."""
    found = lora_files.named_by(layout.regions, strength)
    if not found:
        raise BoxwrightError(
            "No region of the layout names a LoRA. Choose a file in the Box Editor, for the boxes that want one, or in "
            "this node."
        )
    return found


def of_widgets(layout: Layout, name: str, strength: float, region: int) -> dict[int, tuple[str, str, float]]:
    """The same for the node's own choice."""
    if region > len(layout.regions):
        raise BoxwrightError(
            f"region is {region}, and the layout has {counted(len(layout.regions), 'region')}; choose one of them, or "
            "0 for all."
        )
    path = lora_files.path_of(name, "lora")
    numbers = range(len(layout.regions)) if region == 0 else [region - 1]
    return {number: (name, path, strength) for number in numbers}


def notes(model, layout: Layout, chosen, loras, named: bool) -> list[str]:
    """Which LoRA is whose, and what has no effect, a sentence each."""
    lines = []
    for number, (name, _, strength) in chosen.items():
        region = layout.regions[number]
        off = " It is off: a strength is 0." if strength == 0 or region.strength == 0 else ""
        lines.append(f'Region {number + 1} ("{shortened(region.phrase, 40)}"): {name} at {strength:g}.{off}')
    for name, lora in loras.items():
        count = without_place(model, lora)
        lines.append(f"{name} changes {counted(len(lora.layers), 'layer')}, all regions in one pass of the model.")
        if count:
            lines.append(
                f"{counted(count, 'layer')} of them have no place in the picture (time, modulation): there it counts "
                "only as far as its regions cover the whole picture."
            )
        if lora.has_text and named:
            lines.append(
                f"The part of {name} for the text encoder counts in its regions' own texts, which Layout Prompt "
                "encodes; Region Prompt reads those."
            )
        elif lora.has_text:
            lines.append(
                f"The part of {name} for the text encoder is left out: only the layout can name the LoRA with which a "
                "region's text is encoded (Box Editor)."
            )
    return lines


NODES = [BoxwrightRegionLora]
