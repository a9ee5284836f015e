"""BoxwrightInvert: the noise from which the model draws a given picture; and Prompt to Prompt's sampler for it."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io, ui

from ..attention_patches.host.samplers.inversion import InvertedNoise, direct_inversion_sampler, invert_latent
from ..attention_patches.host.samplers.loops import picture_latent
from ..attention_patches.samplers.inversion import Deviation
from .parts import editing, editing_inputs, schema


class BoxwrightInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightInvert",
            display_name="Invert",
            category=schema.CATEGORY,
            description="Finds the noise that draws your picture again: walks the picture up the noise levels without "
            "randomness (DDIM inversion; Euler for flow models). DiffEdit Sampler takes the background from this path.",
            search_aliases=["ddim inversion", "unsampler", "reverse sampling", "noise inversion", "real image editing"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is to make the edit. It stays as it is."),
                io.Conditioning.Input(
                    "positive", tooltip="What the picture shows, or an empty prompt (as DiffEdit does)."
                ),
                io.Latent.Input("latent", tooltip="The picture, encoded by the VAE of the model."),
                io.Sigmas.Input(
                    "sigmas", tooltip="The schedule that the edit will run on, from a scheduler node, ending in 0."
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance while inverting: 1 = none; then the picture comes back best. Higher needs "
                    "negative, and comes back worse.",
                ),
                editing_inputs.refinements_input(),
                io.Combo.Input(
                    "storage",
                    options=["memory", "disk"],
                    default="memory",
                    tooltip='Where the path is kept: "memory" = up to 8 GiB of RAM, "disk" = a temporary file, which '
                    "goes when the path is no longer needed.",
                ),
                io.Boolean.Input(
                    "check",
                    default=True,
                    tooltip="On = draws the picture again from the noise and reports the error (one more evaluation "
                    "for each step). Off = does not.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt, for cfg above 1."),
            ],
            outputs=[
                editing_inputs.Trajectory.Output(
                    "trajectory", tooltip="The picture at every noise level, for DiffEdit Sampler."
                ),
                io.Noise.Output(
                    "noise",
                    tooltip="For Sampler Custom (Advanced) on the same latent and sigmas: it starts from the inverted "
                    "picture.",
                ),
                io.String.Output("report", tooltip="The error, where it was checked, and the cost."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, sigmas, cfg, refinements, storage, check, negative=None) -> io.NodeOutput:
        samples = picture_latent(model, latent)
        found = invert_latent(
            model,
            samples,
            positive,
            sigmas,
            negative=negative,
            cfg=cfg,
            refinements=refinements,
            storage=storage,
            check=check,
        )
        report = f"{editing.cost(found.evaluations, len(samples)).capitalize()}"
        if found.errors is not None:
            report += f", {found.check_evaluations} more to check. {deviation_report(found.errors)}"
        noise = InvertedNoise(model, found.trajectory)
        return io.NodeOutput(found.trajectory, noise, report + ".", ui=ui.PreviewText(report + "."))


def deviation_report(errors: Sequence[Deviation]) -> str:
    """How far the latents are off when drawn again, in a sentence without its full stop; at most eight are named."""
    named = ", ".join(map(str, errors[:8])) + ", ..." * (len(errors) > 8)
    units = ["RMS"]
    if not all(error.flat for error in errors):
        units.append("% = of the latent's own standard deviation")
    if any(error.flat for error in errors):
        units.append("flat = its values are all alike, so that this is the error itself, not a share")
    return f"Drawn again, the latent is off by {named} ({'; '.join(units)})"


class BoxwrightDirectInversionSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightDirectInversionSampler",
            display_name="Direct Inversion Sampler",
            category=schema.CATEGORY,
            description="A sampler for Prompt to Prompt on a picture you have. The picture itself is drawn again "
            "exactly, because it is put back on the inverted path after every step (Direct Inversion, arXiv "
            "2310.01506). The edits beside it start from the same noise.",
            search_aliases=["direct inversion", "pnp inversion", "null-text", "prompt to prompt real image"],
            inputs=[
                editing_inputs.Trajectory.Input(
                    "trajectory", tooltip="From Invert, with the source prompt and the sigmas of this sampler."
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For Sampler Custom, with the model, conditioning and latent of Prompt to Prompt. "
                    "It makes no use of noise."
                )
            ],
        )

    @classmethod
    def execute(cls, trajectory) -> io.NodeOutput:
        return io.NodeOutput(direct_inversion_sampler(trajectory))


NODES = [BoxwrightInvert, BoxwrightDirectInversionSampler]
