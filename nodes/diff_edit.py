"""BoxwrightDiffEdit and BoxwrightDiffEditSampler: change one thing in a picture, keep the rest."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.host.samplers.diff_edit import diff_edit_sampler, edit
from ..attention_patches.host.samplers.diff_mask import measure
from ..attention_patches.host.samplers.inversion import invert_latent
from ..attention_patches.host.samplers.loops import SCHEDULERS, picture_latent, schedule
from ..attention_patches.samplers.diff_mask import DiffMask
from .parts import editing, editing_inputs, schema


class BoxwrightDiffEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightDiffEditSampler",
            display_name="DiffEdit Sampler",
            category=schema.CATEGORY,
            description="A sampler that starts from an inverted picture, redraws inside the mask and follows the "
            "inverted path outside (DiffEdit, arXiv 2210.11427). For Sampler Custom, with the target prompt.",
            search_aliases=["diffedit", "inversion sampler", "masked edit", "background preservation"],
            inputs=[
                editing_inputs.Trajectory.Input("trajectory", tooltip="From Invert, with the sigmas of this sampler."),
                io.Mask.Input("mask", tooltip="White = redrawn, black = kept exactly, grey = mixed. Any size."),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For Sampler Custom (or Advanced) on the inverted latent, with the same sigmas. "
                    "It makes no use of noise."
                )
            ],
        )

    @classmethod
    def execute(cls, trajectory, mask) -> io.NodeOutput:
        return io.NodeOutput(diff_edit_sampler(trajectory, mask))


class BoxwrightDiffEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightDiffEdit",
            display_name="DiffEdit",
            category=schema.CATEGORY,
            description="Edits a picture by two prompts: finds where they differ, inverts the picture, and redraws "
            "that part with the target prompt (DiffEdit, arXiv 2210.11427). Difference Mask, Invert and DiffEdit "
            "Sampler in one.",
            search_aliases=["diffedit", "edit image by prompt", "automatic inpainting", "replace object"],
            inputs=[
                *editing_inputs.picture_inputs(),
                io.Conditioning.Input(
                    "negative", tooltip="Negative prompt of the edit, and what the picture is inverted with by default."
                ),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=2,
                    max=1000,
                    tooltip="Steps from the picture up to the noise at strength, and as many back. 10 = a sketch, 50 "
                    "= as published.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of the edit: 1 = the target prompt alone, higher = follows it more.",
                ),
                editing_inputs.scheduler_input(SCHEDULERS),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise the picture is taken into: 0.05 = hardly changed, 0.5 = colours and "
                    "textures, 0.6 to 0.8 = shapes, as published, 1 = nothing of the object is left.",
                ),
                io.Combo.Input(
                    "invert_with",
                    options=["negative", "source"],
                    default="negative",
                    tooltip='The prompt of the inversion. "negative" = the negative prompt, as published. "source" = '
                    "what the picture shows: closer to the old object.",
                ),
                editing_inputs.refinements_input(),
                *editing_inputs.draw_inputs(),
                editing_inputs.heat_threshold_input(),
                editing_inputs.dilate_input(editing_inputs.DILATE),
                schema.seed_input("Of the mask's noise draws. Nothing else is random."),
                *editing_inputs.paste_inputs(),
                editing_inputs.mask_input("Your own mask instead of the difference mask; white = redrawn. Any size."),
            ],
            outputs=editing_inputs.edited_outputs("Where it was redrawn."),
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        image,
        source,
        target,
        negative,
        steps,
        cfg,
        scheduler,
        strength,
        invert_with,
        refinements,
        draws,
        noise_level,
        threshold,
        dilate,
        seed,
        paste,
        feather,
        mask=None,
    ) -> io.NodeOutput:
        if mask is None:
            editing.check_threshold(threshold)
        samples = picture_latent(model, {"samples": editing.encoded(vae, image)})
        sigmas = schedule(model, scheduler, steps, strength)
        cell = editing.cell_of(model)
        spent = []
        if mask is None:
            settings = DiffMask(draws=draws, noise_level=noise_level, threshold=threshold, dilate=dilate)
            found = measure(model, samples, source, target, settings, seed)
            spent.append(("mask", found.evaluations))
            area = editing.in_pixels(found.mask, cell)
        else:
            area = editing.covered_cells(mask, image, samples, cell)
        prompt = negative if invert_with == "negative" else source
        inverted = invert_latent(model, samples, prompt, sigmas, refinements=refinements)
        spent.append(("inversion", inverted.evaluations))
        latent, evaluations = edit(model, samples, inverted.trajectory, area, target, negative, cfg, sigmas)
        spent.append(("edit", evaluations))
        fewer = editing.fewer_steps(len(sigmas) - 1, steps)
        return editing.edited_output(vae, latent, image, area, spent, feather if paste else None, fewer)


NODES = [BoxwrightDiffEditSampler, BoxwrightDiffEdit]
