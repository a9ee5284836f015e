"""CLIP pairs of the host as losses on pictures: a CLIP_VISION, and the text projection that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.types import BoxwrightError
from ..samplers.clip_loss import Crops, DirectionLoss, FeatureLoss
from .guidance.differentiable import differentiable

SAME = 1e-6  # length of a direction between two texts of length 1 that say the same


class VisionEncoder:
    """A CLIP_VISION as a differentiable function of pictures [n, 3, S, S], RGB in 0..1, to features [n, D]."""

    def __init__(self, vision: Any) -> None:
        if getattr(vision, "model_type", None) != "clip_vision_model":
            raise BoxwrightError(
                f"This CLIP_VISION is a {getattr(vision, 'model_type', type(vision).__name__)}, which has no place for "
                "texts beside its pictures. Load a CLIP (CLIP-ViT-L, -H, -bigG)."
            )
        self.vision = vision

    def __call__(self, pictures: Tensor) -> Tensor:
        vision = self.vision
        mean, deviation = (pictures.new_tensor(v)[:, None, None] for v in (vision.image_mean, vision.image_std))
        pixels = ((pictures - mean) / deviation).to(vision.load_device)
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return vision.model(pixel_values=pixels)[2]
        with differentiable(vision.model, adds_in_place=True):
            return vision.model(pixel_values=pixels)[2]


def text_loss(vision: Any, clip: Any, text: str, crops: Crops) -> FeatureLoss:
    """How far pictures are from a text. Raises BoxwrightError for a CLIP that does not belong to the CLIP_VISION."""
    encode = VisionEncoder(vision)
    return FeatureLoss(encode, vision.image_size, _text(vision, clip, text), crops, (vision.patcher,))


def picture_loss(vision: Any, picture: Tensor, crops: Crops) -> FeatureLoss:
    """How far pictures are from another, [1, 3, H, W] in 0..1."""
    encode = VisionEncoder(vision)
    return FeatureLoss(encode, vision.image_size, _picture(vision, picture, crops), crops, (vision.patcher,))


def direction_loss(vision: Any, clip: Any, source: str, target: str, picture: Tensor, crops: Crops) -> DirectionLoss:
    """How far what changed since `picture` is from the way between two texts. Raises BoxwrightError for equal ones."""
    encode = VisionEncoder(vision)
    way = _text(vision, clip, target) - _text(vision, clip, source)
    if float(way.norm()) <= SAME:
        raise BoxwrightError(
            f'Both texts mean the same to CLIP ("{source[:60]}" and "{target[:60]}"), so that there is no direction. '
            "Write what shall change."
        )
    return DirectionLoss(encode, vision.image_size, way, crops, (vision.patcher,), source=picture.float().cpu())


def _picture(vision: Any, picture: Tensor, crops: Crops) -> Tensor:
    """Features of a picture [1, 3, H, W], the mean over its crops, [1, D] on the CPU."""
    comfy.model_management.load_model_gpu(vision.patcher)
    with torch.no_grad():
        seen = crops.of(picture.float(), vision.image_size)
        return normalize(VisionEncoder(vision)(seen).float(), dim=-1).mean(dim=0, keepdim=True).cpu()


def _text(vision: Any, clip: Any, text: str) -> Tensor:
    """Features of a text, of length 1, [1, D] on the CPU, from the encoder of the CLIP that fits the CLIP_VISION."""
    if not text.strip():
        raise BoxwrightError("The text for CLIP is empty. Write what the picture shall show.")
    width, found = _width(vision), dict(_text_encoders(clip))
    fitting = {name: encoder for name, encoder in found.items() if _projection(encoder).shape[0] == width}
    if not fitting:
        widths = ", ".join(f"{name}: {_projection(encoder).shape[0]}" for name, encoder in found.items()) or "none"
        raise BoxwrightError(
            f"This CLIP_VISION has features of {width} numbers, and no text encoder of this CLIP has ({widths}). "
            "Load the pair: CLIP-L for clip_vision_l (768), CLIP-bigG (of SDXL) for clip_vision_g (1280), "
            "CLIP-H (of SD 2) for clip_vision_h (1024)."
        )
    name, encoder = next(iter(fitting.items()))
    _check_projection(name, _projection(encoder))
    tokens = clip.tokenize(text)[name.removeprefix("clip_")]
    if len(tokens) > 1:
        raise BoxwrightError(
            f'The text for CLIP has more than the 75 tokens that it compares ("{text[:60]}..."). Shorten it.'
        )
    clip.load_model()
    stage = clip.cond_stage_model
    stage.reset_clip_options()
    stage.set_clip_options({"execution_device": clip.patcher.load_device, "projected_pooled": False})
    try:
        with torch.no_grad():
            pooled = encoder.encode_token_weights(tokens)[1].to(clip.patcher.load_device)
            return normalize(encoder.transformer.text_projection(pooled).float(), dim=-1).cpu()
    finally:
        stage.reset_clip_options()


def _text_encoders(clip: Any) -> Iterator[tuple[str, Any]]:
    """The CLIP text models of a CLIP by name ("clip_l"), which may hold others (T5) too."""
    for name, module in clip.cond_stage_model.named_children():
        if isinstance(getattr(module, "transformer", None), comfy.clip_model.CLIPTextModel):
            yield name, module


def _projection(encoder: Any) -> Tensor:
    return encoder.transformer.text_projection.weight


def _width(vision: Any) -> int:
    return int(vision.model.visual_projection.weight.shape[0])


def _check_projection(name: str, weight: Tensor) -> None:
    """Checkpoints of SD 1.x come without it: the host leaves whatever was in memory, or the identity."""
    weight = weight.float()
    identity = torch.eye(weight.shape[0], device=weight.device)
    if not bool(weight.isfinite().all()) or not bool(weight.any()) or torch.equal(weight, identity):
        raise BoxwrightError(
            f"The text encoder {name} of this CLIP came without its text projection (checkpoints of SD 1.x leave it "
            "out), so that its texts cannot be compared with pictures. Load it from a file of its own with Load CLIP "
            "(clip_l.safetensors)."
        )
