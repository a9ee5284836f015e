"""BoxwrightArrangedNoise: the start noise is put in the order in which objects come out in their boxes."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..attention_patches.host.install import install
from ..attention_patches.methods.arranged_noise import MAX_BLOCK, ArrangedNoise
from .parts import schema
from .parts.progress import progress_reporter

DEFAULT = ArrangedNoise()


class BoxwrightArrangedNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightArrangedNoise",
            display_name="Arranged Noise",
            category=schema.CATEGORY,
            description="Moves blocks of the start noise so that those in which the model sees a phrase lie in its box "
            "(after arXiv 2305.03382 and 2312.08872). One model call before the first step, none after it; the noise "
            "stays ordinary noise, and attention is not touched. With any sampler, and beside every other node here. "
            "While sampling, the node shows what moved.",
            search_aliases=[
                "initial noise", "noise editing", "place objects", "object placement", "layout noise", "noise blocks",
                "seed selection", "winning ticket",
            ],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.Float.Input(
                    "strength",
                    default=DEFAULT.strength,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the blocks that may move, those first that gain most by it: 0 = off, 1 = all.",
                ),
                io.Int.Input(
                    "block",
                    default=DEFAULT.block,
                    min=0,
                    max=MAX_BLOCK,
                    advanced=True,
                    tooltip="Side of a block in latent cells (8 pixels each in most models): 0 = that of a cell of the "
                    "attention that is read, 32 pixels in large models.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, layout, strength, block) -> io.NodeOutput:
        report = progress_reporter(cls.hidden.unique_id)
        edits = ArrangedNoise(strength, block).edits(layout)
        return io.NodeOutput(install(model, layout, [replace(edit, report=report) for edit in edits]))


NODES = [BoxwrightArrangedNoise]
