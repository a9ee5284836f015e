"""Where to make tensors that outlive a block of the network.

Hosts from 0.34 on may record what a block allocates and take all of it back at its end: what is kept beyond that leaks,
or ends the process.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext


def outside_blocks() -> AbstractContextManager:
    """Inside, the host does not count what is allocated as the block's; nothing on hosts that never do."""
    prefetch = sys.modules.get("comfy.model_prefetch")  # only a host that has loaded it is in a block now
    return getattr(prefetch, "pause_malloc_graph", nullcontext)()
