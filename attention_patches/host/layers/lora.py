"""A LoRA file as changes of a model's layers, by the host's own key mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
from torch import Tensor

from ...core.types import BoxwrightError
from .change import LayerChange, LayerShape, change_of
from .streams import check_known

ROOT = "diffusion_model."
OF_TEXT = ("lora_te", "text_encoder", "lora_prior_te")  # how the keys of a text encoder's part begin


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA for one model. Compared by identity: a file that is read once is one change."""

    name: str
    layers: Mapping[str, LayerChange]  # of the diffusion model, by the module's name in it
    has_text: bool  # whether the file has a part for text encoders, too


def read_file(path: str, name: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file. Raises BoxwrightError where it cannot be read."""
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # whatever its format's reader raises
        raise BoxwrightError(
            f'The LoRA "{name}" cannot be read ({error}). The file is damaged or no LoRA; fetch it again.'
        ) from error


def lora_for(model: Any, tensors: dict[str, Tensor], name: str) -> Lora:
    """The changes that a file has for the MODEL.

    Raises UnsupportedModelError for a model whose layers are not known, BoxwrightError where the file has none for it,
    and for changes that are not a sum with what a layer returns (OFT, norms, weights that are set).
    """
    check_known(model.model.diffusion_model)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys, log_missing=False)
    layers: dict[str, LayerChange] = {}
    for key, patch in patches.items():
        name_of, offset, function = _parts(key)
        module, attribute = name_of.rsplit(".", 1)
        where = f'The LoRA "{name}", layer {module.removeprefix(ROOT)}'
        shape = _shape(model, module)
        if shape is None or attribute not in ("weight", "bias"):
            raise BoxwrightError(
                f"{where} ({attribute}): it is neither a linear layer nor a convolution, so that it cannot change for "
                "a region alone. Load this LoRA for the whole picture (LoraLoader)."
            )
        if attribute == "bias" and comfy.utils.get_attr(model.model, module).bias is None:
            continue  # as the host leaves it out
        if attribute == "bias":
            change = LayerChange(bias=_bias(patch, shape, where))
        else:
            change = change_of(patch, offset, function, shape, where)
        own = module.removeprefix(ROOT)
        layers[own] = _joined(layers[own], change) if own in layers else change
    if not layers:
        raise BoxwrightError(
            f'The LoRA "{name}" has nothing for any layer of this model ({type(model.model).__name__}): it was made '
            "for another one. Choose a LoRA of the same base model."
        )
    return Lora(name, layers, any(key.startswith(OF_TEXT) for key in tensors))


def text_encoder_with(clip: Any, tensors: dict[str, Tensor], strength: float) -> Any | None:
    """A clone of the CLIP with the file's part for it, as the host's loader makes it; None where it has none."""
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys, log_missing=False)
    if not patches:
        return None
    patched = clip.clone()
    patched.add_patches(patches, strength)
    return patched


def _parts(key: Any) -> tuple[str, Any, Any]:
    """(name of the weight, the part of it, what moves its rows) of a key of the host's patches."""
    if isinstance(key, str):
        return key, None, None
    return key[0], key[1], key[2] if len(key) > 2 else None


def _shape(model: Any, name: str) -> LayerShape | None:
    if not name.startswith(ROOT):
        return None
    try:
        return LayerShape.of(comfy.utils.get_attr(model.model, name))
    except AttributeError:
        return None


def _bias(patch: Any, shape: LayerShape, where: str) -> Tensor:
    if not (isinstance(patch, tuple) and patch[0] == "diff" and patch[1][0].numel() == shape.weight[0]):
        raise BoxwrightError(f"{where}: its change of the bias is none that can be added. Choose another LoRA.")
    return patch[1][0].float().flatten()


def _joined(a: LayerChange, b: LayerChange) -> LayerChange:
    """Both changes of one layer (a weight's parts, a bias) as one."""
    bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
    lengths = b.lengths if a.lengths is None else a.lengths
    return replace(a, up=a.up + b.up, down=a.down + b.down, whole=a.whole + b.whole, bias=bias, lengths=lengths)
