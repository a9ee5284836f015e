"""The demo: queue the example workflow on a running server, follow it, fetch its pictures."""

import json
import sys
import time
import uuid
from pathlib import Path

from wb_common import Failure
from wb_http import Server

SILENCE_LIMIT = 900  # seconds without any sign of progress from a server that is still alive
BAR = 24  # characters


class Progress:
    """One line that is rewritten on a terminal; elsewhere one line per node."""

    def __init__(self, graph: dict):
        self._titles = {number: node["_meta"]["title"] for number, node in graph.items()}
        self._seen: set[str] = set()
        self._started = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def node(self, number: str) -> None:
        """A node begins."""
        self._seen.add(number)
        if self._terminal:
            self.step(number, 0, 1)
        else:
            print("  " + self._counter(number), flush=True)

    def step(self, number: str, value: int, total: int) -> None:
        """A node has done `value` of `total` steps."""
        if self._terminal:
            filled = BAR * value // max(total, 1)
            print(f"\r  [{'#' * filled}{'.' * (BAR - filled)}] {self._counter(number):<60}", end="", flush=True)

    def end(self) -> None:
        """Leave the line complete, so that what follows starts on its own."""
        if self._terminal:
            print(flush=True)

    def _counter(self, number: str) -> str:
        elapsed = time.monotonic() - self._started
        return f"{len(self._seen)}/{len(self._titles)} {self._titles.get(number, number)} ({elapsed:.0f} s)"


def load_workflow(path: Path) -> dict:
    """A workflow file as saved by the browser."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Failure(f'the workflow "{path}" is missing; it belongs to the repository: check your clone') from error
    except ValueError as error:
        raise Failure(f'the workflow "{path}" is not JSON ({error}); restore it from the repository') from error
    if not isinstance(workflow, dict) or "nodes" not in workflow or "links" not in workflow:
        raise Failure(
            f'"{path}" has no "nodes" and "links", so it is no saved workflow; '
            "use Save in the browser, not Export (API)"
        )
    return workflow


def execute(server: Server, graph: dict) -> dict:
    """Run an API-format graph to its end, showing progress. Returns the host's outputs by node id."""
    client = uuid.uuid4().hex
    with server.events(client) as events:
        prompt_id = server.queue(graph, client)
        progress = Progress(graph)
        try:
            _follow(server, events.messages(poll=1), prompt_id, progress)
        finally:
            progress.end()
    return server.get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]


def _follow(server: Server, messages, prompt_id: str, progress: Progress) -> None:
    """Return when the prompt has succeeded; Failure if it failed, was interrupted, or the server went away."""
    last_sign = time.monotonic()
    for message in messages:
        if message is None:
            server.check_alive()
            if time.monotonic() - last_sign > SILENCE_LIMIT:
                raise Failure(f"the server gave no sign of progress for {SILENCE_LIMIT} s; full log: {server.log}")
            continue
        last_sign = time.monotonic()
        event = json.loads(message)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "executing" and data["node"] is None:
            return  # sent after the history is written; execution_success comes before
        if kind == "executing":
            progress.node(data["node"])
        elif kind == "progress":
            progress.step(data["node"], data["value"], data["max"])
        elif kind == "execution_error":
            raise Failure(f"{data['node_type']} (node {data['node_id']}) failed: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            raise Failure("the workflow was interrupted; run the demo again")
    server.check_alive()
    raise Failure(f"the server closed the connection before the workflow ended; full log: {server.log}")


def save_pictures(server: Server, graph: dict, outputs: dict, folder: Path) -> dict[str, list[Path]]:
    """Fetch every saved picture; returns the files by the last part of their SaveImage prefix."""
    pictures: dict[str, list[Path]] = {}
    for number, output in sorted(outputs.items()):
        kept = [image for image in output.get("images", []) if image["type"] == "output"]
        for index, image in enumerate(kept, 1):
            name = graph[number]["inputs"]["filename_prefix"].split("/")[-1]
            file = folder / f"{name}_{index}.png"
            file.write_bytes(server.get("/view", **{key: image[key] for key in ("filename", "subfolder", "type")}))
            pictures.setdefault(name, []).append(file)
    if not pictures:
        raise Failure("the workflow ended without a picture; it needs a SaveImage node")
    return pictures


def clear(folder: Path) -> None:
    """Make the folder, without pictures of an earlier run that could be taken for this one's."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
