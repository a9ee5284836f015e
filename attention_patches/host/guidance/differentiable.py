"""Autograd through a model that the host loaded for inference.

The host runs everything under `torch.inference_mode()`: weights are inference tensors, which autograd refuses to save,
and may be fetched for each call (cast, patched by a LoRA, offloaded), so that a saved reference would be stale. Here a
linear or convolution layer saves nothing and fetches its weight a second time in the backward pass. The host's own
switch for training chooses kernels that have a backward (rotary embeddings, fused norms). Newer hosts may take back
what a block allocates when it ends; what the way back needs lives longer, so that they are told not to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import isfunction
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor

from ...core.types import UnsupportedModelError
from ..attention.outside_blocks import blocks_uncompiled

_ABSENT = object()


@contextmanager
def differentiable(module: torch.nn.Module, adds_in_place: bool = False, patcher: Any | None = None) -> Iterator[None]:
    """Inside, with gradients on, the module can be run on a tensor that requires grad, and differentiated by it.

    Covers forward and backward. Weights get no gradient. The module is restored on the way out. `adds_in_place`: its
    blocks go on with `x += ...` behind every norm, not only behind those without weights (the host's CLIP models).
    `patcher`: the host's, where hooks of conditionings change the module's weights between two calls of it; the way
    back takes each call's own.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_replaced(comfy.model_management, "in_training", True))
        stack.enter_context(_plain_kernels())
        stack.enter_context(blocks_uncompiled())
        owned: set[int] = set()
        for layer in module.modules():
            if not hasattr(layer, "comfy_cast_weights"):
                continue
            owned.add(id(layer))
            if _is_plainly_linear(layer):
                stack.enter_context(_replaced(layer, "forward", _frozen(layer, layer.forward, patcher)))
            elif isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                stack.enter_context(_replaced(layer, "forward", _normalising(layer, layer.forward, adds_in_place)))
            else:
                for name in ("weight_function", "bias_function"):
                    functions = [*getattr(layer, name, ()), torch.clone]
                    stack.enter_context(_replaced(layer, name, functions))
        for layer in module.modules():
            if id(layer) not in owned:
                stack.enter_context(_normal_tensors(layer))
        yield


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """comfy-kitchen's rotations and norms have no backward, and some models ask no switch first: their twins in torch.

    Which there are depends on comfy-kitchen's version, which need not be the one that the host asks for.
    """
    kernels = getattr(comfy.quant_ops, "ck", None)
    twins = getattr(getattr(kernels, "backends", None), "eager", None)
    with ExitStack() as stack:
        for name, plain in getattr(twins, "__dict__", {}).items():
            # Not what rounds, which has no gradient. What writes into its inputs refuses one by itself.
            smooth = isfunction(plain) and plain.__module__.endswith((".eager.rope", ".eager.adaln"))
            if smooth and hasattr(kernels, name):
                stack.enter_context(_replaced(kernels, name, plain))
        yield


def _is_plainly_linear(layer: torch.nn.Module) -> bool:
    """Whether the layer is a linear map of its weight alone: with zeros around the image and no adapter beside it."""
    if "forward" in layer.__dict__ or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    return _is_linear(layer) or isinstance(layer, torch.nn.Conv2d)


def _is_linear(layer: torch.nn.Module) -> bool:
    """The host's layer for weights that it quantises itself derives from no class of torch."""
    quantised = hasattr(layer, "_full_precision_mm") and hasattr(layer, "in_features")
    return quantised or isinstance(layer, torch.nn.Linear)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of this one object for a while; the class's own is left alone."""
    before = owner.__dict__.get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            owner.__dict__.pop(name, None)
        else:
            setattr(owner, name, before)


@contextmanager
def _normal_tensors(layer: torch.nn.Module) -> Iterator[None]:
    """Parameters and buffers that stand alone, as copies that autograd may save."""
    changed = []
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is not None and tensor.is_inference():
                copy = tensor.detach().clone()
                changed.append((store, name, tensor))
                store[name] = torch.nn.Parameter(copy, requires_grad=False) if store is layer._parameters else copy
    try:
        yield
    finally:
        for store, name, tensor in changed:
            store[name] = tensor


def _frozen(layer: torch.nn.Module, original: Callable[..., Tensor], patcher: Any | None) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return original(x, *args, **kwargs)
        return _Frozen.apply(x, layer, lambda value: original(value, *args, **kwargs), patcher)

    return forward


def _normalising(layer: torch.nn.Module, original: Callable[..., Tensor], adds_in_place: bool) -> Callable[..., Tensor]:
    """Group and layer normalisation with copies of their few weights, fetched for the call.

    One without weights is modulated from outside, as in transformers whose blocks go on with `x += ...`: it gets a copy
    of its input, which the backward pass needs as it was; and so does every one where all blocks do that.
    """

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return original(x, *args, **kwargs)
        weight = bias = None
        if layer.weight is not None:
            with torch.inference_mode():
                fetched, shift, offloaded = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
            weight, bias = fetched.clone(), None if shift is None else shift.clone()
            comfy.ops.uncast_bias_weight(layer, fetched, shift, offloaded)
        if adds_in_place or weight is None:
            x = x.clone()
        if isinstance(layer, torch.nn.GroupNorm):
            return torch.nn.functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        return torch.nn.functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    return forward


class _Frozen(torch.autograd.Function):
    """A linear map whose weight is fetched from the host again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: torch.nn.Module, original: Callable[[Tensor], Tensor], patcher: Any | None
    ) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        ctx.patcher, ctx.hooks = patcher, getattr(patcher, "current_hooks", None)
        with torch.inference_mode():  # the host may copy the weight into a buffer that was made in it
            y = original(x)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        layer = ctx.layer
        with torch.inference_mode():
            # Another entry of the pass may have been run with a LoRA of its own since.
            if getattr(ctx.patcher, "current_hooks", None) != ctx.hooks:
                ctx.patcher.apply_hooks(ctx.hooks)
            weight, bias, offloaded = comfy.ops.cast_bias_weight(layer, gradient, offloadable=True)
        try:
            weight = weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight
            check_weight(layer, weight)
            if _is_linear(layer):
                result = gradient.matmul(weight)
                smoothing = getattr(layer, "pre_quant_scale", None)  # of the input, by the layer itself
                result = result if smoothing is None else result * smoothing.to(result)
            else:
                result = torch.nn.grad.conv2d_input(
                    ctx.shape, weight, gradient, layer.stride, layer.padding, layer.dilation, layer.groups
                )
        finally:
            comfy.ops.uncast_bias_weight(layer, weight, bias, offloaded)
        return result.to(ctx.dtype), None, None, None


def check_weights(module: torch.nn.Module) -> None:
    """Raises UnsupportedModelError where a layer keeps its weight in a format that gradients cannot pass."""
    for layer in module.modules():
        if _is_plainly_linear(layer) and getattr(layer, "weight", None) is not None:
            check_weight(layer, layer.weight)


def check_weight(layer: torch.nn.Module, weight: Tensor) -> None:
    """Raises UnsupportedModelError for a weight that is not as the layer says, or no floating point number."""
    if _is_linear(layer):
        expected = (layer.out_features, layer.in_features)
    else:
        expected = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    found = tuple(weight.size())  # a format of another pack may give another answer for its shape (GGUF)
    if found != expected or not weight.is_floating_point():
        raise UnsupportedModelError(
            f"A {type(layer).__name__} layer of this model keeps its weights as {found} {weight.dtype} "
            f"instead of {expected}: a quantised format that gradients cannot pass (GGUF, NF4). Load a model in "
            "float16, bfloat16, float32 or a format of ComfyUI's own (float8, int8), or use a method without gradients "
            "(Rectified Attention)."
        )
