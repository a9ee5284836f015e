"""BoxwrightRePaint: inpainting that goes back and forth between noise levels."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.host.samplers.loops import sampler
from ..attention_patches.samplers.noise import falling
from ..attention_patches.samplers.repaint import MAX_JUMP, MAX_REPEATS, RePaint
from .parts import editing, editing_inputs, schema

DEFAULT = RePaint()
TYPICAL = (20, 50, 250)  # steps to name where the schedule is not known


class BoxwrightRePaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightRePaint",
            display_name="RePaint Sampler",
            category=schema.CATEGORY,
            description="A sampler that fills the mask of a picture with any text-to-image model: at every step the "
            "rest is put back, and again and again it goes some steps back, until both fit (RePaint, arXiv "
            "2201.09865).",
            search_aliases=["repaint", "inpaint", "resampling", "fill", "outpaint"],
            inputs=[
                io.Int.Input(
                    "jump",
                    default=DEFAULT.jump,
                    min=1,
                    max=MAX_JUMP,
                    tooltip="How many steps each jump goes back: 1 = small corrections, 10 = as published, as many as "
                    "there are steps or more = no jump.",
                ),
                io.Int.Input(
                    "repeats",
                    default=DEFAULT.repeats,
                    min=1,
                    max=MAX_REPEATS,
                    tooltip="How often each stretch is drawn: 1 = once, without going back, the fastest; 10 = as "
                    "published, about ten times the cost. See the report.",
                ),
                editing_inputs.mask_input(
                    "White = filled, black = kept, any size. Without one: the latent's noise mask."
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Only for the report: wire the schedule of the sampler to see what it will cost.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="For Sampler Custom (or Advanced), with the picture as its latent."),
                io.String.Output("report", tooltip="How many evaluations of the model this will take."),
            ],
        )

    @classmethod
    def execute(cls, jump, repeats, mask=None, sigmas=None) -> io.NodeOutput:
        method = RePaint(jump, repeats)
        steps = TYPICAL if sigmas is None else (len(falling(sigmas)) - 1,)
        counts = [f"{count} steps take {method.evaluations(count)} model evaluations" for count in steps]
        black = "" if mask is None else editing.hint_of_black(mask)
        report = "; ".join(counts) + f" (twice as many with a negative prompt and cfg above 1).{black}"
        return io.NodeOutput(sampler("RePaint", method.sample, mask), report, ui=ui.PreviewText(report))


NODES = [BoxwrightRePaint]
