"""BoxwrightBoxConstraint: phrases are drawn into their boxes (BoxDiff), with its settings as a node of their own."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..attention_patches.core.types import StepWindow
from ..attention_patches.host.install import install
from ..attention_patches.host.support import supports
from ..attention_patches.methods.box_constraint import PRESETS, BoxConstraint, Competition, Mode, by_hand
from ..attention_patches.methods.box_constraint import preset as numbers_of
from .parts import schema
from .parts.checks import check_some_acts
from .parts.progress import reporter_of, tell

Settings = io.Custom("BOXWRIGHT_BOX_CONSTRAINT")  # attention_patches.methods.box_constraint.BoxConstraint
DEFAULT = PRESETS["standard"]


class BoxwrightBoxConstraint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightBoxConstraint",
            display_name="Box Constraint",
            category=schema.CATEGORY,
            description="Draws each phrase in its box: moves the latent while it is sampled (BoxDiff, arXiv "
            "2307.10816), with nearly any sampler. Costs about one more model call per step in the first half of the "
            "schedule. The help page of Layout Prompt lists the models. While sampling, the node shows how far each "
            "phrase is from its box.",
            search_aliases=[
                "object placement",
                "boxdiff",
                "attend and excite",
                "layout guidance",
                "bounding box",
                "ilgd",
                "place objects",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default=DEFAULT.mode,
                    tooltip="boxdiff = moves the latent before each of the first steps, as published. fast = moves "
                    "the prediction instead: no further model call, the same at any CFG, works with uni_pc too. "
                    "attend_excite = no boxes: makes sure that every phrase appears somewhere (arXiv 2301.13826).",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="standard",
                    tooltip="standard = a good start. gentle = small moves, least change to the picture. strict = "
                    "several moves per step: slower (in fast: longer moves). fill = objects fill their boxes, made "
                    "for noise that Arranged Noise has put in order (boxdiff only). published = the papers' numbers: "
                    "no limit to a move, which can leave blotches (not in fast).",
                ),
                Settings.Input(
                    "settings",
                    optional=True,
                    tooltip="From Box Constraint Settings: every number by hand, in place of the preset.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, layout, mode, preset, settings=None) -> io.NodeOutput:
        method = by_hand(settings, mode) if settings else numbers_of(preset, mode)
        if method.step_size > 0:
            check_some_acts(layout)
        tell(cls, supports(model))
        return io.NodeOutput(install(model, layout, method.guides(layout), reporter_of(cls)))


class BoxwrightBoxConstraintSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightBoxConstraintSettings",
            display_name="Box Constraint Settings",
            category=schema.CATEGORY,
            description="Every number of Box Constraint. The defaults are its standard preset.",
            search_aliases=["boxdiff settings"],
            inputs=[
                io.Float.Input(
                    "step_size",
                    default=DEFAULT.step_size,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How far the latent follows the gradient, in the units of the paper (20): 0 = off. With a "
                    "small max_change it hardly matters, since most values reach that limit.",
                ),
                io.Float.Input(
                    "step_end",
                    default=DEFAULT.step_end,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Steps become shorter: at the end of the whole schedule the squared step size has fallen "
                    "to this share. 1 = it stays the same, 0 = it fades out.",
                ),
                io.Float.Input(
                    "max_change",
                    default=DEFAULT.max_change,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How far one move may change a value of the latent at most, as a share of the noise in "
                    "it: 0 = no limit (published; can leave blotches), 0.05 = careful, 0.3 = strong. In the mode fast "
                    "it limits the prediction: 0.75 = careful, 1.5 = standard, 0 = 4.",
                ),
                *schema.window_inputs(DEFAULT.window),
                io.Int.Input(
                    "iterations",
                    default=DEFAULT.iterations,
                    min=1,
                    max=50,
                    tooltip="Moves before each model call. Each costs about one model call more.",
                ),
                io.Boolean.Input(
                    "refine",
                    default=DEFAULT.refine,
                    tooltip="On = at 0, 0.2 and 0.4 of the schedule, repeat until the worst phrase fills its box by 5, "
                    "50 and 80 percent. Not in the fast mode.",
                ),
                io.Int.Input(
                    "refine_iterations",
                    default=DEFAULT.refine_iterations,
                    min=0,
                    max=100,
                    tooltip="At most so many repeats at each of the three times; 0 = none.",
                ),
                *(
                    io.Float.Input(
                        name,
                        default=getattr(DEFAULT, name),
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip=f"Weight of: {what}. 0 = leave this out, 1 = as in the paper.",
                    )
                    for name, what in (
                        ("inner", "the phrase is in its box"),
                        ("outer", "the phrase is nowhere else"),
                        ("corner", "it reaches the edges of the box and ends there"),
                    )
                ),
                io.Float.Input(
                    "top_fraction",
                    default=DEFAULT.top_fraction,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the cells inside the box (and outside) that count: those that see the phrase "
                    "most. 0.2 = a fifth (published), 1 = all of them, for objects that fill their box.",
                ),
                io.Int.Input(
                    "corner_width",
                    default=DEFAULT.corner_width,
                    min=0,
                    max=64,
                    tooltip="How many cells on either side of an edge of the box count for corner; 0 = the edge alone.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=DEFAULT.smoothing,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    tooltip="Blurs the attention over 3 x 3 cells, standard deviation in cells: 0 = not at all, 0.707 "
                    "= as published.",
                ),
                io.Combo.Input(
                    "competition",
                    options=list(get_args(Competition)),
                    default=DEFAULT.competition,
                    tooltip="Which tokens a phrase must beat in a cell: all but the start token (SD 1.x in the paper), "
                    "or the prompt's words only (SD 2.x). auto = as the text encoder asks for.",
                ),
            ],
            outputs=[Settings.Output(tooltip="For Box Constraint.")],
        )

    @classmethod
    def execute(cls, start, end, **numbers) -> io.NodeOutput:
        return io.NodeOutput(BoxConstraint(window=StepWindow(start, end), **numbers))


NODES = [BoxwrightBoxConstraint, BoxwrightBoxConstraintSettings]
