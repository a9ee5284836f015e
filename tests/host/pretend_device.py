"""A pretended accelerator: tensors that lie in main memory, say that they do not, and are held to a device's rules.

Where no GPU is at hand this finds what would fail or be slow on one: operations that mix devices, tensors that are made
on the wrong side, and every moment at which the CPU waits for the device. Results are those of the CPU; of kernels,
their rounding and their memory it says nothing. Works under autograd and in inference mode.
"""

import contextlib
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # the name it goes by: torch has no data there, so that nothing can work by accident

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten.copy.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Their result or its size must be known on the CPU.
_READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "unique_dim", "unique_consecutive"}
# They take a CPU tensor without dimensions as a number.
_TAKES_NUMBERS = {
    "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "maximum", "minimum",
    "eq", "ne", "lt", "le", "gt", "ge", "where", "masked_fill", "fill", "bitwise_and", "bitwise_or", "logical_and",
    "logical_or", "atan2", "hypot", "xlogy", "copysign",
}  # fmt: skip


class Misplaced(RuntimeError):
    """An operation that a device would refuse."""


@dataclass
class Traffic:
    """What went between the device and the CPU; each entry names the line of the package that asked, or "host"."""

    waits: list[str] = field(default_factory=list)  # the CPU stood still until the device had finished
    arrivals: list[str] = field(default_factory=list)  # copies to the device
    departures: list[str] = field(default_factory=list)  # copies from it


_traffic = Traffic()


class OnDevice(torch.Tensor):
    """A tensor of the device; `data_here` is its data."""

    data_here: torch.Tensor

    @staticmethod
    def __new__(cls, data):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=DEVICE,
        )
        tensor.data_here = data
        return tensor

    def __repr__(self):
        return f"OnDevice({self.data_here})"

    def numpy(self, *args, **kwargs):
        raise Misplaced("numpy() of a tensor on the device")

    def __array__(self, *args, **kwargs):
        raise Misplaced("a tensor on the device as a numpy array")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _names_device(device):
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnDevice)]
    name = func._schema.name.removeprefix("aten::")
    device = kwargs.get("device")
    result_there = bool(there) if device is None else _names_device(device)
    if func in _COPIES:
        source = args[0] if name == "_to_copy" else args[1]
        if name != "_to_copy":
            result_there = isinstance(args[0], OnDevice)
        _note_copy(isinstance(source, OnDevice), result_there, _non_blocking(name, args, kwargs))
    elif there:
        _refuse_mixture(func, name, args, [t for t in tensors if not isinstance(t, OnDevice)])
        _note_waits(func, name, args)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if (
        name == "add_"
        and isinstance(args[0], OnDevice)
        and not (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
    ):
        # Autograd's engine sums gradients in place where it takes itself for the only owner. It cannot see that two
        # tensors here share their data.
        args[0].data_here = args[0].data_here.clone()
    out = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if func._schema.is_mutable and (name.endswith("_") or kwargs.get("out") is not None):
        return args[0] if name.endswith("_") else kwargs["out"]
    return _wrapped(func, out, there) if result_there else out


def _here(value):
    return value.data_here if isinstance(value, OnDevice) else value


def _wrapped(func, out, there):
    """On the device. A view of an ordinary tensor is ordinary in inference mode, too."""
    view = any(result.alias_info is not None for result in func._schema.returns)
    ordinary = view and there and not there[0].is_inference() and torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if ordinary else contextlib.nullcontext():
        return tree_map(lambda t: OnDevice(t) if isinstance(t, torch.Tensor) else t, out)


def _refuse_mixture(func, name, args, here):
    written = func._schema.is_mutable and name.endswith("_")
    wrong = [t for t in here if t.ndim > 0 or name.rstrip("_") not in _TAKES_NUMBERS or (written and t is args[0])]
    if func in _INDEXING:  # indices may lie on the CPU: they are copied; so may a single number that is written
        wrong = [t for t in here if not any(t is index for index in args[1]) and (t.ndim > 0 or t is args[0])]
    if wrong:
        raise Misplaced(f"{name} of tensors on the device and one of {tuple(wrong[0].shape)} on the CPU")


def _note_waits(func, name, args):
    if name in _READS:
        _traffic.waits.append(_origin())
    if func in _INDEXING:
        for index in args[1]:
            if index is not None and not isinstance(index, OnDevice):
                _note_copy(False, True, False)
            elif index is not None and index.dtype == torch.bool:
                _traffic.waits.append(_origin())


def _non_blocking(name, args, kwargs):
    return bool(kwargs.get("non_blocking", name != "_to_copy" and len(args) > 2 and args[2]))


def _note_copy(was_there, is_there, non_blocking):
    if was_there == is_there:
        return
    origin = _origin()
    (_traffic.arrivals if is_there else _traffic.departures).append(origin)
    if not non_blocking:
        _traffic.waits.append(origin)


def _origin():
    """Whose code is under way: a line of the package, or the host's."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if "/attention_patches/" in path and not path.endswith("same_noise.py"):  # a mode, there during every operation
            return f"{path.split('/attention_patches/')[1]}:{frame.f_lineno}"
        if "/comfy/" in path:
            return "host"
        frame = frame.f_back
    return "test"


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch answers by itself for a device without data."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _names_device(kwargs.get("device")):
            if not isinstance(args[0], torch.Tensor):
                return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice) and kwargs.get("device") is None:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], _index_of_tensors(args[1]), *args[2:])
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _index_of_tensors(index):
    if isinstance(index, tuple):
        return tuple(map(_index_of_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


@contextlib.contextmanager
def pretending():
    """Inside there is a device; yields the Traffic between it and the CPU."""
    global _traffic
    before, _traffic = _traffic, Traffic()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Operations(), _Functions():
            yield _traffic
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        _traffic = before


def move(module):
    """All weights and buffers of a module onto the device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(OnDevice(weight.data.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)


# --- the host ---------------------------------------------------------------------------------------------------------


def to_device(model):
    """A MODEL as after the host has loaded it whole: network and schedule on the device. In place; returns it."""
    move(model.model)
    model.model.device = model.load_device = DEVICE
    model.get_free_memory = lambda device: _PLENTY
    return model


_PLENTY = 10**10


@contextlib.contextmanager
def host_with_device():
    """Inside the host computes on the device, and finds its models loaded; yields the Traffic."""
    import comfy.model_management as management

    generator = torch.Generator  # whatever the device, its numbers are drawn on the CPU

    def free_memory(dev=None, torch_free_too=False):
        return (_PLENTY, _PLENTY) if torch_free_too else _PLENTY

    with pytest.MonkeyPatch.context() as patch, pretending() as traffic:
        patch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))
        patch.setattr(management, "get_torch_device", lambda: DEVICE)
        patch.setattr(management, "intermediate_device", lambda: torch.device("cpu"))
        patch.setattr(management, "get_free_memory", free_memory)
        patch.setattr(management, "load_models_gpu", lambda *args, **kwargs: None)
        patch.setattr(management, "soft_empty_cache", lambda *args, **kwargs: None)
        yield traffic
