"""Draws the picture of the box editor that its help page shows, in a real browser, from the editor as it is now.

python tools/editor_picture.py      needs the environment of the tests (COMFYUI_PATH) and a Chromium
"""

import io
import os
import sys
from pathlib import Path

from wb_common import ROOT

sys.path.append(str(ROOT / "tests" / "host"))

GOAL = ROOT / "web" / "docs" / "BoxwrightBoxEditor.png"
NODE = (836, 800)  # of which the editor is what the other widgets leave: about 820 x 600
REGIONS = [
    {"phrase": "lawn", "x": 0.0, "y": 0.62, "width": 1.0, "height": 0.38, "color": "#009e73"},
    {"phrase": "tabby cat", "x": 0.08, "y": 0.3, "width": 0.36, "height": 0.45, "color": "#e69f00"},
    {"phrase": "brown dog", "x": 0.54, "y": 0.2, "width": 0.38, "height": 0.58, "strength": 0.6, "color": "#56b4e9",
     "shape": {"kind": "ellipse"}},
]  # fmt: skip
PROMPT = "a tabby cat and a brown dog on a lawn"
COLOURS = 128  # of the palette: a drawing of flat colours needs no more


def draw(bench) -> None:
    """Load the drawing into a page (tests/host/browser.py), select its second box, and take the picture."""
    from browser import editor_node
    from PIL import Image

    bench.load(editor_node(REGIONS, prompt=PROMPT, size=NODE))
    bench.click(0.26, 0.5)
    bench.mouse.move(5, 5)  # nothing lies under the pointer
    bench.frames()
    taken = Image.open(io.BytesIO(bench.page.locator(".bw-editor").screenshot())).convert("RGB")
    taken.quantize(COLOURS).save(GOAL, optimize=True)
    print(f"{GOAL.relative_to(ROOT)}: {taken.width} x {taken.height}")


def main() -> None:
    from browser import FLAGS, chromium_path, open_bench
    from playwright.sync_api import sync_playwright
    from wb_environment import host_at
    from wb_server import running_server

    host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    with running_server(Path(sys.executable), host) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        with open_bench(browser, server.url, vue=False) as bench:
            draw(bench)
        browser.close()


if __name__ == "__main__":
    main()
