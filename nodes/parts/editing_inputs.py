"""Inputs and outputs that the nodes for pictures share: same names, same ranges, same words."""

from __future__ import annotations

from comfy_api.latest import io

from ...attention_patches.core.masks import MAX_RADIUS
from ...attention_patches.samplers.diff_mask import MAX_DRAWS, DiffMask
from ...attention_patches.samplers.inversion import MAX_REFINEMENTS

Trajectory = io.Custom("BOXWRIGHT_TRAJECTORY")  # attention_patches.samplers.inversion.Trajectory
MASK = DiffMask()
REFINEMENTS = 1
DILATE = 1  # latent cells by which a mask that is looked for grows; room for another outline


def prompt_inputs() -> list[io.Input]:
    """`source` and `target`."""
    return [
        io.Conditioning.Input(
            "source", tooltip="What the picture shows, in the words of the target prompt wherever nothing changes."
        ),
        io.Conditioning.Input("target", tooltip="What it shall show: the source prompt with the edit written in."),
    ]


def picture_inputs() -> list[io.Input]:
    """`model`, `vae`, `image`, `source` and `target`."""
    return [
        io.Model.Input("model", tooltip="A plain text-to-image model. It stays as it is."),
        io.Vae.Input("vae", tooltip="The VAE of the model."),
        io.Image.Input("image", tooltip="The picture to edit, or several."),
        *prompt_inputs(),
    ]


def source_inputs() -> list[io.Input]:
    """`latent`, `image` and `vae`, which `one_source` reads."""
    return [
        io.Latent.Input("latent", optional=True, tooltip="The picture, encoded. Wire this or image and vae."),
        io.Image.Input("image", optional=True, tooltip="The picture. Needs vae."),
        io.Vae.Input("vae", optional=True, tooltip="Encodes image. Not needed with latent."),
    ]


def scheduler_input(schedulers: list[str]) -> io.Input:
    return io.Combo.Input(
        "scheduler", options=schedulers, default="normal", tooltip="The noise levels to step through."
    )


def mask_input(tooltip: str) -> io.Input:
    return io.Mask.Input("mask", optional=True, tooltip=tooltip)


def draw_inputs() -> list[io.Input]:
    """`draws` and `noise_level`."""
    return [
        io.Int.Input(
            "draws",
            default=MASK.draws,
            min=1,
            max=MAX_DRAWS,
            tooltip="How many noise draws are averaged; each costs one evaluation for each prompt. 1 = fast and "
            "grainy, 10 = as published, more = smoother.",
        ),
        io.Float.Input(
            "noise_level",
            default=MASK.noise_level,
            min=0.01,
            max=0.99,
            step=0.01,
            tooltip="How much noise covers the picture while both prompts look at it: near 0 = they differ a little, "
            "exactly where the object is; near 1 = they differ everywhere it could be. 0.5 as published.",
        ),
    ]


def heat_threshold_input() -> io.Input:
    return io.Float.Input(
        "threshold",
        default=MASK.threshold,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Heat above it is mask: 0 = nearly everything, 1 = nothing. 0.5 as published.",
    )


def dilate_input(default: int) -> io.Input:
    return io.Int.Input(
        "dilate",
        default=default,
        min=0,
        max=MAX_RADIUS,
        tooltip="Grows the mask by so many latent cells (8 pixels each for most models): 0 = not at all. An object of "
        "another shape needs room.",
    )


def refinements_input() -> io.Input:
    return io.Int.Input(
        "refinements",
        default=REFINEMENTS,
        min=0,
        max=MAX_REFINEMENTS,
        tooltip="Further evaluations at each step of the inversion, which make it exact: 0 = plain DDIM inversion, "
        "1 = errors several times smaller for twice the cost, more than 3 = hardly better.",
    )


def paste_inputs() -> list[io.Input]:
    """`paste` and `feather`."""
    return [
        io.Boolean.Input(
            "paste",
            default=True,
            tooltip="On = outside the mask the picture's own pixels are put back. Off = they went through the VAE.",
        ),
        io.Int.Input(
            "feather",
            default=4,
            min=0,
            max=64,
            tooltip="Pixels of soft transition when pasting, inside the mask: 0 = a hard edge.",
        ),
    ]


def edited_outputs(mask: str) -> list[io.Output]:
    """What `edited_output` gives; `mask` is the tooltip of the mask."""
    return [
        io.Image.Output("image", tooltip="The edited picture."),
        io.Mask.Output("mask", tooltip=mask),
        io.Latent.Output("latent", tooltip="The edited latent, nothing pasted."),
        io.String.Output("report", tooltip="What the mask covers and what the edit cost."),
    ]
