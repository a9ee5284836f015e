"""Text that a node shows while it works."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io
from server import PromptServer


def progress_reporter(node_id: str | None) -> Callable[[str], None] | None:
    """Shows a line of text on a node while it works; None where no server listens."""
    server = getattr(PromptServer, "instance", None)
    if server is None or node_id is None:
        return None
    return lambda line: server.send_progress_text(line, node_id)


def tell(hidden: io.HiddenHolder | None, line: str) -> None:
    """Shows one line on the node that runs, if somebody listens."""
    report = progress_reporter(getattr(hidden, "unique_id", None))
    if report is not None:
        report(line)
