"""The README's five steps and the tutorial, done literally in a real browser: a person's mouse and keyboard, on the toy
model.

Each step of these pages carries in comments what is to be done (`do`) and what must be there then (`see`). What
they name must stand in the visible words of the step as well. Only the size of the pictures and the number of steps are
the test's own. With the classic renderer: in Nodes 2.0 the same mouse would have to find other places.
"""

import json
import re
from pathlib import Path

import pytest
from browser import open_bench, run

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"readme": ROOT / "README.md", "tutorial": ROOT / "docs" / "tutorial.md"}
CHECKPOINT, SIDE, STEPS = "toyworld.safetensors", 256, 6
COMMENT = re.compile(r"<!-- (do|see): (.*?) -->")
BY_TITLE = "(title) => app.graph.nodes.find((node) => node.title === title)"
# The values of widgets that only decide how long the test takes.
SMALLER = """([side, steps]) => {
    for (const node of app.graph.nodes) {
        for (const widget of node.widgets ?? []) {
            if (["width", "height"].includes(widget.name)) widget.value = side;
            if (widget.name === "steps") widget.value = steps;
        }
    }
}"""
# Put a node into the middle of the window, as the wheel and the middle button do. -> its number
LOOK = """([titles, scale]) => {
    const nodes = titles.map((title) => app.graph.nodes.find((node) => node.title === title));
    const left = Math.min(...nodes.map((node) => node.pos[0])), top = Math.min(...nodes.map((node) => node.pos[1]));
    const right = Math.max(...nodes.map((node) => node.pos[0] + node.size[0]));
    const low = Math.max(...nodes.map((node) => node.pos[1] + node.size[1]));
    const { ds, canvas } = app.canvas, rect = canvas.getBoundingClientRect();
    ds.scale = Math.min(scale, 0.7 * rect.width / (right - left), 0.7 * rect.height / (low - top));
    ds.offset[0] = rect.width / 2 / ds.scale - (left + right) / 2;
    ds.offset[1] = rect.height / 2 / ds.scale - (top + low) / 2;
    app.canvas.setDirty(true, true);
    return nodes.map((node) => node.id);
}"""
# A place of the graph on the screen.
SCREEN = """([x, y]) => {
    const rect = app.canvas.canvas.getBoundingClientRect(), { scale, offset } = app.canvas.ds;
    return [rect.x + (x + offset[0]) * scale, rect.y + (y + offset[1]) * scale];
}"""
SLOT = """([id, isInput, name]) => {
    const node = nodeOf(id), slots = isInput ? node.inputs : node.outputs;
    const index = slots.findIndex((slot) => slot.name === name);
    return [...node.getConnectionPos(isInput, index)];
}"""
COMBO = """(id) => {
    const node = nodeOf(id), widget = node.widgets[0];
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10];
}"""
EMPTY = """() => {
    const method = app.graph.nodes.find((node) => node.title === "Region Prompt");
    const low = Math.max(...app.graph.groups.map(({ _bounding: [x, y, width, height] }) => y + height));
    return [method.pos[0] + 20, low + 60];
}"""
TEXTS = "(id) => nodeOf(id).widgets.map((widget) => String(widget.value ?? '')).join('\\n')"


def steps(page):
    """(visible words, [(do or see, [arguments])]) of every numbered step and of every paragraph with a comment."""
    found = []
    for part in re.split(r"\n(?=\d+\. )|\n\n(?=\S)(?!\d+\. )", PAGES[page].read_text("utf-8")):
        orders = [(kind, [each.strip() for each in text.split("|")]) for kind, text in COMMENT.findall(part)]
        if orders:
            found.append((" ".join(COMMENT.sub("", part).split()), orders))
    return found


@pytest.mark.parametrize("page, least", [("readme", 5), ("tutorial", 11)])
def test_a_step_says_in_words_what_the_test_does(page, least):
    assert len(steps(page)) >= least
    for words, orders in steps(page):
        for _, (_, *arguments) in orders:
            assert all(argument in words for argument in arguments), (words, arguments)


