"""BoxwrightClipLoss: how far a picture is from a text, a picture or a change, as CLIP sees it."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention_patches.core.types import BoxwrightError
from ..attention_patches.host.clip_losses import direction_loss, picture_loss, text_loss
from ..attention_patches.samplers.clip_loss import MAX_CROPS, Crops
from .parts import losses, schema


class BoxwrightClipLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightClipLoss",
            display_name="CLIP Loss",
            category=schema.CATEGORY,
            description="For Loss Guidance: draws towards a text, another picture, or the change from one text to "
            "another, as CLIP sees it.",
            search_aliases=["clip guidance", "semantic diffusion guidance", "diffusionclip", "directional clip"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="A CLIP of pictures: CLIP-ViT-L, -H or -bigG."),
                io.Combo.Input(
                    "mode",
                    options=["text", "image", "direction"],
                    default="text",
                    tooltip="text = shows what the text says. image = shows what the image shows. direction = changes "
                    "the image in the way from source_text to text.",
                ),
                io.String.Input("text", default="", multiline=True, tooltip="What it shall show, at most 75 tokens."),
                io.String.Input(
                    "source_text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Of the mode direction: what the image shows.",
                ),
                io.Int.Input(
                    "crops",
                    default=Crops.count,
                    min=1,
                    max=MAX_CROPS,
                    tooltip="How many parts of the picture CLIP looks at: 1 = only the whole, fast, and easily fooled "
                    "by a pattern; 8 = steady; each costs a pass of CLIP and back.",
                ),
                schema.seed_input("Decides where the parts lie. They are the same in every step."),
                *losses.sum_inputs(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that belongs to clip_vision, with its text projection: CLIP-L for ViT-L, "
                    "that of SDXL for ViT-bigG. Of the modes text and direction.",
                ),
                io.Image.Input("image", optional=True, tooltip="Of the modes image and direction: one picture."),
            ],
            outputs=[losses.loss_output()],
        )

    @classmethod
    def execute(
        cls, clip_vision, mode, text, crops, seed, weight, source_text="", more=None, clip=None, image=None
    ) -> io.NodeOutput:
        if mode != "image" and clip is None:
            raise BoxwrightError(f'The mode "{mode}" compares with a text: wire the clip that belongs to clip_vision.')
        if mode != "text" and (image is None or image.shape[0] != 1):
            count = 0 if image is None else image.shape[0]
            raise BoxwrightError(f'The mode "{mode}" compares with one image; there are {count}. Wire one.')
        where = Crops(crops, seed)
        picture = None if image is None else image.movedim(-1, 1)
        if mode == "text":
            loss = text_loss(clip_vision, clip, text, where)
        elif mode == "image":
            loss = picture_loss(clip_vision, picture, where)
        else:
            loss = direction_loss(clip_vision, clip, source_text, text, picture, where)
        return io.NodeOutput(losses.summed(loss, weight, more))


NODES = [BoxwrightClipLoss]
