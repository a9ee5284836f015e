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

    def report(line: str) -> None:
        # Without a name the host tells every page, and another one has a node of that number, too.
        if server.client_id is not None:
            server.send_progress_text(line, node_id, server.client_id)

    return report


def reporter_of(node: type[io.ComfyNode]) -> Callable[[str], None] | None:
    """The same for a node that is being executed and has asked for its hidden unique_id; None outside a run."""
    return progress_reporter(getattr(node.hidden, "unique_id", None))


def tell(node: type[io.ComfyNode], line: str) -> None:
    """Shows one line on the node that is being executed, if somebody listens."""
    report = reporter_of(node)
    if report is not None:
        report(line)
