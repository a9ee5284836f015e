"""BoxwrightRegionPrompt: every region reads its own words."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io, ui

from ..attention_patches.core.seam import ending
from ..attention_patches.core.types import BoxwrightError, Layout, StepWindow
from ..attention_patches.host import region_prompt as texts
from ..attention_patches.host.install import install
from ..attention_patches.host.support import supports, takes_own_phrases
from ..attention_patches.methods.bounded_attention import BoundedAttention
from ..attention_patches.methods.dense_diffusion import DenseDiffusion
from ..attention_patches.methods.region_prompt import BLOCKS, Overlap, RegionPrompt
from .parts import schema
from .parts.checks import counted, shortened
from .parts.progress import reporter_of

COUPLE, DENSE, BOUND = RegionPrompt(), DenseDiffusion(), BoundedAttention()


class BoxwrightRegionPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionPrompt",
            display_name="Region Prompt",
            category=schema.CATEGORY,
            description="Gives every region its own words, all in one pass of the model. couple: each region reads "
            "its own text. dense: each region's words count more inside it and less outside (DenseDiffusion, arXiv "
            "2308.12964). The rest of the image reads the prompt.",
            search_aliases=[
                "regional prompt",
                "regional prompter",
                "forge couple",
                "attention couple",
                "latent couple",
                "dense diffusion",
                "bounded attention",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option("couple", couple_inputs()),
                        io.DynamicCombo.Option("dense", dense_inputs()),
                    ],
                    tooltip="couple = regions read their own text (the notes say whether the model takes it). dense = "
                    "a region's words count more inside it and less outside (any supported model; slower while it "
                    "acts). Each has inputs of its own.",
                ),
                io.Float.Input(
                    "strength",
                    default=COUPLE.strength,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 = off (the picture is exactly the unpatched one), 1 = full. Each region's own strength "
                    "multiplies it.",
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(get_args(Overlap)),
                    default=COUPLE.overlap,
                    tooltip="Where regions overlap: order = later ones lie on earlier ones; blend = all count, in "
                    "proportion to their strengths; occlude = later ones stand in front and hide what is "
                    "behind, each as far as its opacity says.",
                ),
                *schema.window_inputs(COUPLE.window),
                io.DynamicCombo.Input(
                    "bound",
                    options=[
                        io.DynamicCombo.Option("off", []),
                        io.DynamicCombo.Option("coarse", [bound_end_input()]),
                        io.DynamicCombo.Option("all", [bound_end_input()]),
                    ],
                    tooltip="Stops the image's regions from looking at each other, so that neighbours of one kind do "
                    "not merge (arXiv 2403.16990): coarse = on the coarser attention grids; all = on every grid (can "
                    "split the picture).",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The patched model."),
                io.String.Output("notes", tooltip="What was set up, and which options have no effect here."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, mode=None, bound=None) -> bool | str:
        return schema.chosen(cls, mode=mode, bound=bound)

    @classmethod
    def execute(cls, model, layout, mode, strength, overlap, start, end, bound) -> io.NodeOutput:
        window = StepWindow(start, end)
        name = mode["mode"]
        if name == "couple":
            shares = mode["base_ratio"], mode["confine_end"], overlap, mode["feather"]
            method = RegionPrompt(strength, *shares, window, *BLOCKS[mode["blocks"]])
            own, rest = mode.get("region_texts"), mode.get("background")
            own = None if own is None else texts.region_texts(own, layout)
            rest = None if rest is None else texts.background_text(rest, layout)
            edits = method.edits(layout, own, rest)
        else:
            check_end(window, mode["dense_end"], "dense_end")
            weights = mode["cross_weight"], mode["self_weight"]
            own = takes_own_phrases(model)
            dense = DenseDiffusion(strength, *weights, own_phrases=own, overlap=overlap, window=window)
            edits = ending(dense.edits(layout), mode["dense_end"])
        on = bool(edits)
        if bound["bound"] != "off" and strength > 0:
            check_end(window, bound["bound_end"], "bound_end")
            bounded = BoundedAttention(window, bound["bound"]).edits(layout)
            edits = [*edits, *ending(bounded, bound["bound_end"])]
        idle = without_effect(layout, mode, overlap, bound)
        report = "\n".join([summary(layout, name, on), *idle, *model_notes(model, mode)])
        return io.NodeOutput(install(model, layout, edits, reporter_of(cls)), report, ui=ui.PreviewText(report))


def couple_inputs() -> list[io.Input]:
    """What only couple reads."""
    return [
        io.Float.Input(
            "base_ratio",
            default=COUPLE.base_ratio,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the prompt the regions read too. 0 = only their own words, 1 = only the prompt (off).",
        ),
        io.Float.Input(
            "confine_end",
            default=COUPLE.confine_end,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Until when the prompt's words for a region are hidden outside it, so that its object is not "
            "drawn again between the regions. 0 = never hidden; 1 = to the end: least is drawn outside, but more "
            "objects go missing.",
        ),
        schema.feather_input(COUPLE.feather),
        io.Combo.Input(
            "blocks",
            options=list(BLOCKS),
            default="all",
            advanced=True,
            tooltip="On models that read text and image in one attention (Flux, Qwen-Image, Z-Image, SD3): the blocks "
            "in which regions read their own text. In the others they read the prompt. No effect on UNets.",
        ),
        io.Conditioning.Input(
            "region_texts",
            optional=True,
            tooltip="Texts instead of the phrases, one for each region in order, joined with Conditioning (Combine). "
            "Any encoder of the same model will do.",
        ),
        io.Conditioning.Input(
            "background",
            optional=True,
            tooltip="A text for the rest of the image, outside all regions, instead of the prompt.",
        ),
    ]


def dense_inputs() -> list[io.Input]:
    """What only dense reads."""
    return [
        io.Float.Input(
            "dense_end",
            default=DENSE.window.end,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="When it stops, at the latest: 0.3 as published. The effect fades fast: later steps cost time and "
            "change little.",
        ),
        io.Float.Input(
            "cross_weight",
            default=DENSE.cross_weight,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How strongly the attention to words is changed. 0 = not at all, 1 = as published.",
        ),
        io.Float.Input(
            "self_weight",
            default=DENSE.self_weight,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How strongly the image's attention to itself is changed. 0 = not at all (much faster), 0.3 = as "
            "published.",
        ),
    ]


def bound_end_input() -> io.Input:
    return io.Float.Input(
        "bound_end",
        default=BOUND.window.end,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="When it stops, as a fraction of the noise schedule: 1 = never (published).",
    )


def check_end(window: StepWindow, end: float, name: str) -> None:
    """Raises BoxwrightError where nothing of the window is left before `end`."""
    if end <= window.start:
        raise BoxwrightError(f"{name} {end:g} is not after start {window.start:g}; raise {name} or lower start.")


def summary(layout: Layout, mode: str, on: bool) -> str:
    """What was set up, in a sentence."""
    active = [region for region in layout.regions if region.strength > 0]
    if not on:
        return (
            f"{mode} is off (strength or weights of 0, a base_ratio of 1, regions of strength 0, or none whose time "
            "begins before dense_end)."
        )
    return f"{mode}: {counted(len(active), 'region')} in one pass of the model."


def without_effect(layout: Layout, mode: dict, overlap: Overlap, bound: dict) -> list[str]:
    """What of the node and the regions does nothing here, a sentence each."""
    notes = [
        f'Region {number} ("{shortened(region.phrase, 40)}") has strength 0 and takes no part.'
        for number, region in enumerate(layout.regions, 1)
        if region.strength == 0
    ]
    negatives = [
        str(number)
        for number, (region, text) in enumerate(zip(layout.regions, layout.region_negatives), 1)
        if text is not None and region.strength > 0
    ]
    if mode["mode"] == "dense":
        idle = ["the regions' negative phrases"] if negatives else []
        idle += ["the regions' own feather"] if any(region.feather is not None for region in layout.regions) else []
        if idle:
            notes.append(f"dense does not use {' and '.join(idle)}; couple does.")
    else:
        if negatives:
            notes.append(
                f"Negative phrases of regions {', '.join(negatives)} replace the negative prompt there. They need a "
                "sampler with CFG above 1: at CFG 1 the model never sees a negative."
            )
        ignored = texts.left_out([*(mode.get("region_texts") or ()), *(mode.get("background") or ())])
        if ignored:
            notes.append(f"Of region_texts and background, {', '.join(ignored)} cannot count in one pass: left out.")
    if overlap != "occlude" and any(region.opacity < 1 for region in layout.regions):
        notes.append(f"{overlap} does not use the regions' opacity; occlude does.")
    if bound["bound"] != "off" and sum(region.strength > 0 for region in layout.regions) < 2:
        notes.append("bound does nothing: it keeps regions apart, and there are fewer than two.")
    return notes


def model_notes(model, mode: dict) -> list[str]:
    """What this model does not take from the regions, and what acts on it."""
    notes = []
    couple = mode["mode"] == "couple"
    if couple and texts.reads_pooled_text(model):
        notes.append("This model also reads the whole prompt as one vector (pooled text); that one stays the prompt's.")
    if couple and mode["blocks"] != "all" and not texts.chooses_blocks(model):
        notes.append("blocks does nothing here: it is for models that read text and image in one attention.")
    if not couple and not takes_own_phrases(model):
        notes.append("This model reads phrases only as they stand in the prompt, and dense leaves them so.")
    return [*notes, supports(model)]


NODES = [BoxwrightRegionPrompt]
