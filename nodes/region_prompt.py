"""BoxwrightRegionPrompt: every region reads its own words."""

from __future__ import annotations

from typing import Literal, get_args

from comfy_api.latest import io, ui

from ..attention_patches.core.seam import ending
from ..attention_patches.core.types import BoxwrightError, Layout, StepWindow
from ..attention_patches.host import region_prompt as texts
from ..attention_patches.host.install import install
from ..attention_patches.methods.bounded_attention import BoundedAttention
from ..attention_patches.methods.dense_diffusion import DenseDiffusion
from ..attention_patches.methods.region_prompt import Overlap, RegionPrompt
from .parts import schema
from .parts.checks import counted, shortened
from .parts.progress import progress_reporter

Mode = Literal["couple", "dense"]
Bound = Literal["off", "coarse", "all"]
COUPLE, DENSE, BOUND = RegionPrompt(), DenseDiffusion(), BoundedAttention()


class BoxwrightRegionPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRegionPrompt",
            display_name="Region Prompt",
            category=schema.CATEGORY,
            description="Gives every region its own words, all in one pass of the model. couple: each region reads its "
            "own encoded text. dense: the prompt's attention is modulated towards the layout (DenseDiffusion, arXiv "
            "2308.12964). What no region covers reads the prompt.",
            search_aliases=[
                "regional prompt", "regional prompter", "forge couple", "attention couple", "latent couple",
                "dense diffusion", "bounded attention",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default="couple",
                    tooltip="couple = regions read their own text and nothing else (Stable Diffusion UNets). dense = "
                    "scores of the prompt's own words are raised inside and lowered outside, in cross- and "
                    "self-attention (any supported model; slower while it acts).",
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
                io.Float.Input(
                    "base_ratio",
                    default=COUPLE.base_ratio,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="couple: share of the prompt inside the regions. 0 = regions know only their own words, "
                    "1 = they know the prompt alone (off).",
                ),
                io.Float.Input(
                    "confine_end",
                    default=COUPLE.confine_end,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="couple: until when the prompt's words for a region are invisible outside it, so that its "
                    "object is not drawn between the regions once more. 0 = never; 1 = to the end: least is drawn "
                    "outside, but more objects go missing.",
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(get_args(Overlap)),
                    default=COUPLE.overlap,
                    tooltip="Where regions overlap: order = later ones lie on earlier ones; blend = all count, in "
                    "proportion to their strengths.",
                ),
                io.Float.Input(
                    "feather",
                    default=COUPLE.feather,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="couple: soft edge outside each region, as a fraction of the image's width and height: 0 = "
                    "exact edge, 0.1 = fades out over a tenth of the image.",
                ),
                *schema.window_inputs(COUPLE.window),
                io.Combo.Input(
                    "bound",
                    options=list(get_args(Bound)),
                    default="off",
                    tooltip="Keeps the image's regions from looking at each other, so that neighbours of one kind do "
                    "not merge (arXiv 2403.16990): coarse = on the coarser attention grids; all = on every grid (can "
                    "split the picture).",
                ),
                io.Float.Input(
                    "bound_end",
                    default=BOUND.window.end,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When bound stops, as a fraction of the noise schedule: 1 = never (published).",
                ),
                io.Float.Input(
                    "dense_end",
                    default=DENSE.window.end,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When dense stops, at the latest: 0.3 as published. It fades with the fifth power, so that "
                    "later steps cost time and change little.",
                ),
                io.Float.Input(
                    "cross_weight",
                    default=DENSE.cross_weight,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="dense: weight in the attention to words. 0 = leaves it alone, 1 as published.",
                ),
                io.Float.Input(
                    "self_weight",
                    default=DENSE.self_weight,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="dense: weight in the image's attention to itself. 0 = leaves it alone (much faster), 0.3 "
                    "as published.",
                ),
                io.Conditioning.Input(
                    "region_texts",
                    optional=True,
                    tooltip="couple: texts instead of the phrases, one for each region in order, joined with "
                    "Conditioning (Combine). Any encoder of the same model will do.",
                ),
                io.Conditioning.Input(
                    "background",
                    optional=True,
                    tooltip="couple: a text for what no region covers, instead of the prompt.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The patched model."),
                io.String.Output("notes", tooltip="What was set up, and which options have no effect here."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, layout, mode, strength, base_ratio, confine_end, overlap, feather, start, end, bound, bound_end,
        dense_end, cross_weight, self_weight, region_texts=None, background=None,
    ) -> io.NodeOutput:  # fmt: skip
        window = StepWindow(start, end)
        if mode == "couple":
            method = RegionPrompt(strength, base_ratio, confine_end, overlap, feather, window)
            own = None if region_texts is None else texts.region_texts(region_texts, layout)
            rest = None if background is None else texts.background_text(background, layout)
            edits = method.edits(layout, own, rest, progress_reporter(cls.hidden.unique_id))
        else:
            check_end(window, dense_end, "dense_end")
            method = DenseDiffusion(strength, cross_weight, self_weight, overlap=overlap, window=window)
            edits = ending(method.edits(layout), dense_end)
        on = bool(edits)
        if bound != "off" and strength > 0:
            check_end(window, bound_end, "bound_end")
            edits = [*edits, *ending(BoundedAttention(window, bound).edits(layout), bound_end)]
        couple_only = {"base_ratio": base_ratio, "confine_end": confine_end, "feather": feather}
        dense_only = {"dense_end": dense_end, "cross_weight": cross_weight, "self_weight": self_weight}
        notes = [
            summary(layout, mode, on),
            *without_effect(layout, mode, couple_only, dense_only, bound, bound_end, region_texts, background),
            *model_notes(model, mode, layout),
        ]
        report = "\n".join(notes)
        return io.NodeOutput(install(model, layout, edits), report, ui=ui.PreviewText(report))


def check_end(window: StepWindow, end: float, name: str) -> None:
    """Raises BoxwrightError where nothing of the window is left before `end`."""
    if end <= window.start:
        raise BoxwrightError(f"{name} {end:g} is not after start {window.start:g}; raise {name} or lower start.")


def summary(layout: Layout, mode: Mode, on: bool) -> str:
    """What was set up, in a sentence."""
    active = [region for region in layout.regions if region.strength > 0]
    if not on:
        return (
            f"{mode} is off (strength or weights of 0, a base_ratio of 1, regions of strength 0, or none whose time "
            "begins before dense_end)."
        )
    return f"{mode}: {counted(len(active), 'region')} in one pass of the model."


def without_effect(layout, mode, couple_only, dense_only, bound, bound_end, region_texts, background) -> list[str]:
    """Which options of the node and the regions do nothing here, a sentence each."""
    notes = [
        f'Region {number} ("{shortened(region.phrase, 40)}") has strength 0 and takes no part.'
        for number, region in enumerate(layout.regions, 1) if region.strength == 0
    ]  # fmt: skip
    negatives = [
        str(number) for number, (region, text) in enumerate(zip(layout.regions, layout.region_negatives), 1)
        if text is not None and region.strength > 0
    ]  # fmt: skip
    if mode == "dense":
        idle = [name for name, value in couple_only.items() if value != getattr(COUPLE, name)]
        idle += [name for name, value in (("region_texts", region_texts), ("background", background)) if value]
        idle += ["the regions' negative phrases"] if negatives else []
        idle += ["the regions' own feather"] if any(region.feather is not None for region in layout.regions) else []
        if idle:
            notes.append(f"dense does not use {', '.join(idle)}; couple does.")
    else:
        defaults = {"dense_end": DENSE.window.end, "cross_weight": DENSE.cross_weight, "self_weight": DENSE.self_weight}
        idle = [name for name, value in dense_only.items() if value != defaults[name]]
        if idle:
            notes.append(f"couple does not use {', '.join(idle)}; dense does.")
        if negatives:
            notes.append(
                f"Negative phrases of regions {', '.join(negatives)} replace the negative prompt there. They need a "
                "sampler with CFG above 1: at CFG 1 the model never sees a negative."
            )
        ignored = texts.left_out([*(region_texts or ()), *(background or ())])
        if ignored:
            notes.append(f"Of region_texts and background, {', '.join(ignored)} cannot count in one pass: left out.")
    if bound == "off" and bound_end != BOUND.window.end:
        notes.append("bound is off, so that bound_end does nothing.")
    if bound != "off" and sum(region.strength > 0 for region in layout.regions) < 2:
        notes.append("bound does nothing: it keeps regions apart, and there are fewer than two.")
    return notes


def model_notes(model, mode: Mode, layout: Layout) -> list[str]:
    """What this model does not take from the regions."""
    if mode == "couple" and getattr(model.model, "adm_channels", 0):
        return ["This model also reads the whole prompt as one vector (pooled text); that one stays the prompt's."]
    return []


NODES = [BoxwrightRegionPrompt]
