"""The box editor's life on the page: what it shows, copies, subgraphs, renderers, reloads, zoom, hostile files."""

import io
import json
import urllib.request
import uuid

import pytest
from browser import NEAR, ONE, TWO, box, editor_node, near, run
from PIL import Image


def pixel(bench, x, y, number=1):
    """The colour that the canvas shows at a point of the image, [r, g, b]."""
    bench.frames()
    return bench.page.evaluate(
        """([x, y, id]) => {
        const canvas = canvasOf(id), rect = canvas.getBoundingClientRect(), scale = canvas.width / rect.width;
        return Array.from(canvas.getContext("2d").getImageData((x - rect.x) * scale, (y - rect.y) * scale, 1, 1).data)
            .slice(0, 3);
    }""",
        [*bench.place(x, y, number), number],
    )


def picture_of(bench, number=1):
    """All of the canvas as text."""
    bench.frames()
    return bench.page.evaluate("(id) => canvasOf(id).toDataURL()", number)


def node(kind, number, pos, widgets=(), inputs=(), outputs=()):
    return {
        "id": number,
        "type": kind,
        "pos": list(pos),
        "size": [300, 300],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "properties": {},
        "widgets_values": list(widgets),
    }


def upload(bench, image):
    """Put a picture into the server's input folder; its name there."""
    name, mark = f"{uuid.uuid4().hex}.png", uuid.uuid4().hex
    body = io.BytesIO()
    image.save(body, "PNG")
    data = (
        (
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        + body.getvalue()
        + f"\r\n--{mark}--\r\n".encode()
    )
    request = urllib.request.Request(
        f"{bench.url}/upload/image", data, {"Content-Type": f"multipart/form-data; boundary={mark}"}
    )
    urllib.request.urlopen(request).close()
    return name


# What it shows


def test_an_empty_editor_says_what_to_do(bench):
    bench.load(editor_node())
    bench.shot("empty")
    assert bench.part(".bw-empty").is_visible()
    assert bench.part(".bw-empty strong").inner_text() == "Drag here to draw a box"
    bench.drag((0.1, 0.1), (0.5, 0.5))
    bench.press("Escape")
    assert not bench.part(".bw-empty").is_visible()


def test_boxes_are_drawn_in_order_and_hidden_ones_not_at_all(bench):
    bench.load(editor_node([box("under", 0.1, 0.1, 0.6, 0.6), box("over", 0.4, 0.4, 0.5, 0.5, color="#ff0000")]))
    bench.shot("two")
    both = pixel(bench, 0.55, 0.55)
    alone = pixel(bench, 0.8, 0.8)
    under = pixel(bench, 0.25, 0.25)
    assert alone[0] > alone[1] + 20, "the box has its own colour"
    assert abs(both[0] - alone[0]) + abs(both[1] - alone[1]) < abs(both[0] - under[0]) + abs(both[1] - under[1])
    bench.row(1, ".bw-icon >> nth=0").click()
    bench.mouse.move(5, 5)
    assert pixel(bench, 0.55, 0.55) == under


def test_the_canvas_has_the_shape_of_the_image(bench):
    bench.load(editor_node([ONE], width=1024, height=512))
    (left, top), (right, low) = bench.place(0, 0), bench.place(1, 1)
    assert (right - left) / (low - top) == pytest.approx(2, rel=0.01)
    bench.page.evaluate("""() => {
        nodeOf(1).widgets.find((widget) => widget.name === "width").value = 256;
    }""")
    bench.rest(700)
    (left, top), (right, low) = bench.place(0, 0), bench.place(1, 1)
    assert (right - left) / (low - top) == pytest.approx(0.5, rel=0.01)
    assert bench.boxes() == [ONE], "fractions stay"
    bench.drag((0.35, 0.35), (0.55, 0.45))
    assert bench.rects() == [near([0.4, 0.3, 0.3, 0.3])]


def test_the_connected_image_lies_behind_the_boxes(bench):
    name = upload(bench, Image.new("RGB", (64, 64), (0, 0, 255)))
    loader = node(
        "LoadImage",
        2,
        (-400, 60),
        [name, "image"],
        outputs=[{"name": "IMAGE", "type": "IMAGE", "links": [1]}, {"name": "MASK", "type": "MASK", "links": []}],
    )
    editor = {**editor_node([ONE]), "inputs": [{"name": "image", "type": "IMAGE", "link": 1}]}
    bench.load(loader, editor, links=[[1, 2, 0, 1, 0, "IMAGE"]])
    bench.rest(900)
    paper = pixel(bench, 0.9, 0.1)
    assert paper[2] > 120 and paper[0] < 60, paper
    bench.button("view").click()
    bench.part('[data-view="behind"]').select_option("nothing")
    assert max(pixel(bench, 0.9, 0.1)) - min(pixel(bench, 0.9, 0.1)) < 12
    bench.page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(8, 8), context = canvas.getContext("2d");
        context.fillStyle = "#00ff00";
        context.fillRect(0, 0, 8, 8);
        const { api } = await import("/scripts/api.js");
        api.dispatchCustomEvent("b_preview", await canvas.convertToBlob());
    }""")
    bench.part('[data-view="behind"]').select_option("last")
    bench.rest(300)
    assert pixel(bench, 0.9, 0.1)[1] > 120


@pytest.mark.one_renderer
def test_what_is_covered_is_said_and_the_rest_hatched(bench):
    bench.load(editor_node([box("half", 0, 0, 0.5, 1), box("quarter", 0.25, 0, 0.5, 0.5)]))
    assert bench.part(".bw-status span >> nth=0").inner_text() == "2 boxes · 63 % covered · 13 % overlap"
    before = picture_of(bench)
    bench.button("view").click()
    bench.part('[data-view="gaps"]').check()
    assert picture_of(bench) != before
    bench.press("Escape")
    bench.shot("hatched")


@pytest.mark.one_renderer
def test_small_boxes_and_words_that_the_prompt_lacks_are_marked_while_typing(bench):
    bench.load(editor_node([ONE, box("dot", 0.8, 0.1, 0.03, 0.03)], prompt="a red heart, dots and a dot"))
    bench.frames(4)
    warning = bench.part(".bw-warning")
    assert "too small" in warning.inner_text()
    assert bench.part(".bw-flagged").count() == 1
    bench.row(0, ".bw-phrase").fill("red hear")
    bench.frames(4)
    assert "not in the prompt" in warning.inner_text()
    assert bench.part(".bw-flagged").count() == 2
    bench.row(0, ".bw-phrase").fill("Red  HEART")
    bench.frames(4)
    assert bench.part(".bw-flagged").count() == 1


def test_the_canvas_follows_the_size_of_the_node(bench):
    bench.load(editor_node([ONE]))
    before = bench.part(".bw-canvas").bounding_box()
    bench.page.evaluate("() => { nodeOf(1).setSize([1000, 900]); app.canvas.setDirty(true, true); }")
    bench.rest(300)
    bench.settled()
    after = bench.part(".bw-canvas").bounding_box()
    assert after["width"] > before["width"] + 100 and after["height"] > before["height"] + 60
    bench.drag((0.35, 0.35), (0.55, 0.45))
    assert bench.rects() == [near([0.4, 0.3, 0.3, 0.3])]


@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_it_is_exact_and_sharp_at_any_zoom(bench, scale):
    bench.load(editor_node([ONE], size=(520, 480), pos=(20, 30)), scale=scale)
    bench.rest(600)
    bench.settled()
    bench.drag((0.6, 0.6), (0.9, 0.8))
    bench.press("Escape")
    assert bench.rects()[1] == pytest.approx([0.6, 0.6, 0.3, 0.2], abs=NEAR / min(scale, 1) / 1.5)
    bench.click(0.35, 0.35)
    bench.drag((0.5, 0.5), (0.4, 0.4))
    assert bench.rects()[0] == pytest.approx([0.2, 0.2, 0.2, 0.2], abs=NEAR / min(scale, 1) / 1.5)
    shown = bench.part(".bw-canvas").bounding_box()
    across = bench.page.evaluate("canvasOf(1).width")
    assert across >= 0.9 * shown["width"]


@pytest.mark.every_version
def test_the_wheel_zooms_the_graph_and_scrolls_a_long_list(bench):
    rows = [box(f"thing {number}", 0.1, 0.1, 0.2, 0.2) for number in range(30)]
    bench.load(editor_node(rows))

    def wheel():
        bench.mouse.wheel(0, 120)
        bench.rest(250)
        return bench.page.evaluate("app.canvas.ds.scale"), bench.part(".bw-rows").evaluate("(list) => list.scrollTop")

    bench.row(1, ".bw-phrase").click()  # Nodes 2.0 lets only what has the focus scroll
    assert wheel() == (1, pytest.approx(120, abs=40))
    bench.mouse.move(*bench.place(0.5, 0.9))
    zoomed, scrolled = wheel()
    assert zoomed < 0.99 and scrolled == pytest.approx(120, abs=40)
    bench.settled()
    bench.drag((0.5, 0.5), (0.9, 0.9))
    bench.press("Escape")
    assert bench.rects()[-1] == pytest.approx([0.5, 0.5, 0.4, 0.4], abs=2 * NEAR)


@pytest.mark.parametrize("hand", ["middle button", "space"])
def test_the_graph_is_dragged_through_the_editor(bench, hand):
    bench.load(editor_node([ONE]))
    before = bench.page.evaluate("[...app.canvas.ds.offset]")
    start, stop = bench.place(0.3, 0.3), bench.place(0.5, 0.4)
    bench.mouse.move(*start)
    if hand == "space":
        bench.page.evaluate("app.canvas.canvas.focus()")
        bench.keys.down("Space")
    bench.mouse.down(button="left" if hand == "space" else "middle")
    bench.mouse.move(*stop, steps=4)
    bench.mouse.up(button="left" if hand == "space" else "middle")
    if hand == "space":
        bench.keys.up("Space")
    after = bench.page.evaluate("[...app.canvas.ds.offset]")
    moved = [end - begin for begin, end in zip(before, after, strict=True)]
    assert moved == pytest.approx([stop[0] - start[0], stop[1] - start[1]], abs=12)
    assert bench.boxes() == [ONE]


# The life of a node


@pytest.mark.every_version
def test_two_editors_share_nothing(bench):
    bench.load(editor_node([ONE], size=(500, 640)), editor_node([TWO], number=2, pos=(600, 60), size=(500, 640)))
    bench.drag((0.35, 0.35), (0.55, 0.35))
    bench.drag((0.75, 0.7), (0.65, 0.7), number=2)
    assert bench.rects(1) == [near([0.4, 0.2, 0.3, 0.3])]
    assert bench.rects(2) == [near([0.5, 0.55, 0.3, 0.3])]
    bench.undo()
    assert bench.rects(1) == [near([0.4, 0.2, 0.3, 0.3])] and bench.boxes(2) == [TWO]


@pytest.mark.every_version
def test_a_copied_node_has_a_drawing_of_its_own_and_undo_takes_it_away(bench):
    bench.load(editor_node([ONE], size=(500, 640)))
    bench.page.evaluate("""() => {
        app.canvas.select(nodeOf(1));
        app.canvas.copyToClipboard();
        app.canvas.graph_mouse[0] = 600; app.canvas.graph_mouse[1] = 60;
        app.canvas.pasteFromClipboard();
    }""")
    copy = bench.page.evaluate("app.graph.nodes.find((node) => node.id != 1).id")
    bench.settled(copy)
    bench.rest(250)  # the page has laid the new node out, or its size would be a step of its own
    # The host numbers the nodes in their order when it loads a workflow, as its undo does, and not when it pastes one:
    # a key let go in the moment before the next undo would find another number, and make that a step.
    bench.page.evaluate("() => { app.graph.updateExecutionOrder(); }")
    bench.remember()
    bench.page.evaluate("() => { app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length = 1; }")
    assert bench.boxes(copy) == [ONE]
    bench.drag((0.35, 0.35), (0.55, 0.35), number=copy)
    assert bench.rects(copy) == [near([0.4, 0.2, 0.3, 0.3])] and bench.boxes(1) == [ONE]
    bench.undo()
    assert bench.boxes(copy) == [ONE]
    bench.undo()
    assert bench.page.evaluate("app.graph.nodes.length") == 1 and bench.boxes(1) == [ONE]


@pytest.mark.every_version
def test_a_collapsed_editor_comes_back(bench):
    bench.load(editor_node([ONE]))
    for _ in range(2):
        bench.page.evaluate("nodeOf(1).collapse()")
        bench.rest(250)
    bench.settled()
    bench.drag((0.35, 0.35), (0.55, 0.35))
    assert bench.rects() == [near([0.4, 0.2, 0.3, 0.3])]


@pytest.mark.every_version
def test_an_editor_works_inside_a_subgraph(bench):
    bench.load(editor_node([ONE]))
    bench.page.evaluate("""() => {
        const { subgraph } = app.graph.convertToSubgraph(new Set([nodeOf(1)]));
        app.canvas.setGraph(subgraph);
        const inner = subgraph.nodes[0];
        window.innerId = inner.id;
        inner.pos = [80, 60];
        app.canvas.setDirty(true, true);
    }""")
    number = bench.page.evaluate("window.innerId")
    bench.rest(400)
    bench.settled(number)
    bench.drag((0.35, 0.35), (0.55, 0.35), number=number)
    saved = bench.page.evaluate("app.rootGraph.serialize().definitions.subgraphs[0].nodes[0].widgets_values[0]")
    [region] = json.loads(saved)["regions"]
    assert [region["x"], region["y"]] == near([0.4, 0.2])
    bench.page.evaluate("app.canvas.setGraph(app.rootGraph)")


@pytest.mark.every_version
def test_switching_the_renderer_loses_nothing(bench):
    bench.load(editor_node([ONE]))
    for vue in (not bench.vue, bench.vue):
        bench.page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
        bench.rest(700)
        bench.settled()
        before = bench.rects()[0][0]
        bench.drag((before + 0.1, 0.3), (before + 0.2, 0.3))
        assert bench.rects()[0][0] == pytest.approx(before + 0.1, abs=NEAR)


@pytest.mark.every_version
def test_a_shared_workflow_looks_the_same_after_a_reload(bench):
    bench.load(editor_node([{**ONE, "color": "#00aa88", "strength": 0.4, "unknown": {"a": [1]}}, TWO], gaps=True))
    bench.drag((0.35, 0.35), (0.45, 0.4))
    bench.press("Escape")
    bench.mouse.move(5, 5)
    saved = bench.page.evaluate("app.graph.serialize()")
    text, picture = bench.text(), picture_of(bench)
    bench.open()
    bench.load(saved["nodes"][0])
    bench.mouse.move(5, 5)
    bench.page.evaluate("document.activeElement?.blur()")
    assert bench.text() == text
    assert json.loads(text)["regions"][0]["unknown"] == {"a": [1]}
    assert picture_of(bench) == picture


@pytest.mark.one_renderer
def test_opening_and_looking_changes_nothing(bench):
    text = json.dumps({"type": "boxwright.regions", "version": 1, "by": "hand", "regions": [ONE]}, indent=3)
    bench.load(editor_node(text=text))
    bench.click(0.35, 0.35)
    bench.click(0.9, 0.9)
    bench.press("Tab", "Escape")
    assert bench.text() == text
    bench.drag((0.35, 0.35), (0.45, 0.35))
    assert bench.drawing()["by"] == "hand"
    bench.undo()
    assert bench.text() == text


def test_the_themes_are_followed(bench):
    bench.load(editor_node([ONE, TWO]))
    dark = pixel(bench, 0.95, 0.05)
    bench.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    bench.rest(1200)
    light = pixel(bench, 0.95, 0.05)
    bench.shot("light")
    bench.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    bench.rest(900)
    assert sum(dark) < 200 and sum(light) > 600


# Files that mean harm

EVIL = "<img src=x onerror='window.harmed=1'><script>window.harmed=1</script>{{constructor.constructor('harmed=1')()}}"


def drawing_text(*regions, **more):
    return json.dumps({"type": "boxwright.regions", "version": 1, "regions": list(regions), **more})


HOSTILE = [
    ("[" * 200_000, "not valid JSON"),
    ("[" * 5000 + "]" * 5000, "nested"),
    (json.dumps("x" * 1_200_000), "characters long"),
    (drawing_text(*[ONE] * 65), "holds 65 boxes"),
    ('{"type":"boxwright.regions","version":1,"regions":[' + ",".join(["{}"] * 100_000) + "]}", "holds 100000 boxes"),
    (drawing_text({**ONE, "x": 1e308}), "outside the image"),
    (drawing_text({**ONE, "x": 77}).replace("77", "1e999"), "number"),
    (drawing_text({**ONE, "x": "0"}), "not an ordinary number"),
    (drawing_text({**ONE, "phrase": {"a": 1}}), "not text"),
    (drawing_text({**ONE, "color": "url(javascript:alert(1))"}), "colour"),
    (drawing_text({**ONE, "enabled": 1}), "neither true nor false"),
    (drawing_text([1, 2]), "not an object"),
    (json.dumps({"type": EVIL, "version": 1, "regions": []}), "not a drawing"),
    (json.dumps({"type": "boxwright.regions", "version": 99, "regions": []}), "newer"),
    ("null", "not a drawing"),
]


@pytest.mark.every_version
def test_hostile_files_are_messages_and_the_rest_of_the_graph_loads(bench):
    """All of them in one graph."""
    places = [(20 + 380 * (index % 4), 20 + 480 * (index // 4)) for index in range(len(HOSTILE))]
    editors = [
        editor_node(number=number, text=text, pos=place, size=(360, 440))
        for number, ((text, _), place) in enumerate(zip(HOSTILE, places, strict=True), 1)
    ]
    sound = editor_node([ONE], number=90, pos=(1600, 20))
    bench.load(*editors, sound, node("Note", 91, (1600, 800), ["still here"]), scale=0.4)
    bench.frames(4)
    for number, (text, words) in enumerate(HOSTILE, 1):
        trouble = bench.part(".bw-trouble", number)
        assert trouble.is_visible() and words in trouble.inner_text(), words
        assert len(trouble.inner_text()) < 400
        assert bench.text(number) == text, "what cannot be read is not thrown away"
    assert bench.page.evaluate("nodeOf(91).widgets[0].value") == "still here"
    bench.drag((0.35, 0.35), (0.55, 0.35), number=90)
    assert bench.rects(90) == [pytest.approx([0.4, 0.2, 0.3, 0.3], abs=4 * NEAR)]


@pytest.mark.one_renderer
def test_what_cannot_be_read_cannot_be_edited_but_started_over(bench):
    text = drawing_text({**ONE, "x": 1e308})
    bench.load(editor_node(text=text))
    bench.frames(4)
    trouble = bench.part(".bw-trouble")
    bench.click(0.5, 0.5)
    bench.part(".bw-canvas").focus()
    bench.press("Control+v", "Control+d", "Delete", "ArrowLeft")
    assert bench.button("addBox").is_disabled() and bench.button("arrange").is_disabled()
    assert bench.text() == text
    bench.button("startOver").click()
    bench.frames()
    assert bench.boxes() == [] and not trouble.is_visible()
    bench.undo()
    assert bench.text() == text


@pytest.mark.one_renderer
def test_wrong_types_in_the_saved_node_do_no_harm(bench):
    for value in (None, 5, [ONE], {"regions": []}):
        broken = editor_node()
        broken["widgets_values"][0] = value
        broken["properties"]["boxwright.view"] = {"grid": "x", "snap": 3, "behind": {}}
        bench.load(broken)
        bench.frames(3)
        assert bench.part(".bw-trouble").is_visible() == (value is not None), value
    bench.button("startOver").click()
    bench.drag((0.1, 0.1), (0.4, 0.4))
    bench.press("Escape")
    assert bench.rects() == [near([0.1, 0.1, 0.3, 0.3])]
    assert bench.errors == []


@pytest.mark.every_version
def test_markup_and_prototype_keys_are_only_text(bench):
    text = drawing_text({**ONE, "phrase": EVIL, "negative": EVIL}, TWO, **{EVIL: EVIL})
    text = text.replace('"regions":', '"__proto__": {"polluted": 1}, "regions":')
    keys = '"__proto__": {"polluted": 1}, "constructor": {"prototype": 1}, '
    text = text.replace('"phrase": "blue', keys + '"phrase": "blue')
    bench.load(editor_node(text=text))
    bench.click(0.35, 0.35)
    bench.double_click(0.35, 0.35)
    bench.press("Escape")
    bench.drag((0.75, 0.7), (0.7, 0.7))
    bench.rest(200)
    assert bench.page.evaluate("window.harmed") is None
    assert bench.page.evaluate("({}).polluted") is None
    assert bench.part(":is(img, script)").count() == 0
    first, second = bench.boxes()
    assert first["phrase"] == EVIL and second["constructor"] == {"prototype": 1}
    assert json.loads(bench.text())["__proto__"] == {"polluted": 1}


@pytest.mark.one_renderer
def test_pasting_anything_else_changes_nothing(bench):
    bench.load(editor_node([ONE]))
    bench.click(0.9, 0.9)
    for pasted in (
        "",
        "hello",
        "{",
        "[" * 50_000,
        '{"nodes": []}',
        "[[[[1]]]]",
        '[{"x": "a"}]',
        '{"x": 1e999, "y": 0, "width": 1, "height": 1}',
        "[" + "{}," * 70 + "{}]",
        EVIL,
    ):
        bench.page.evaluate("(text) => navigator.clipboard.writeText(text)", pasted)
        bench.press("Control+v")
        assert bench.boxes() == [ONE], pasted[:40]
    assert bench.page.evaluate("[app.graph.nodes.length, window.harmed ?? null]") == [1, None]


@pytest.mark.one_renderer
def test_pasting_a_drawing_over_and_over_ends_at_the_limit(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.part("canvas").focus()
    for _ in range(7):  # what was copied is all there is: twice as much each time
        bench.press("Control+a", "Control+c", "Control+v")
    assert len(bench.boxes()) == 64
    assert len({tuple(rect) for rect in bench.rects()}) > 6


# Runs


@pytest.mark.every_version
def test_connected_boxes_come_in_once_and_edits_win_until_they_change(bench):
    def text_node(words):
        return node(
            "PrimitiveString", 2, (-400, 60), [words], outputs=[{"name": "STRING", "type": "STRING", "links": [1]}]
        )

    editor = {**editor_node(), "inputs": [{"name": "boxes", "type": "*", "link": 1}]}
    boxes = [{"x": 64, "y": 64, "width": 128, "height": 128, "label": "cat"}]
    bench.load(text_node(json.dumps(boxes)), editor, links=[[1, 2, 0, 1, 0, "STRING"]])
    assert run(bench) == ["execution_success", ""]
    bench.frames(5)
    assert bench.phrases() == ["cat"] and bench.rects() == [[0.125, 0.125, 0.25, 0.25]]
    bench.drag((0.25, 0.25), (0.45, 0.25))
    moved = bench.rects()
    assert moved == [near([0.325, 0.125, 0.25, 0.25])]
    assert run(bench) == ["execution_success", ""]
    bench.frames(5)
    assert bench.rects() == moved
    other = json.dumps([{**boxes[0], "label": "dog"}])
    bench.page.evaluate("(words) => { nodeOf(2).widgets[0].value = words; }", other)
    assert run(bench) == ["execution_success", ""]
    bench.frames(5)
    assert bench.phrases() == ["dog"]
    bench.part(".bw-canvas").focus()
    bench.undo()
    assert bench.phrases() == ["cat"] and bench.rects() == moved


@pytest.mark.every_version
def test_a_number_out_of_its_range_is_said_and_mended_on_demand(bench):
    """Python refuses it; the editor shows what it can, changes nothing by itself, and offers the way out."""
    wild = box("red heart", 0.2, 0.2, 0.3, 0.3, strength=7, end_frame=-2)
    bench.load(editor_node([wild, TWO]))
    words = "Box 1: Strength 7 is outside 0 to 1 and shown as 1. Run refuses it until it is mended."
    assert bench.part(".bw-warning").inner_text() == words
    assert words in bench.row(0, ".bw-phrase").get_attribute("aria-label")
    bench.drag((0.75, 0.7), (0.65, 0.7))
    assert bench.boxes()[0] == wild
    bench.button("mend").click()
    bench.frames()
    mended = bench.boxes()[0]
    assert (mended["strength"], mended["end_frame"]) == (1, 1) and bench.part(".bw-warning").inner_text() == ""
    assert bench.button("mend").count() == 0
    assert run(bench) == ["execution_success", ""]
    bench.part(".bw-canvas").focus()
    bench.undo()
    assert bench.boxes()[0] == wild and bench.part(".bw-warning").inner_text() == words
