"""The box editor in a real browser: one page per frontend and renderer, with a mouse, a keyboard and the workflow."""

import contextlib
import json
import os
import shutil
import urllib.request

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # or the templates cover the canvas
    "Comfy.Workflow.Persist": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,  # a test that opened it leaves it so for those behind it
}
NODE = "BoxwrightBoxEditor"
SIZE = (760, 700)
VIEWPORT = {"width": 1150, "height": 960}  # every pixel is painted by the processor
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def unavailable(reason):
    """Skip with a loud reason; where all must run (BOXWRIGHT_STRICT), fail."""
    if os.environ.get("BOXWRIGHT_STRICT"):
        pytest.fail(reason)
    pytest.skip(reason)


def chromium_path():
    """The browser that the workbench named, else any there is."""
    named = os.environ.get("BOXWRIGHT_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or unavailable("THE BROWSER TESTS DO NOT RUN: there is no Chromium; install it and run again")


def workflow(*nodes, links=()):
    """A saved workflow."""
    return {
        "version": 0.4,
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": list(nodes),
        "links": list(links),
        "groups": [],
        "extra": {},
    }


def editor_node(regions=(), number=1, width=512, height=512, prompt="", pos=(80, 60), size=SIZE, text=None, **view):
    """A saved editor node holding regions (dicts) or any text. Snapping is off unless asked for."""
    drawing = {"type": "boxwright.regions", "version": 1, "regions": list(regions)}
    if text is None:
        text = json.dumps(drawing) if regions else ""
    return {
        "id": number,
        "type": NODE,
        "pos": list(pos),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {"boxwright.view": {"snap": False, **view}},
        "widgets_values": [text, width, height, prompt, 0.5],
    }


def box(phrase, x, y, width, height, **more):
    """A region as the workflow keeps it."""
    return {"phrase": phrase, "x": x, "y": y, "width": width, "height": height, **more}


SEARCH = "Add a node..."
PRESSED = 15  # ms between the events of a double click: the host takes two presses of one moment for one
# What stands at a place of the page, has the keyboard, and hangs on the pointer.
SEEN = """(at) => {
    const name = (part) => part && `${part.tagName} ${part.id} ${part.getAttribute("class")}`.slice(0, 200);
    return [name(document.elementFromPoint(...at)), name(document.activeElement), app.canvas.state.ghostNodeId];
}"""
NEAR = 0.006  # of the image: about two pixels of the screen
ONE = box("red heart", 0.2, 0.2, 0.3, 0.3)
TWO = box("blue star", 0.6, 0.55, 0.3, 0.3)


def near(values, off=NEAR):
    """Numbers that places read back from a drawing may be."""
    return pytest.approx(values, abs=off)


class Bench:
    """A page with the editor, as a person has it. Places on the canvas are fractions of the image."""

    def __init__(self, page, url, vue):
        self.page, self.url, self.vue = page, url, vue
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))

    @property
    def mouse(self):
        return self.page.mouse

    @property
    def keys(self):
        return self.page.keyboard

    def open(self):
        """Load the page and wait until nodes can be made."""
        self.page.goto(self.url)
        self.page.wait_for_function(
            "() => window.app?.graph && window.app.extensionManager && Boolean(LiteGraph.registered_node_types"
            f"['{NODE}']) && app.extensionManager.workflow?.activeWorkflow",
            timeout=90_000,
        )
        self.page.wait_for_function("() => app.vueAppReady !== false")

    def load(self, *nodes, links=(), scale=1.0):
        """Replace the workflow in the same tab and forget its undo; wait until every editor is drawn."""
        self.errors.clear()
        self.keys.press("Escape")
        self.page.evaluate(
            """async ([graph, scale]) => {
            const current = app.extensionManager.workflow.activeWorkflow;
            document.activeElement?.blur();
            await app.loadGraphData(graph, true, false, current);
            Object.assign(app.canvas.ds, { scale });
            app.canvas.ds.offset[0] = 20; app.canvas.ds.offset[1] = 20;
            app.canvas.setDirty(true, true);
            const tracker = current.changeTracker;
            await new Promise((done) => setTimeout(done, 100));
            (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
            tracker.undoQueue.length = 0; tracker.redoQueue.length = 0;
        }""",
            [workflow(*nodes, links=links), scale],
        )
        editors = sum(node["type"] == NODE for node in nodes)
        self.page.wait_for_function(f"() => document.querySelectorAll('.bw-canvas').length >= {editors}")
        for number in [node["id"] for node in nodes if node["type"] == NODE]:
            self.settled(number)

    def put(self, *regions):
        """Another drawing in editor 1, as if some other program had written its text: quicker than load."""
        self.keys.press("Escape")
        self.page.evaluate(
            """(text) => {
            document.activeElement?.blur();
            nodeOf(1).widgets[0].value = text;
            canvasOf(1).closest(".bw-editor").dispatchEvent(new Event("focusin"));
        }""",
            json.dumps({"type": "boxwright.regions", "version": 1, "regions": regions}) if regions else "",
        )
        self.frames(2)

    def settled(self, number=1):
        """Wait until the editor's place on the screen has stopped changing and it has been painted."""
        self.page.wait_for_function(
            """(id) => {
            const canvas = canvasOf(id);
            if (!canvas || !canvas.offsetWidth || canvas.width < canvas.offsetWidth) return false;
            const rect = canvas.getBoundingClientRect(), key = [rect.x, rect.y, rect.width, rect.height].join();
            const same = canvas.dataset.place === key;
            canvas.dataset.place = key;
            return same && rect.width > 40;
        }""",
            arg=number,
            polling=60,
        )
        self.frames()

    def frames(self, count=3):
        self.page.evaluate(
            """async (count) => {
            for (let frame = 0; frame < count; frame += 1) await new Promise(requestAnimationFrame);
        }""",
            count,
        )

    def rest(self, milliseconds):
        """Wait at least so long, and on a busy machine until frames come quickly again (six seconds at most): what the
        page does by its clock has then been done."""
        self.page.evaluate(
            """async (least) => {
            const start = performance.now();
            let last = start, quick = 0;
            while (true) {
                const now = await new Promise(requestAnimationFrame);
                quick = now - last < 60 ? quick + 1 : 0;
                last = now;
                const passed = performance.now() - start;
                if (passed > least && (quick >= 5 || passed > least + 6000)) return;
            }
        }""",
            milliseconds,
        )

    # What the workflow holds

    def text(self, number=1):
        """The editor's text in the workflow as it would be saved now."""
        return self.page.evaluate(
            """(id) => {
            const find = (graph) => graph.nodes.find((node) => String(node.id) === String(id));
            return find(app.rootGraph?.serialize?.() ?? app.graph.serialize())?.widgets_values[0];
        }""",
            number,
        )

    def drawing(self, number=1):
        text = self.text(number)
        return json.loads(text) if text else {"regions": []}

    def boxes(self, number=1):
        return self.drawing(number)["regions"]

    def phrases(self, number=1):
        return [region["phrase"] for region in self.boxes(number)]

    def rects(self, number=1):
        return [[region[key] for key in ("x", "y", "width", "height")] for region in self.boxes(number)]

    def undo_depth(self):
        return self.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length")

    def remember(self):
        """Have the host take down what the workflow holds now, as it does after every click and key."""
        self.page.evaluate("""() => {
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
            (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
        }""")

    # Mouse and keys

    def place(self, x, y, number=1):
        """A point of the image on the screen, in CSS pixels of the page."""
        return self.page.evaluate(
            """([x, y, id]) => {
            const canvas = canvasOf(id), rect = canvas.getBoundingClientRect(), { area } = editorOf(id).stage;
            const zoom = rect.width / canvas.offsetWidth;
            return [rect.x + zoom * (area.x + x * area.width), rect.y + zoom * (area.y + y * area.height)];
        }""",
            [x, y, number],
        )

    @contextlib.contextmanager
    def held(self, *keys):
        for key in keys:
            self.keys.down(key)
        yield
        for key in reversed(keys):
            self.keys.up(key)

    def drag(self, start, stop, *keys, number=1, release=True):
        """Press at `start`, go to `stop` in steps, let go; with keys held all the while."""
        self.mouse.move(*self.place(*start, number))
        with self.held(*keys):
            self.mouse.down()
            self.mouse.move(*self.place(*stop, number), steps=5)
            self.frames(1)
            if release:
                self.mouse.up()
        self.frames(2)

    def click(self, x, y, *keys, number=1):
        self.mouse.move(*self.place(x, y, number))
        with self.held(*keys):
            self.mouse.down()
            self.mouse.up()
        self.frames(2)

    def double_click(self, x, y, number=1):
        self.mouse.dblclick(*self.place(x, y, number), delay=PRESSED)
        self.frames(2)

    def open_search(self, x, y):
        """The host's search for nodes, by a double click on an empty place of the page."""
        from playwright.sync_api import TimeoutError as Waited  # here: without it these tests are skipped, aloud

        # On a busy machine a hand's two clicks come late.
        self.page.evaluate("() => { app.canvas.pointer.constructor.doubleClickTime = 3000; }")
        for last in (False, False, True):
            self.mouse.dblclick(x, y, delay=PRESSED)
            try:
                self.page.wait_for_function(
                    "(words) => document.activeElement?.getAttribute('placeholder') === words",
                    arg=SEARCH,
                    timeout=20_000 if last else 5_000,
                )
                return
            except Waited:
                print("no search", self.page.evaluate(SEEN, [x, y]))
                if last:
                    raise

    def place_ghost(self, number, x, y):
        """Put a node that hangs on the pointer where it is to stand, once the search no longer covers that place."""
        self.mouse.move(x, y, steps=4)
        self.page.wait_for_function(
            """([id, x, y]) => {
            const { pos, size } = nodeOf(id), { scale, offset } = app.canvas.ds;
            const away = [(pos[0] + size[0] / 2 + offset[0]) * scale - x, (pos[1] + offset[1]) * scale - y];
            const above = document.elementFromPoint(x, y).closest(".p-dialog-mask, [role=dialog]");
            return Math.hypot(...away) < 20 && !above;
        }""",
            arg=[number, x, y],
            timeout=20_000,
        )
        self.frames(2)
        self.mouse.down()
        self.mouse.up()
        self.page.wait_for_function(
            "(id) => app.canvas.state.ghostNodeId == null && !nodeOf(id).flags.ghost", arg=number, timeout=20_000
        )

    def press(self, *keys):
        for key in keys:
            self.keys.press(key)
            self.frames(2)

    def undo(self):
        with self.step_of_history():
            self.keys.press("Control+z")
        self.settled()

    def undo_in(self, number):
        """Undo where the nodes made anew are not editors."""
        with self.step_of_history():
            self.keys.press("Control+z")
        self.rest(700)
        self.settled(number)

    def redo(self, keys="Control+Shift+Z"):
        with self.step_of_history():
            self.keys.press(keys)
        self.settled()

    @contextlib.contextmanager
    def step_of_history(self):
        """Wait for the host to have gone the step: it starts a frame or more after the key and makes its nodes anew."""
        tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
        depth = f"{tracker}.undoQueue.length - {tracker}.redoQueue.length"
        before = self.page.evaluate(depth)
        yield
        self.page.wait_for_function(f"(before) => {depth} !== before", arg=before, polling=30)
        self.page.wait_for_function(f"() => !{tracker}._restoringState", polling=30)
        self.rest(120)

    # The editor's parts

    def part(self, selector, number=1):
        """A locator inside the editor of a node."""
        self.page.evaluate(
            """(id) => {
            document.querySelectorAll(".bw-editor").forEach((each) => each.removeAttribute("data-test"));
            canvasOf(id).closest(".bw-editor").setAttribute("data-test", id);
        }""",
            number,
        )
        return self.page.locator(f'.bw-editor[data-test="{number}"] {selector}')

    def button(self, name, number=1):
        return self.part(f'[data-name="{name}"]', number)

    def menu(self, menu, item, number=1):
        self.button(menu, number).click()
        self.button(item, number).click()
        self.frames(2)

    def row(self, index, selector="", number=1):
        return self.part(f".bw-row:nth-child({index + 1}) {selector}", number)

    def selected(self, number=1):
        """The indices of the rows that are marked as selected."""
        self.frames(2)
        return self.part(".bw-row", number).evaluate_all(
            "(rows) => rows.flatMap((row, index) => row.classList.contains('bw-selected') ? [index] : [])"
        )

    def field(self, label, number=1):
        return self.part(f'.bw-inspector input[aria-label="{label}"]', number)

    def shot(self, name):
        folder = os.environ.get("BOXWRIGHT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=f"{folder}/{name}_{'nodes2' if self.vue else 'classic'}.png")


def run(bench):
    """Press Run and wait for the end; an error of the run fails."""
    bench.page.evaluate("""async () => {
        const { api } = await import("/scripts/api.js");
        window.ended = new Promise((done) => {
            const tell = (event) => done([event.type, event.detail?.exception_message ?? ""]);
            for (const type of ["execution_success", "execution_error", "execution_interrupted"]) {
                api.addEventListener(type, tell, { once: true });
            }
        });
    }""")
    bench.mouse.move(700, 900)  # what the mouse was left on may show words over the button
    bench.page.get_by_role("button", name="Run", exact=True).first.click()
    return bench.page.evaluate("window.ended")


# Finding a node and its canvas, wherever the renderer has put it.
HELPERS = """
window.nodeOf = (id) => {
    const graphs = [app.rootGraph ?? app.graph, ...(app.rootGraph ?? app.graph).subgraphs?.values?.() ?? []];
    return graphs.map((graph) => graph.getNodeById(id)).find(Boolean);
};
window.editorOf = (id) => nodeOf(id)?.widgets?.find((widget) => widget.editor)?.editor;
window.canvasOf = (id) => editorOf(id)?.element.querySelector(".bw-canvas");
"""


def save_settings(url, settings):
    request = urllib.request.Request(
        f"{url}/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request).close()


@contextlib.contextmanager
def open_bench(browser, url, vue, settings=None, **context):
    """A bench in a browser context of its own."""
    save_settings(
        url,
        {
            **SETTINGS,
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.ColorPalette": "dark",
            "Comfy.Locale": "en",
            **(settings or {}),
        },
    )
    with contextlib.closing(browser.new_context(**{"viewport": VIEWPORT, **context})) as made:
        made.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        made.add_init_script(HELPERS)
        bench = Bench(made.new_page(), url, vue)
        bench.open()
        yield bench
