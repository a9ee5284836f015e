"""BoxwrightFlowEdit and BoxwrightFlowEditSampler: edits by two prompts without inversion, for every kind of model."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..attention_patches.core.grids import coverage, feathered
from ..attention_patches.core.types import BoxwrightError, Region, feather_of
from ..attention_patches.host.samplers.diff_mask import measure
from ..attention_patches.host.samplers.flow_edit import (
    METHODS,
    FlowEditing,
    check_text,
    edit_by_flow,
    flow_edit_sampler,
)
from ..attention_patches.host.samplers.loops import SCHEDULERS, picture_latent, schedule
from ..attention_patches.samplers.diff_mask import DiffMask
from ..attention_patches.samplers.flow_edit import MAX_DRAWS
from ..attention_patches.samplers.noise import falling
from .parts import editing, editing_inputs, schema
from .parts.progress import progress_reporter

DEFAULT = FlowEditing()
SHOWN = {"draws": "averages"}  # settings that the nodes have by another name
TYPICAL = (15, 28, 50)  # steps to name where the schedule is not known


def method_inputs() -> list[io.Input]:
    """`method`, `source_cfg`, `averages` and `finish`."""
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=DEFAULT.method,
            tooltip='"FlowEdit" = moves the picture by what both prompts differ in; changes the most. "FlowAlign" = '
            'the same, held close to the picture. "Uni-Edit" = inverts the picture first, and needs no noise.',
        ),
        io.Float.Input(
            "source_cfg",
            default=DEFAULT.source_cfg,
            min=1.0,
            max=100.0,
            step=0.1,
            tooltip="FlowEdit's guidance of the source prompt: 1 = that prompt alone, one evaluation less; higher = "
            "moves further away from what the picture shows. Published: 3.5 on SD3, 1 on models with guidance built "
            "in.",
        ),
        io.Int.Input(
            "averages",
            default=DEFAULT.draws,
            min=1,
            max=MAX_DRAWS,
            tooltip="How many noise draws are averaged in each step of FlowEdit and FlowAlign: 1 = as published. More "
            "= the result depends less on the seed, at so many times the cost.",
        ),
        io.Float.Input(
            "finish",
            default=DEFAULT.finish,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="FlowEdit only: the share of its steps, at the end, that are ordinary sampling with the target "
            "prompt: 0 = none, as published for pictures; 0.2 = new texture; 1 = image to image.",
        ),
    ]


class BoxwrightFlowEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightFlowEditSampler",
            display_name="Flow Edit Sampler",
            category=schema.CATEGORY,
            description="A sampler that turns a picture from what the source prompt says into what the positive "
            "prompt says, inside a mask (FlowEdit, arXiv 2412.08629; FlowAlign, 2505.23145; Uni-Edit, 2504.13109). "
            "For Sampler Custom.",
            search_aliases=["flowedit", "flowalign", "uni-edit", "inversion-free editing", "rf edit", "masked edit"],
            inputs=[
                io.Conditioning.Input(
                    "source",
                    tooltip="What the picture shows, in the words of the positive prompt wherever nothing changes.",
                ),
                *method_inputs(),
                editing_inputs.mask_input(
                    "White = changed, black = kept exactly, grey = partly. Any size. Without one: the latent's noise "
                    "mask, or the whole picture."
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Only for the report: wire the schedule of the sampler to see what it will cost.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For Sampler Custom (or Advanced), with the target as positive prompt, the encoded picture "
                    "as latent, and a schedule that begins at the strength of the edit. Its seed draws the noise."
                ),
                io.String.Output("report", tooltip="How many evaluations of the model this will take."),
            ],
        )

    @classmethod
    def execute(cls, source, method, source_cfg, averages, finish, mask=None, sigmas=None) -> io.NodeOutput:
        settings = FlowEditing(method, source_cfg, averages, finish)
        steps = TYPICAL if sigmas is None else (len(falling(sigmas)) - 1,)
        counts = [
            f"{count} steps take {settings.evaluations(count, 2.0)} model evaluations for each picture "
            f"({settings.evaluations(count, 1.0)} with cfg 1)"
            for count in steps
        ]
        black = "" if mask is None else editing.hint_of_black(mask)
        report = f"{method}: {'; '.join(counts)}.{black}{unread(settings)}"
        return io.NodeOutput(flow_edit_sampler(source, settings, mask), report, ui=ui.PreviewText(report))


class BoxwrightFlowEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightFlowEdit",
            display_name="Flow Edit",
            category=schema.CATEGORY,
            description="Edits a picture by two prompts: finds where they differ, and moves that part from one prompt "
            "to the other. For flow models and all others (FlowEdit, arXiv 2412.08629; FlowAlign, 2505.23145; "
            "Uni-Edit, 2504.13109).",
            search_aliases=[
                "flowedit",
                "flowalign",
                "uni-edit",
                "edit image by prompt",
                "inversion-free editing",
                "flux edit",
                "replace object",
            ],
            inputs=[
                *editing_inputs.picture_inputs(),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Only the method FlowEdit uses it."),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Steps between the noise at strength and the picture: 10 = a sketch, 28 to 50 = as "
                    "published.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far the edit goes. FlowEdit: guidance of the target (1 = the prompt alone; published "
                    "13.5 on SD3). FlowAlign: guidance from the source prompt to the target (13.5). Uni-Edit: its "
                    "omega (5).",
                ),
                editing_inputs.scheduler_input(SCHEDULERS),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise the edit begins in, as a share of the schedule, for all methods alike: "
                    "0.05 = hardly changed, 0.6 = colours and textures, 0.8 = shapes, 1 = everything.",
                ),
                *method_inputs(),
                io.Combo.Input(
                    "find_mask",
                    options=["difference", "none"],
                    default="difference",
                    tooltip='Where it may change: "difference" = where the two prompts differ, as in DiffEdit, "none" '
                    "= everywhere. Not used where a mask or regions are wired.",
                ),
                *editing_inputs.draw_inputs(),
                editing_inputs.heat_threshold_input(),
                editing_inputs.dilate_input(editing_inputs.DILATE),
                schema.seed_input("Of the noise, in the mask and in the edit."),
                *editing_inputs.paste_inputs(),
                editing_inputs.mask_input("Where it may change: white. Any size. Replaces find_mask."),
                schema.Regions.Input(
                    "regions",
                    optional=True,
                    tooltip="Where it may change: inside these regions, from Box Editor or Regions. A region's "
                    "strength says how far (0 = not at all, 0.5 = half); its feather makes the edge soft. Replaces "
                    "find_mask. With a mask as well: only where both are.",
                ),
            ],
            outputs=editing_inputs.edited_outputs("Where it could change."),
            hidden=[io.Hidden.unique_id],
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
        method,
        source_cfg,
        averages,
        finish,
        find_mask,
        draws,
        noise_level,
        threshold,
        dilate,
        seed,
        paste,
        feather,
        mask=None,
        regions=None,
    ) -> io.NodeOutput:
        settings = FlowEditing(method, source_cfg, averages, finish)
        settings.at(cfg)
        for name, prompt in (("source", source), ("target", target)):
            check_text(prompt, name)
        samples = picture_latent(model, {"samples": editing.encoded(vae, image)})
        sigmas = schedule(model, scheduler, steps, strength)
        cell = editing.cell_of(model)
        area = wanted_area(mask, regions, image, samples, cell)
        find = area is None and find_mask == "difference"
        if find:
            editing.check_threshold(threshold)
        planned = len(samples) * (settings.evaluations(len(sigmas) - 1, cfg) + 2 * draws * find)
        tell = progress_reporter(cls.hidden.unique_id if cls.hidden else None)
        if tell is not None:
            tell(f"{editing.cost(planned, len(samples))} to do")
        spent = []
        if find:
            found_by = DiffMask(draws=draws, noise_level=noise_level, threshold=threshold, dilate=dilate)
            found = measure(model, samples, source, target, found_by, seed)
            spent.append(("mask", found.evaluations))
            area = editing.in_pixels(found.mask, cell)
        latent, evaluations = edit_by_flow(model, samples, source, target, negative, settings, cfg, sigmas, area, seed)
        spent.append(("edit", evaluations))
        more = editing.fewer_steps(len(sigmas) - 1, steps) + unread(settings)
        return editing.edited_output(vae, latent, image, area, spent, feather if paste else None, more)


def unread(settings: FlowEditing) -> str:
    """A sentence, with a space before it, that names what was set and the method makes no use of; "" for nothing."""
    found = [f"{SHOWN.get(name, name)} {getattr(settings, name):g}" for name in settings.unread()]
    return f" {settings.method} makes no use of {', '.join(found)}." if found else ""


def wanted_area(mask, regions, image, samples, cell) -> torch.Tensor | None:
    """The MASK of what is wired: of a mask, of regions, of both where both are; None without either.

    Raises BoxwrightError where that is nothing.
    """
    area = None if mask is None else editing.covered_cells(mask, image, samples, cell)
    if regions is None:
        return area
    if not regions:
        raise BoxwrightError("There are no regions to change. Draw a box, or unwire regions.")
    boxes = torch.stack([_share(region, tuple(image.shape[1:3])) for region in regions]).amax(0)
    if float(boxes.max()) <= 0.0:
        raise BoxwrightError(
            "There is nothing to change: every region has strength 0, or no pixel in it. Give one a strength above 0, "
            "or unwire regions."
        )
    boxes = editing.covered_cells(boxes, image, samples, cell)
    if area is None:
        return boxes
    both = editing.fitted(area, boxes[None, ..., None].expand(len(samples), -1, -1, 1)) * boxes
    if float(both.max()) <= 0.0:
        raise BoxwrightError(
            "mask and regions have no part of the picture in common, and the edit would change only where both are. "
            "Move a box or the mask, or unwire one of them."
        )
    return both


def _share(region: Region, frame: tuple[int, int]) -> torch.Tensor:
    """How far a region lets each pixel change: 1 inside, falling over its feather, and all of that by its strength."""
    return min(region.strength, 1.0) * feathered(coverage(region.area, frame), feather_of(region, 0.0))


NODES = [BoxwrightFlowEditSampler, BoxwrightFlowEdit]
