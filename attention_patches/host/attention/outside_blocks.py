"""Where to make tensors that outlive a block of the network, and how to run one that is left before its end.

Hosts from 0.34 on may record what a block allocates and take all of it back at its end: what is kept beyond that leaks,
or ends the process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import comfy.cli_args


class _Thread(threading.local):
    outside = False


_THREAD = _Thread()


def outside_blocks() -> AbstractContextManager:
    """Inside, the host does not count what is allocated as the block's; nothing on hosts that never do."""
    prefetch = sys.modules.get("comfy.model_prefetch")  # only a host that has loaded it is in a block now
    pause = getattr(prefetch, "pause_malloc_graph", None)
    return nullcontext() if pause is None or _THREAD.outside else _paused(pause)


@contextmanager
def _paused(pause: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """The host's pause is a switch: the end of an inner one would end the outer one, so there is only the outer."""
    _THREAD.outside = True
    try:
        with pause():
            yield
    finally:
        _THREAD.outside = False


@contextmanager
def blocks_uncompiled() -> Iterator[None]:
    """Inside, the host records of no model what its blocks allocate, whoever keeps it, or leaves a block by raising.

    By a switch of its command line, which it reads before each call of a model.
    """
    args, name = comfy.cli_args.args, "disable_comfy_compiler"
    before = getattr(args, name, True)
    if not before:
        setattr(args, name, True)
    try:
        yield
    finally:
        if not before:
            setattr(args, name, False)
