"""BoxwrightHSpace: moves pictures from one prompt towards another in the UNet's bottleneck."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.types import StepWindow
from ..attention_patches.host.samplers.h_space import edit_h_space
from ..attention_patches.samplers.h_space import STRONGEST, HSpace
from .parts import schema
from .parts.progress import reporter_of

DEFAULT = HSpace()


class BoxwrightHSpace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightHSpace",
            display_name="H-Space Edit",
            category=schema.CATEGORY,
            description="Moves pictures from what one prompt says towards what another says, while they are drawn. "
            "For models with a UNet: the difference of both prompts is added in its bottleneck (Asyrp, arXiv "
            "2210.10960, without training).",
            search_aliases=["h-space", "asyrp", "semantic latent", "bottleneck edit", "attribute slider"],
            inputs=[
                schema.model_input(),
                io.Conditioning.Input("source", tooltip="Where the change starts, say: a face."),
                io.Conditioning.Input("target", tooltip="Where it goes, say: a smiling face."),
                io.Float.Input(
                    "strength",
                    default=DEFAULT.strength,
                    min=-STRONGEST,
                    max=STRONGEST,
                    step=0.05,
                    tooltip="How far: 0 = off, 1 = the whole difference (in each of 20 steps; less in each of more), "
                    "higher = beyond it, below 0 = the other way.",
                ),
                *schema.window_inputs(DEFAULT.window),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, source, target, strength, start, end) -> io.NodeOutput:
        settings = HSpace(strength, StepWindow(start, end))
        return io.NodeOutput(edit_h_space(model, source, target, settings, reporter_of(cls)))


NODES = [BoxwrightHSpace]