class Newcomer:
    """Does what the page says. Each method is the first word of a comment."""

    def __init__(self, bench):
        self.bench, self.page = bench, bench.page
        self.drawn = {}  # title of a Save Image -> the file it showed last

    def look(self, *titles, scale=0.9):
        numbers = self.page.evaluate(LOOK, [list(titles), scale])
        self.bench.rest(300)
        return numbers

    def click_at(self, place, **options):
        self.page.mouse.click(*self.page.evaluate(SCREEN, place), **options)
        self.bench.rest(300)

    def template(self, entry, pack, sought, title):
        self.page.locator(".comfyui-logo").first.click()
        self.page.get_by_text(entry, exact=True).last.click()
        self.page.get_by_text(pack, exact=True).first.click()
        self.page.get_by_placeholder("Search").last.click()
        self.page.keyboard.type(sought)
        self.bench.rest(1500)  # the list is filtered some time after the last key, and cards that move take no click
        self.page.get_by_text(title, exact=True).first.click()
        self.page.wait_for_function("() => app.graph.nodes.some((node) => node.type.startsWith('Boxwright'))")
        self.bench.rest(600)
        self.page.evaluate(SMALLER, [SIDE, STEPS])

    def checkpoint(self, title):
        (number,) = self.look(title)
        self.click_at(self.page.evaluate(COMBO, number))
        self.page.get_by_text(CHECKPOINT, exact=True).last.click()
        self.bench.rest(300)
        assert self.page.evaluate("(id) => nodeOf(id).widgets[0].value", number) == CHECKPOINT

    def full_screen(self, title, key):
        (self.editor,) = self.look(title)
        self.bench.settled(self.editor)
        self.bench.click(0.5, 0.9, number=self.editor)
        self.bench.press(key)
        self.bench.rest(400)

    def delete_last_box(self, key):
        *kept, last = self.bench.boxes(self.editor)
        self.bench.settled(self.editor)
        self.bench.click(last["x"] + last["width"] / 2, last["y"] + last["height"] / 2, number=self.editor)
        self.bench.press(key)
        assert self.bench.boxes(self.editor) == kept
        self.free = last  # where the canvas is empty now

    def drag(self, _):
        x, y, width, height = (100 * self.free[key] for key in ("x", "y", "width", "height"))
        self.draw(x + 1, y + 1, x + width - 1, y + height - 1)

    def draw(self, *percent):
        left, top, right, low = (float(each) / 100 for each in percent)
        self.bench.settled(self.editor)
        self.bench.drag((left, top), (right, low), number=self.editor)

    def type(self, words, key):
        self.page.keyboard.type(words)
        self.page.keyboard.press(key)
        self.bench.rest(200)

    def leave(self, key):
        for _ in range(3):
            self.page.keyboard.press(key)
            self.bench.rest(150)

    def write(self, title, widget, words):
        (number,) = self.look(title)
        old = self.page.evaluate(
            "([id, name]) => nodeOf(id).widgets.find((each) => each.name === name).value", [number, widget]
        )
        fields = self.page.locator("textarea")
        each = [fields.nth(index) for index in range(fields.count())]
        (field,) = [found for found in each if found.is_visible() and found.input_value() == old]
        self.editor = number
        field.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(words)
        self.bench.rest(200)

    def run(self, _):
        assert run(self.bench) == ["execution_success", ""]
        self.bench.rest(300)

    def add(self, title, key):
        self.look("Load Checkpoint", "Region Prompt", "Patched")
        x, y = self.page.evaluate(SCREEN, self.page.evaluate(EMPTY))
        self.bench.open_search(x, y)
        self.page.keyboard.type(title)
        self.bench.rest(900)
        self.page.keyboard.press(key)
        self.page.wait_for_function(f"() => ({BY_TITLE})({json.dumps(title)})")
        self.bench.place_ghost(self.page.evaluate("app.canvas.state.ghostNodeId"), x + 4, y + 4)
        self.bench.rest(300)

    def wire(self, origin, output, target, name):
        out, into = self.look(origin, target)
        start = self.page.evaluate(SCREEN, self.page.evaluate(SLOT, [out, False, output]))
        stop = self.page.evaluate(SCREEN, self.page.evaluate(SLOT, [into, True, name]))
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*stop, steps=10)
        self.bench.frames(3)
        self.page.mouse.up()
        self.bench.rest(200)
        wired = "([id, name]) => nodeOf(id).inputs.find((each) => each.name === name).link"
        link = self.page.evaluate(f"(all) => nodeOf(all[0]).graph.getLink(({wired})(all))?.origin_id", [into, name])
        assert str(link) == str(out), f"no wire from {origin} to {target}"

    # What must be there

    def boxes(self, *phrases):
        assert self.bench.phrases(self.editor) == [*phrases]

    def last_box(self, phrase):
        assert self.bench.phrases(self.editor)[-1] == phrase

    def pictures(self, *titles):
        for title in titles:
            (number,) = self.page.evaluate(LOOK, [[title], 0.9])
            shown = self.page.evaluate("(id) => app.nodeOutputs[id]?.images?.map((each) => each.filename)", number)
            assert shown and shown != self.drawn.get(title), f"{title} shows no new picture"
            self.drawn[title] = shown

    def text(self, title, words):
        (number,) = self.look(title)
        told = self.page.evaluate("(id) => JSON.stringify(app.nodeOutputs[id] ?? {})", number)
        assert words in told + self.page.evaluate(TEXTS, number)


@pytest.mark.every_version
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("version", ["pinned", "newest"])
def test_the_steps_work_as_they_are_written(version, page, request, chromium):
    server = request.getfixturevalue("server" if version == "pinned" else "newest_server")
    with open_bench(chromium, server.url, False) as bench:
        newcomer = Newcomer(bench)
        for words, orders in steps(page):
            for _, (order, *arguments) in orders:
                try:
                    getattr(newcomer, order.replace(" ", "_"))(*arguments)
                except Exception as error:
                    bench.shot(f"{page}_{order.replace(' ', '_')}")
                    raise AssertionError(f"{order} {arguments} failed at: {words}") from error
        assert bench.errors == []
