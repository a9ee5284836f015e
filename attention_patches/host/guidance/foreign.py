"""What autograd does not follow in a model of the host: some kernels, ControlNets, GLIGEN, whole families."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ...core.types import UnsupportedModelError
from ..attention.call import TAKES_MASKS, AttentionCall
from ..attention.calls import IncompatiblePatchError
from ..families.base import Adapter
from ..run.run import Run
from .differentiable import check_weights

TILE = 128  # queries or keys that attention kernels take at a time, or a multiple of what they take


def attention_with_gradient(run: Run, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """optimized_attention_override: some of the host's kernels, and other packs' overrides, have no backward."""
    return run.attention(None, _attention_with_backward, *args, **kwargs)


def plain_attention_with_gradient(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The same where no run of ours edits the model."""
    return _attention_with_backward(*args, **kwargs)


def _attention_with_backward(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    """The host's PyTorch attention; with a mask the plain kernel, unless every tile of the fused ones is full.

    On new cards the fused kernels' backward with a mask may be wrong where the last tile is not: half full, above all.
    """
    call = AttentionCall(attention_pytorch, q, k, v, heads, mask, rest, options)
    counts = (q.shape[call.token_axis], k.shape[call.token_axis])
    if mask is None or all(count % TILE == 0 for count in counts):
        return call.fused()
    q, k, v = (call.by_head(t) for t in (q, k, v))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # entered again on the way back
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.get("scale"))

    # Worked out once more on the way back: this kernel would keep the probabilities of every layer.
    out = checkpoint(plain, q, k, v, use_reentrant=False, preserve_rng_state=False)
    return out if options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)


setattr(_attention_with_backward, TAKES_MASKS, True)


def without_foreign_gradients(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with a ControlNet that autograd does not follow: its weights are the host's inference tensors."""
    if entry.get("gligen") is not None:
        raise IncompatiblePatchError(
            'GLIGEN puts layers without a gradient into the model. Use the mode "boxdiff", whose gradient pass leaves '
            "them out, or remove GLIGEN."
        )
    control = entry.get("control")
    return entry if control is None else {**entry, "control": _ControlOutsideGraph(control)}


class _ControlOutsideGraph:
    """A ControlNet as the model meets it in a pass with gradients: a constant."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            out = self._control.get_control(x.detach(), *args, **kwargs)
        if out is None:
            return None
        return {name: [None if t is None else _added(t) for t in tensors] for name, tensors in out.items()}


def _added(tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(_Addend)


class _Addend(torch.Tensor):
    """The host adds it in place to features that the gradient still needs; this makes `h += addend` a new tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
        if func is Tensor.add_:
            func = torch.add
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


# PyTorch's word on the way back, and comfy-kitchen's of what writes into its inputs.
NO_WAY_BACK = re.compile(r"backward through (\S+) but no autograd|^(\S+ \S+) operations are inference-only")


@contextmanager
def explained() -> Iterator[None]:
    """Autograd's words for what it cannot do, in words for a user: raises IncompatiblePatchError."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "Inference tensors cannot be saved" in message:
            words = (
                "Another patch adds weights of its own to this model (an adapter that bypasses a layer), which "
                "gradients do not pass. Load it as an ordinary LoRA, remove it, or use"
            )
        elif "modified by an inplace operation" in message:
            words = (
                "Another patch on this model writes into tensors that the gradient still needs. Remove that patch, or "
                "use"
            )
        elif found := NO_WAY_BACK.search(message):
            words = (
                f"The model computes with {found[1] or found[2]}, through which PyTorch has no gradient. "
                "Remove the patch that brings it, load the model in another format (bfloat16), or use"
            )
        else:
            raise
        raise IncompatiblePatchError(f"{words} a method without gradients (Rectified Attention).") from error


def refuse_without_gradient(adapter: Adapter, network: torch.nn.Module) -> None:
    """Raises UnsupportedModelError for a family, or for weights, that have no gradient here."""
    if not adapter.gradients:
        raise UnsupportedModelError(
            f"Guides need gradients, which Boxwright does not take through {adapter.name} yet. Use another model, or a "
            "method without gradients (Rectified Attention)."
        )
    check_weights(network)
