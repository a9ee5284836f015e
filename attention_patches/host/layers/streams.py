"""What the tokens of a layer are, by its name: the image, the text, both, or nothing that has a place."""

from __future__ import annotations

import re
from typing import Any, Literal

from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

from ...core.types import UnsupportedModelError

# image: tokens or pixels of the image (and of reference images behind it); text: the prompt's; joint: first the text,
# then the image; whole: one vector for the picture (time, pooled text, modulation); spread: such a vector that a UNet
# adds to every pixel, so that each can have its own; keys: a cross-attention's projections of the text, which every
# place of the image reads for itself.
Stream = Literal["image", "text", "joint", "whole", "spread", "keys"]

_KEYS = re.compile(r"\.attn2\.to_[kv]$")
_SPREAD = re.compile(r"\.emb_layers\.")
_UNET_WHOLE = re.compile(r"^(time_embed|label_emb)\.")
# Networks whose layers these names are; of others nothing is known.
KNOWN = (UNetModel, Flux, Chroma, QwenImageTransformer2DModel, NextDiT, OpenAISignatureMMDITWrapper)
_WHOLE = re.compile(
    r"(^|\.)(time_in|vector_in|guidance_in|t_embedder|y_embedder|time_text_embed|distilled_guidance_layer|"
    r"clip_text_pooled_proj|img_mod|txt_mod|[a-zA-Z_]*modulation[a-z_]*|norm_out)\."
)
_TEXT = re.compile(
    r"^(txt_in|context_embedder|cap_embedder|context_refiner)\b|\.(context_block|txt_attn|txt_mlp)\.|"
    r"\.attn\.(add_[qkv]_proj|to_add_out)$"
)
_JOINT = re.compile(r"^(single_blocks|layers)\.")


Streams = tuple[tuple[re.Pattern[str], Stream], ...]


def check_known(network: Any) -> None:
    """Raises UnsupportedModelError for a network whose layers have no place that we know."""
    if not isinstance(network, UNetModel) and type(network) not in KNOWN:
        raise UnsupportedModelError(
            f"Boxwright does not know which layers of this model ({type(network).__name__}) are of the image and which "
            "of the text, so that a LoRA cannot count for a region alone. It does for Stable Diffusion UNets, Flux.1, "
            "Flux.2, Chroma, Qwen-Image, Z-Image, Lumina 2 and Stable Diffusion 3. Load the LoRA for the whole picture "
            "here, or use Region Conditioning with a hook."
        )


def stream_of(name: str, network: Any) -> Stream:
    """Of a layer by its name in the diffusion model."""
    if isinstance(network, UNetModel):
        of_unet: Streams = ((_KEYS, "keys"), (_SPREAD, "spread"), (_UNET_WHOLE, "whole"))
        return next((stream for pattern, stream in of_unet if pattern.search(name)), "image")
    if isinstance(network, NextDiT) and name == "final_layer.linear":
        return "joint"  # the text is cut off behind it
    of_others: Streams = ((_WHOLE, "whole"), (_TEXT, "text"), (_JOINT, "joint"))
    for pattern, stream in of_others:
        if pattern.search(name):
            return stream
    return "image"
