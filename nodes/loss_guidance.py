"""BoxwrightLossGuidance: draws towards whatever a loss on the picture asks for, in a part of it."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..attention_patches.core.pictures import MOST, STRONGEST, WHOLE, Part, PictureGuide, Through
from ..attention_patches.core.types import BoxwrightError, StepWindow, window_of
from ..attention_patches.host.loss_guidance import guide_by_pictures
from .parts import editing, losses, schema
from .parts.progress import reporter_of


class BoxwrightLossGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightLossGuidance",
            display_name="Loss Guidance",
            category=schema.CATEGORY,
            description="Draws towards a colour, a text or another picture, in the regions, the mask or the whole "
            "picture. Color Loss or CLIP Loss says towards what; at each step the predicted picture moves a little "
            "that way. For any model and any sampler.",
            search_aliases=[
                "classifier guidance",
                "universal guidance",
                "clip guidance",
                "color guidance",
                "freedom",
                "mpgd",
                "semantic diffusion guidance",
                "gradient guidance",
            ],
            inputs=[
                schema.model_input(),
                losses.Loss.Input("loss", tooltip="From Color Loss, CLIP Loss, or a node of another pack."),
                io.Float.Input(
                    "strength",
                    default=PictureGuide.strength,
                    min=0.0,
                    max=STRONGEST,
                    step=0.1,
                    tooltip="How far each step follows the loss: 0 = off, 1 = gently. How much is right depends on "
                    "the picture: try several.",
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(get_args(Through)),
                    default=PictureGuide.through,
                    tooltip="direct = moves the predicted picture itself: hardly any cost, for every model. through "
                    "model = asks the model what noise leads there: closer to what it can draw, at about two more "
                    "model calls per step and more memory; for models that Box Constraint takes.",
                ),
                *schema.window_inputs(PictureGuide.window),
                io.Float.Input(
                    "max_change",
                    default=PictureGuide.max_change,
                    min=0.0,
                    max=MOST,
                    step=0.05,
                    tooltip="How far one step may move a value of the predicted latent at most; these values spread "
                    "by about 1. 0.1 = careful, 1 = strong, 0 = 4.",
                ),
                schema.Regions.Input(
                    "regions",
                    optional=True,
                    tooltip="Where it acts, from Regions or Box Editor: each region has a loss of its own, with its "
                    "strength and its start and end. Without regions and mask: the whole picture.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    optional=True,
                    tooltip="Only the regions with exactly this phrase; empty = all of them.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where it acts: white, one mask of any size."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the model: the loss sees real pictures, at a cost. Without it: a pixel for "
                    "each latent cell, with the colours of ComfyUI's previews. Enough for colours.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, loss, strength, gradient, start, end, max_change, regions=None, phrase="", mask=None, vae=None
    ) -> io.NodeOutput:
        if not callable(loss):
            raise BoxwrightError(f"loss is a {type(loss).__name__}, not a loss. Wire Color Loss or CLIP Loss.")
        report = reporter_of(cls)
        parts = parts_of(regions, phrase, mask)
        guide = PictureGuide(loss, parts, strength, StepWindow(start, end), max_change, gradient, report)
        return io.NodeOutput(guide_by_pictures(model, guide, vae))


def parts_of(regions, phrase, mask) -> tuple[Part, ...]:
    """Where the guide acts. Raises BoxwrightError for both kinds of places at once, and for places that are none."""
    if regions is not None and mask is not None:
        raise BoxwrightError("Wire regions or mask, not both: a painted region is a mask, too.")
    if mask is not None:
        return (Part(editing.one_mask(mask)),)
    if regions is None:
        return WHOLE
    if not regions:
        raise BoxwrightError("There are no regions to guide. Draw a box, or unwire regions.")
    chosen = [region for region in regions if not phrase.strip() or region.phrase == phrase.strip()]
    if not chosen:
        known = ", ".join(f'"{region.phrase}"' for region in regions[:8])
        raise BoxwrightError(f'No region has the phrase "{phrase.strip()}"; there are: {known}. Write one of these.')
    acting = [region for region in chosen if region.strength > 0]
    if not acting:
        raise BoxwrightError(
            f"{'Every region' if len(chosen) == len(regions) else 'Every region with this phrase'} has strength 0, and "
            "is not guided. Raise the strength of one, or unwire regions."
        )
    return tuple(Part(region.area, region.strength, window_of(region, StepWindow())) for region in acting)


NODES = [BoxwrightLossGuidance]
