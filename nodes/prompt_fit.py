"""BoxwrightPromptFit: the prompt that the model would have drawn a picture from."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.core.types import StepWindow
from ..attention_patches.host.prompt_fit import fit_prompt
from ..attention_patches.host.samplers.loops import picture_latent
from ..attention_patches.samplers.prompt_fit import MAX_STEPS, PromptFit
from .parts import editing, editing_inputs, schema
from .parts.loss_plot import plotted
from .parts.progress import reporter_of


class BoxwrightPromptFit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightPromptFit",
            display_name="Prompt Fit",
            category=schema.CATEGORY,
            description="Edits a picture by its prompt: changes an encoded text until the model draws your picture "
            "from it, then goes part of the way back to the text (Imagic, arXiv 2210.09276, without its training of "
            "the model).",
            search_aliases=["imagic", "textual inversion", "embedding optimization", "invert prompt", "learn prompt"],
            inputs=[
                io.Model.Input("model", tooltip="A model that Box Constraint takes. Its weights stay as they are."),
                io.Conditioning.Input("target", tooltip="What the picture shall show after the edit, encoded."),
                io.Int.Input(
                    "steps",
                    default=PromptFit.steps,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Gradient steps, about three model calls each: 100 = as published, more = closer to the "
                    "picture, but the text can change it less.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=PromptFit.learning_rate,
                    min=1e-6,
                    max=1.0,
                    step=1e-4,
                    tooltip="Length of a step: 0.001 as published, 0.01 = fast. If the loss jumps, lower it.",
                ),
                *schema.window_inputs(PromptFit.window),
                schema.seed_input("Of the noise. The same seed, the same prompt."),
                io.Float.Input(
                    "towards_text",
                    default=PromptFit.towards,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How far back to the text: 0 = the picture, 0.6 to 0.8 = the edit, as published, 1 = the "
                    "text alone. Output fitted and Conditioning Average do the same without fitting again.",
                ),
                *editing_inputs.source_inputs(),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", tooltip="The fitted prompt, moved back by towards_text."),
                io.Conditioning.Output("fitted", tooltip="The fitted prompt itself."),
                io.Image.Output("plot", tooltip="The loss of every step, and its mean over 20."),
                io.String.Output("report", tooltip="How much closer the prompt has come."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, target, steps, learning_rate, start, end, seed, towards_text, latent=None, image=None, vae=None
    ) -> io.NodeOutput:
        settings = PromptFit(steps, learning_rate, StepWindow(start, end), towards_text)
        samples = picture_latent(model, editing.one_source(latent, image, vae))
        found = fit_prompt(model, samples, target, settings, seed, reporter_of(cls))
        report = f"Loss on the same noise: {found.before:.4f} before, {found.after:.4f} after {steps} steps."
        plot = plotted(found.losses)
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(report).as_dict()
        return io.NodeOutput(found.blended, found.conditioning, plot, report, ui=shown)


NODES = [BoxwrightPromptFit]
