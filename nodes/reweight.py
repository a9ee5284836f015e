"""BoxwrightReweight: make single words count more, less or not at all."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.types import MAX_REGIONS, BoxwrightError, StepWindow
from ..attention_patches.host.install import install
from ..attention_patches.host.support import supports
from ..attention_patches.methods.reweight import HIGHEST, LOWEST, Reweight
from .parts import schema
from .parts.phrases import parse_weights
from .parts.progress import reporter_of, tell

DEFAULT = Reweight(weights=())


class BoxwrightReweight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightReweight",
            display_name="Reweight Words",
            category=schema.CATEGORY,
            description="Multiplies the attention that words or phrases of the prompt get (Prompt-to-Prompt "
            "reweighting, arXiv 2208.01626), for the whole image or inside one region. The encoded text stays as it "
            "is, unlike with (word:1.3).",
            search_aliases=["prompt to prompt", "p2p", "attention reweight", "emphasis", "word weight", "equalizer"],
            inputs=[
                schema.model_input(),
                schema.layout_input(),
                io.String.Input(
                    "weights",
                    multiline=True,
                    default="red: 2",
                    tooltip=f'One "phrase: factor" per line; the phrase must stand in the prompt. 1 = unchanged, '
                    f"0 = removed, below 0 = away from it; {LOWEST:g} to {HIGHEST:g}.",
                ),
                *schema.window_inputs(DEFAULT.window),
                io.Int.Input(
                    "region",
                    default=DEFAULT.region,
                    min=0,
                    max=MAX_REGIONS,
                    tooltip="Where the factors count: 0 = the whole image, 1 = inside the first region only, etc.",
                ),
                io.Boolean.Input(
                    "renormalize",
                    default=DEFAULT.renormalize,
                    tooltip="Off = as published: the word's share is multiplied, the others keep theirs. On = the "
                    "others give or take the difference (milder; factors from 0 up only).",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, weights: str | None = None) -> bool | str:
        if weights is None:  # wired: known only when it runs
            return True
        try:
            parse_weights(weights)
        except BoxwrightError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, layout, weights, start, end, region, renormalize) -> io.NodeOutput:
        method = Reweight(parse_weights(weights), StepWindow(start, end), region, renormalize)
        tell(cls, supports(model))
        return io.NodeOutput(install(model, layout, method.edits(layout), reporter_of(cls)))


NODES = [BoxwrightReweight]
