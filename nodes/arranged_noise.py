"""The start noise, put in the order in which objects come out in their boxes: for a model, or as a noise to look at."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.host.arranged_noise import arrange
from ..attention_patches.host.install import install
from ..attention_patches.methods.arranged_noise import MAX_BLOCK, ArrangedNoise
from .parts import schema
from .parts.arrangement import draw_arrangement
from .parts.checks import check_some_acts
from .parts.progress import reporter_of

DEFAULT = ArrangedNoise()


def number_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "strength",
            default=DEFAULT.strength,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the blocks that may move: 0 = off, 1 = all. Those that gain most by it go first.",
        ),
        io.Int.Input(
            "block",
            default=DEFAULT.block,
            min=0,
            max=MAX_BLOCK,
            advanced=True,
            tooltip="Side of a block in latent cells (8 pixels each in most models). 0 = chosen for the model: 32 "
            "pixels in Stable Diffusion at its usual sizes.",
        ),
    ]


class BoxwrightArrangedNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightArrangedNoise",
            display_name="Arranged Noise",
            category=schema.CATEGORY,
            description="Puts the start noise in another order: blocks in which the model sees a phrase go into its "
            "box (after arXiv 2305.03382 and 2312.08872). One model call before the first step, none after it. Works "
            "with any sampler, and beside every other node here. While sampling, the node shows what moved.",
            search_aliases=[
                "initial noise",
                "noise editing",
                "place objects",
                "object placement",
                "layout noise",
                "noise blocks",
                "seed selection",
                "winning ticket",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                *number_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, layout, strength, block) -> io.NodeOutput:
        if strength > 0:
            check_some_acts(layout)
        edits = ArrangedNoise(strength, block).edits(layout)
        return io.NodeOutput(install(model, layout, edits, reporter_of(cls)))


class BoxwrightArrangeNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightArrangeNoise",
            display_name="Arrange a Noise",
            category=schema.CATEGORY,
            description="Does what Arranged Noise does, for Sampler Custom (Advanced). A picture shows where the "
            "model saw each phrase in the noise, and which blocks moved.",
            search_aliases=["initial noise", "noise editing", "arranged noise picture", "custom noise"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to arrange, as from Random Noise."),
                io.Model.Input("model", tooltip="The model that will draw. It stays as it is."),
                io.Conditioning.Input("positive", tooltip="From the Layout Prompt that made the layout."),
                schema.layout_input(),
                io.Latent.Input("latent", tooltip="The latent that the sampler gets too."),
                *number_inputs(),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Only if the sampler begins with less than full noise, to redraw a picture: its sigmas.",
                ),
            ],
            outputs=[
                io.Noise.Output("noise", tooltip="For the noise of Sampler Custom (Advanced), with the same latent."),
                io.Image.Output("picture", tooltip="Each phrase in the noise before and after, and what moved."),
                io.String.Output("report", tooltip="How much moved, and the attention in each box before and after."),
            ],
        )

    @classmethod
    def execute(cls, noise, model, positive, layout, latent, strength, block, sigmas=None) -> io.NodeOutput:
        found, plan = arrange(model, positive, layout, ArrangedNoise(strength, block), noise, latent, sigmas)
        report = plan.report()
        return io.NodeOutput(found, draw_arrangement(plan, layout.regions), report, ui=ui.PreviewText(report))


NODES = [BoxwrightArrangedNoise, BoxwrightArrangeNoise]
