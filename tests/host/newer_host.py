"""What newer hosts than those here do, pretended: scopes of a block's memory, attention that the checkpoint chooses."""

import inspect
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.cli_args
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OVERRIDE = "optimized_attention_override"


class Scope(TorchDispatchMode):
    """A host (from 0.34 on) that knows what its block under way has allocated, unless it is told to look away.

    As theirs, the pause is a switch: the end of an inner one ends the outer one with it.
    """

    def __init__(self):
        super().__init__()
        self.paused, self.pauses, self.made, self.left, self.depth = False, 0, [], 0, 0

    @contextmanager
    def pause(self):
        self.paused = True
        self.pauses += 1
        try:
            yield
        finally:
            self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            known = {storage(value) for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
            fresh = (value for value in tree_leaves(out) if torch.is_tensor(value))
            self.made += [StorageWeakRef(t.untyped_storage()) for t in fresh if storage(t) not in known]
        return out

    def alive(self, *results):
        """How many of the block's tensors there are still, the results apart."""
        returned = {storage(result) for result in results}
        return sum(not ref.expired() and ref.cdata not in returned for ref in self.made)

    @contextmanager
    def around(self, network):
        """Every block of the network in a scope, while the host is not told to compile none; `left`: what outlived it.

        A block is an element of a list of modules; of blocks in blocks it is the outermost. What raises in one leaves
        all of it behind.
        """
        blocks = {block for part in network.modules() if isinstance(part, torch.nn.ModuleList) for block in part}
        handles = []
        for block in blocks:
            handles.append(block.register_forward_pre_hook(self._begins))
            handles.append(block.register_forward_hook(self._ends, always_call=True))
        yield
        for handle in handles:
            handle.remove()

    def _begins(self, block, args):
        self.depth += 1
        self.compiles = not comfy.cli_args.args.disable_comfy_compiler
        if self.depth == 1 and self.compiles:
            self.made.clear()
            self.__enter__()

    def _ends(self, block, args, output):
        if self.depth == 1 and self.compiles:
            self.__exit__(None, None, None)
            self.left += self.alive(*(value for value in tree_leaves(output) if torch.is_tensor(value)))
        self.depth -= 1


def storage(tensor):
    return tensor.untyped_storage()._cdata


def compiling(monkeypatch):
    """A host whose blocks are in the Scope that it returns; which blocks, the test says."""
    scope = Scope()
    module = sys.modules.get("comfy.model_prefetch") or SimpleNamespace()
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", module)
    monkeypatch.setattr(module, "pause_malloc_graph", scope.pause, raising=False)
    monkeypatch.setattr(comfy.cli_args.args, "disable_comfy_compiler", False, raising=False)
    return scope


class Container:
    """q, k or v on the way to a kernel that may take it apart; to be taken once."""

    def __init__(self, tensor):
        self.tensor = tensor

    def take(self):
        assert self.tensor is not None
        tensor, self.tensor = self.tensor, None
        return tensor


def checkpoint_chooses_attention(monkeypatch):
    """A host (from 0.37 on) with a checkpoint that names an attention of its own, which gives way to any override.

    Returns the list of that attention's calls: their numbers of keys.
    """
    calls = []

    def wrapped(attention):
        plain = inspect.unwrap(attention)

        def newer(q, k, v, *args, **kwargs):
            held = [Container(t) for t in (q, k, v)]
            kwargs["_inside_attn_wrapper"] = True
            override = (kwargs.get("transformer_options") or {}).get(OVERRIDE)
            q, k, v = (each.take() for each in held)
            if override is not None:
                return override(plain, q, k, v, *args, **kwargs)
            calls.append(k.shape[-2])
            return plain(q, k, v, *args, **kwargs)

        return newer

    for name, module in list(sys.modules.items()):
        for attribute in ("optimized_attention", "optimized_attention_masked"):
            if name.startswith("comfy.ldm.") and attribute in vars(module):
                monkeypatch.setattr(module, attribute, wrapped(vars(module)[attribute]))
    return calls
