"""What the box editor costs the browser's main thread: sixty boxes under the pointer, and files that mean harm.

Times come from the browser's own trace (DevTools "EventDispatch", "FunctionCall", "RunTask"), not from our clocks.
Usage, with COMFYUI_PATH set: python benchmarks/box_editor.py
"""

import bisect
import json
import os
import random
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "host")]

from browser import FLAGS, box, chromium_path, editor_node, open_bench
from playwright.sync_api import sync_playwright
from wb_environment import host_at
from wb_server import running_server

MOVES = 200
ONE = box("red heart", 0.2, 0.2, 0.3, 0.3)
OURS = "/extensions/boxwright/"  # where the pack's scripts are served from


def sixty():
    dice = random.Random(1)
    return [box(f"thing number {number}", dice.random() * 0.8, dice.random() * 0.8, 0.18, 0.18) for number in range(60)]


def traced(browser, bench, act):
    """The browser's trace events while `act` runs."""
    browser.start_tracing(page=bench.page, categories=["devtools.timeline", "disabled-by-default-devtools.timeline"])
    act()
    bench.frames(3)
    return json.loads(browser.stop_tracing())["traceEvents"]


def milliseconds(events, name, wanted):
    return [
        event["dur"] / 1000
        for event in events
        if event.get("name") == name and event.get("ph") == "X" and wanted(event.get("args", {}).get("data", {}))
    ]


def per_move(events, name, wanted):
    """Processor time of the main thread between one pointermove and the next, in milliseconds, for each move.

    Processor time ("tdur") rather than time on the clock: other programs on the machine do not count.
    """
    moves = [
        event
        for event in events
        if event.get("name") == "EventDispatch"
        and event.get("ph") == "X"
        and event["args"]["data"].get("type") == "pointermove"
    ]
    starts = sorted(event["ts"] for event in moves)
    work = [0.0] * len(starts)
    for event in events:
        if (
            event.get("name") == name
            and event.get("ph") == "X"
            and event["tid"] == moves[0]["tid"]
            and event["pid"] == moves[0]["pid"]
            and wanted(event.get("args", {}).get("data", {}))
        ):
            at = bisect.bisect_right(starts, event["ts"] + event["dur"]) - 1  # a task ends after the move it handles
            if at >= 0:
                work[at] += event.get("tdur", event["dur"]) / 1000
    return work


def is_ours(data):
    return OURS in data.get("url", "")


def median_and_95(times):
    ordered = sorted(times)
    return f"median {statistics.median(ordered):.2f} ms, 95 % {ordered[int(len(ordered) * 0.95)]:.2f} ms ({len(times)})"


def pointer_moves(browser, bench, name, path, pressed):
    """A pointer on its way along a path of fractions of the image."""
    bench.load(editor_node(sixty(), prompt="thing number 5", snap=True))
    start, stop = path
    bench.mouse.move(*bench.place(*start))
    if pressed:
        bench.mouse.down()
    ends = bench.place(*start), bench.place(*stop)

    def act():
        for step in range(MOVES):
            bench.frames(1)  # one move to a frame, as a hand makes them
            share = (step % 50) / 50
            bench.mouse.move(*(a + (b - a) * share for a, b in zip(*ends)))

    events = traced(browser, bench, act)
    if pressed:
        bench.mouse.up()
    moves = milliseconds(events, "EventDispatch", lambda data: data.get("type") == "pointermove")
    print(
        f"  {name}: handling a pointermove {median_and_95(moves)};\n"
        f"    per move, of processor time: our script {median_and_95(per_move(events, 'FunctionCall', is_ours))}, "
        f"the whole main thread {median_and_95(per_move(events, 'RunTask', lambda data: True))}"
    )


def longest_task(browser, bench, name, text):
    """Opening a workflow with this text in the editor, against one with an empty editor."""
    lengths = []
    for content in ("", text):
        events = traced(browser, bench, lambda content=content: bench.load(editor_node(text=content)))
        ours = milliseconds(events, "FunctionCall", is_ours)
        lengths.append((max(milliseconds(events, "RunTask", lambda data: True)), max(ours, default=0)))
    (plain, _), (hostile, ours) = lengths
    print(
        f"  {name}: longest task {hostile:.0f} ms (with an empty editor {plain:.0f} ms), "
        f"longest call of ours {ours:.1f} ms"
    )


def main():
    hostile = {
        "100 000 boxes": json.dumps({"type": "boxwright.regions", "version": 1, "regions": [ONE] * 100_000}),
        "200 000 brackets": "[" * 200_000,
        "just under the limit of text": json.dumps(
            {"type": "boxwright.regions", "version": 1, "regions": [{**ONE, "mine": "x" * 15_000}] * 64}
        ),
    }
    host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    with running_server(Path(sys.executable), host) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for vue in (False, True):
            print("Nodes 2.0" if vue else "classic")
            with open_bench(browser, server.url, vue) as bench:
                pointer_moves(browser, bench, "hover", ((0.1, 0.1), (0.9, 0.9)), False)
                pointer_moves(browser, bench, "move one", ((0.5, 0.5), (0.7, 0.6)), True)
                for name, text in hostile.items():
                    longest_task(browser, bench, name, text)
        browser.close()


if __name__ == "__main__":
    main()
