"""Every gesture of the box editor, by mouse and keyboard in the real frontend: both renderers, two versions of it.

Each test reads back what the workflow keeps. Places are fractions of the image.
"""

import json

import pytest
from browser import ONE, TWO, box, editor_node, near

pytestmark = pytest.mark.usefixtures("no_errors")


# Drawing


@pytest.mark.every_version
def test_a_drag_on_empty_canvas_draws_a_box_and_asks_for_its_words(bench):
    bench.load(editor_node())
    bench.drag((0.1, 0.2), (0.5, 0.7))
    bench.keys.type("red heart")
    bench.press("Enter")
    assert bench.rects() == [near([0.1, 0.2, 0.4, 0.5])]
    assert bench.phrases() == ["red heart"]
    assert bench.drawing()["version"] == 1


@pytest.mark.one_renderer
def test_a_drag_from_any_corner_draws_the_same_box(bench):
    bench.load(editor_node())
    bench.drag((0.5, 0.7), (0.1, 0.2))
    bench.press("Escape")
    assert bench.rects() == [near([0.1, 0.2, 0.4, 0.5])]


@pytest.mark.one_renderer
def test_a_box_drawn_past_the_edge_stops_there(bench):
    bench.load(editor_node())
    bench.drag((0.6, 0.6), (1.02, 1.02))
    bench.press("Escape")
    [[x, y, width, height]] = bench.rects()
    assert [x + width, y + height] == [1, 1]


def test_a_click_on_empty_canvas_draws_nothing(bench):
    bench.load(editor_node([ONE]))
    bench.click(0.3, 0.3)
    assert bench.selected() == [0]
    bench.click(0.8, 0.2)
    assert bench.selected() == [] and len(bench.boxes()) == 1


@pytest.mark.every_version
def test_control_drag_draws_over_a_box(bench):
    bench.load(editor_node([box("sky", 0, 0, 1, 1)]))
    bench.drag((0.2, 0.2), (0.6, 0.5), "Control")
    bench.keys.type("bird")
    bench.press("Enter")
    assert bench.rects()[1] == near([0.2, 0.2, 0.4, 0.3])
    assert bench.phrases() == ["sky", "bird"]
    assert bench.rects()[0] == [0, 0, 1, 1]


def test_the_button_adds_a_box_where_the_canvas_is_full(bench):
    bench.load(editor_node([box("sky", 0, 0, 1, 1)]))
    bench.button("addBox").click()
    bench.keys.type("moon")
    bench.press("Enter")
    bench.button("addBox").click()
    bench.press("Escape")
    assert bench.phrases() == ["sky", "moon", ""]
    assert bench.rects()[1] != bench.rects()[2], "a second new box must not cover the first"


# Moving and resizing


@pytest.mark.every_version
def test_a_drag_moves_a_box_and_stops_at_the_edge(bench):
    bench.load(editor_node([ONE]))
    bench.drag((0.35, 0.35), (0.55, 0.25))
    assert bench.rects() == [near([0.4, 0.1, 0.3, 0.3])]
    bench.drag((0.55, 0.25), (1.0, 0.25))
    [[x, _, width, _]] = bench.rects()
    assert x + width == pytest.approx(1, abs=2e-6) and width == 0.3


HANDLES = [
    ("nw", (0.2, 0.2), (0.1, 0.15), [0.1, 0.15, 0.4, 0.35]),
    ("n", (0.35, 0.2), (0.4, 0.1), [0.2, 0.1, 0.3, 0.4]),
    ("ne", (0.5, 0.2), (0.6, 0.1), [0.2, 0.1, 0.4, 0.4]),
    ("e", (0.5, 0.35), (0.7, 0.4), [0.2, 0.2, 0.5, 0.3]),
    ("se", (0.5, 0.5), (0.7, 0.6), [0.2, 0.2, 0.5, 0.4]),
    ("s", (0.35, 0.5), (0.4, 0.7), [0.2, 0.2, 0.3, 0.5]),
    ("sw", (0.2, 0.5), (0.1, 0.7), [0.1, 0.2, 0.4, 0.5]),
    ("w", (0.2, 0.35), (0.3, 0.4), [0.3, 0.2, 0.2, 0.3]),
]


def test_every_handle_resizes(bench):
    bench.load(editor_node())
    for handle, start, stop, expected in HANDLES:
        bench.put(ONE)
        bench.click(0.35, 0.35)
        bench.drag(start, stop)
        assert bench.rects() == [near(expected)], handle


@pytest.mark.one_renderer
def test_a_handle_dragged_past_the_other_side_turns_the_box_over(bench):
    bench.load(editor_node([ONE]))
    bench.click(0.35, 0.35)
    bench.drag((0.5, 0.35), (0.1, 0.35))
    assert bench.rects() == [near([0.1, 0.2, 0.1, 0.3])]


def test_shift_keeps_the_aspect(bench):
    bench.load(editor_node([box("wide", 0.2, 0.2, 0.4, 0.2)]))
    bench.click(0.4, 0.3)
    bench.drag((0.6, 0.4), (0.8, 0.45), "Shift")
    assert bench.rects() == [near([0.2, 0.2, 0.6, 0.3])]


def test_alt_resizes_from_the_centre(bench):
    bench.load(editor_node([ONE]))
    bench.click(0.35, 0.35)
    bench.drag((0.5, 0.35), (0.6, 0.35), "Alt")
    assert bench.rects() == [near([0.1, 0.2, 0.5, 0.3])]


def test_escape_cancels_the_drag_under_way(bench):
    bench.load(editor_node([ONE]))
    before, depth = bench.text(), bench.undo_depth()
    bench.drag((0.35, 0.35), (0.7, 0.7), release=False)
    bench.press("Escape")
    bench.mouse.up()
    bench.frames()
    assert bench.text() == before
    assert bench.undo_depth() == depth
    bench.drag((0.35, 0.35), (0.45, 0.35))
    assert bench.rects() == [near([0.3, 0.2, 0.3, 0.3])]


# Several boxes


@pytest.mark.every_version
def test_shift_click_selects_several_and_they_move_together(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    bench.click(0.7, 0.7, "Shift")
    assert bench.selected() == [0, 1]
    bench.drag((0.3, 0.3), (0.35, 0.4))
    assert bench.rects() == [near([0.25, 0.3, 0.3, 0.3]), near([0.65, 0.65, 0.3, 0.3])]
    bench.click(0.7, 0.7, "Shift")
    assert bench.selected() == [0]


def test_a_marquee_selects_what_it_touches_and_the_group_resizes(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.drag((0.1, 0.1), (0.7, 0.7), "Shift")
    assert bench.selected() == [0, 1]
    bench.drag((0.9, 0.85), (0.55, 0.525))
    assert bench.rects() == [near([0.2, 0.2, 0.15, 0.15]), near([0.4, 0.375, 0.15, 0.15])]


@pytest.mark.one_renderer
def test_a_group_stops_at_the_edge_as_one(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.drag((0.1, 0.1), (0.7, 0.7), "Shift")
    bench.drag((0.3, 0.3), (1.0, 0.3))
    first, second = bench.rects()
    assert second[0] + second[2] == pytest.approx(1, abs=2e-6)
    assert second[0] - first[0] == pytest.approx(0.4, abs=1e-5)


def test_a_click_cycles_through_overlapping_boxes(bench):
    bench.load(
        editor_node([box("low", 0.1, 0.1, 0.8, 0.8), box("mid", 0.2, 0.2, 0.6, 0.6), box("top", 0.3, 0.3, 0.4, 0.4)])
    )
    seen = []
    for _ in range(4):
        bench.click(0.5, 0.5)
        seen += bench.selected()
    assert seen == [2, 1, 0, 2]


# Copies


def test_alt_drag_makes_a_copy(bench):
    bench.load(editor_node([box("red heart", 0.2, 0.2, 0.3, 0.3, strength=0.5, mine={"kept": True})]))
    bench.drag((0.35, 0.35), (0.65, 0.55), "Alt")
    first, second = bench.boxes()
    assert first["x"] == 0.2 and [second["x"], second["y"]] == near([0.5, 0.4])
    assert second["phrase"] == "red heart" and second["strength"] == 0.5 and second["mine"] == {"kept": True}


@pytest.mark.every_version
def test_control_d_duplicates_the_selection(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    bench.press("Control+d")
    assert bench.phrases() == ["red heart", "blue star", "red heart"]
    assert bench.selected() == [2]
    assert bench.rects()[2] == near([0.23, 0.23, 0.3, 0.3])


@pytest.mark.every_version
def test_copy_and_paste_between_editors(bench):
    bench.load(editor_node([ONE, TWO], size=(500, 640)), editor_node(number=2, pos=(600, 60), size=(500, 640)))
    bench.click(0.3, 0.3)
    bench.press("Control+c")
    bench.click(0.5, 0.5, number=2)
    bench.press("Control+v")
    assert bench.boxes(2) == [ONE]
    bench.press("Control+v")
    assert bench.phrases(2) == ["red heart"] * 2 and bench.rects(2)[0] != bench.rects(2)[1]
    assert len(bench.boxes()) == 2
    assert bench.page.evaluate("app.graph.nodes.length") == 2, "the host must not have pasted nodes"
    bench.undo()
    assert bench.boxes(2) == [ONE]
    bench.undo()
    assert bench.boxes(2) == [] and bench.boxes() == [ONE, TWO]


def test_cut_takes_the_boxes_away(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    bench.press("Control+x")
    assert bench.phrases() == ["blue star"]
    bench.press("Control+v")
    assert bench.boxes() == [TWO, ONE]


FOREIGN = [
    ('[{"x": 128, "y": 64, "width": 256, "height": 128, "label": "cat"}]', ("cat", [0.25, 0.125, 0.5, 0.25])),
    ('[{"bbox": [100, 200, 600, 700], "desc": "dog"}]', ("dog", [0.2, 0.1, 0.5, 0.5])),
    ('{"x": 0.5, "y": 0.5, "width": 0.25, "height": 0.25}', ("", [0.5, 0.5, 0.25, 0.25])),
    ('[{"bbox": [256, 128, 512, 384], "label": "owl"}]', ("owl", [0.5, 0.25, 0.5, 0.5])),
    ('A cat <obj_1>. [{"id":"obj_1","bbox":[0,0,500,1000],"desc":"a cat"}]', ("a cat", [0, 0, 1, 0.5])),
]


@pytest.mark.one_renderer
def test_boxes_of_other_programs_paste_as_json(bench):
    bench.load(editor_node())
    bench.click(0.5, 0.5)
    for pasted, (phrase, rect) in FOREIGN:
        bench.page.evaluate("(text) => navigator.clipboard.writeText(text)", pasted)
        bench.press("Control+v")
        assert (bench.phrases()[-1], bench.rects()[-1]) == (phrase, near(rect))
    assert len(bench.boxes()) == len(FOREIGN)
    assert "read as [top, left, bottom, right] in thousandths" in bench.page.locator(".p-toast").first.inner_text()
    bench.page.evaluate("navigator.clipboard.writeText('[[100, 100, 200, 200]]')")
    bench.press("Control+v")
    assert len(bench.boxes()) == len(FOREIGN)
    assert "Write xyxy or xywh in front" in bench.page.locator(".p-toast").first.inner_text()


def test_a_whole_drawing_goes_out_and_in_as_json(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.button("view").click()
    bench.part(':text("Copy as JSON")').click()
    copied = bench.page.evaluate("navigator.clipboard.readText()")
    assert json.loads(copied)["regions"] == [ONE, TWO]
    bench.load(editor_node())
    bench.button("view").click()
    bench.part(':text("Paste JSON")').click()
    bench.rest(200)
    assert bench.boxes() == [ONE, TWO]


# Keys


@pytest.mark.every_version
def test_delete_removes_boxes_and_not_the_node(bench):
    bench.load(editor_node([ONE, TWO]))
    for key in ("Delete", "Backspace"):
        bench.put(ONE, TWO)
        bench.click(0.3, 0.3)
        bench.press(key)
        assert bench.phrases() == ["blue star"]
        bench.press(key)  # nothing is selected now
        assert bench.phrases() == ["blue star"]


def test_delete_in_a_field_deletes_letters(bench):
    bench.load(editor_node([ONE]))
    bench.row(0, ".bw-phrase").click()
    bench.press("End", "Backspace")
    assert bench.phrases() == ["red hear"]


def test_arrows_move_by_pixels(bench):
    bench.load(editor_node([ONE], width=512, height=256))
    bench.click(0.35, 0.35)
    bench.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert bench.rects()[0][:2] == pytest.approx([0.2 + 2 / 512, 0.2 + 1 / 256], abs=2e-6)
    bench.press("Shift+ArrowLeft", "Shift+ArrowUp")
    assert bench.rects()[0][:2] == pytest.approx([0.2 - 8 / 512, 0.2 - 9 / 256], abs=2e-6)


@pytest.mark.every_version
def test_a_held_arrow_is_one_step_to_undo(bench):
    bench.load(editor_node([ONE]))
    bench.click(0.35, 0.35)
    depth = bench.undo_depth()
    for _ in range(12):  # a key that repeats comes down many times and up once
        bench.keys.down("ArrowRight")
    bench.keys.up("ArrowRight")
    bench.frames()
    assert bench.rects()[0][0] == pytest.approx(0.2 + 12 / 512, abs=2e-5)
    assert bench.undo_depth() == depth + 1
    bench.undo()
    assert bench.boxes() == [ONE]


def test_tab_goes_from_box_to_box_and_escape_leaves(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.9, 0.1)
    seen = []
    for keys in ("Tab", "Tab", "Tab", "Shift+Tab"):
        bench.press(keys)
        seen += bench.selected()
    assert seen == [0, 1, 0, 1]
    bench.press("Escape")
    assert bench.selected() == []
    bench.press("Escape", "Tab")
    assert bench.page.evaluate("document.activeElement.className") != "bw-canvas"
    assert bench.selected() == []


@pytest.mark.one_renderer
def test_everything_works_from_the_keyboard_alone(bench):
    bench.load(editor_node())
    bench.button("addBox").focus()
    bench.press("Enter")
    bench.keys.type("red heart")
    bench.press("Enter", "Shift+ArrowLeft", "Control+d", "Enter")
    bench.keys.type("blue star")
    bench.press("Enter")
    assert bench.phrases() == ["red heart", "blue star"]
    assert bench.rects()[0][0] == pytest.approx(1 / 3 - 10 / 512, abs=1e-4)


def test_letters_typed_into_the_editor_reach_no_shortcut_of_the_host(bench):
    bench.load(editor_node())
    bench.drag((0.1, 0.1), (0.5, 0.5))
    bench.keys.type("w r g . q nm")  # shortcuts of the host: sidebars, refresh, group
    bench.press("Enter")
    assert bench.phrases() == ["w r g . q nm"]
    assert bench.page.evaluate("app.extensionManager.sidebarTab?.activeSidebarTabId ?? null") is None
    assert bench.page.evaluate("[app.graph.nodes.length, app.graph.groups.length, nodeOf(1).mode]") == [1, 0, 0]


# Undo


@pytest.mark.every_version
def test_undo_and_redo_take_every_edit_once(bench):
    bench.load(editor_node())
    states = [bench.text()]

    def did(act):
        act()
        bench.frames()
        assert bench.text() != states[-1]
        states.append(bench.text())

    did(lambda: (bench.drag((0.1, 0.1), (0.4, 0.4)), bench.press("Escape")))
    did(lambda: (bench.double_click(0.25, 0.25), bench.keys.type("red heart"), bench.press("Enter")))
    did(lambda: bench.drag((0.25, 0.25), (0.45, 0.35)))
    did(lambda: bench.drag((0.6, 0.5), (0.7, 0.6)))
    did(lambda: bench.press("ArrowLeft"))
    did(lambda: bench.press("Control+d"))
    did(lambda: bench.row(0, ".bw-check").click())
    did(lambda: bench.menu("arrange", "background"))
    did(lambda: (bench.field("Strength").last.fill("0.5"), bench.press("Enter")))
    bench.part(".bw-canvas").focus()
    did(lambda: bench.press("Delete"))
    assert bench.undo_depth() == len(states) - 1
    for state in reversed(states[:-1]):
        bench.undo()
        assert bench.text() == state
    for number, state in enumerate(states[1:]):
        bench.redo("Control+y" if number % 2 else "Control+Shift+Z")
        assert bench.text() == state


def test_the_buttons_undo_and_redo_too(bench):
    bench.load(editor_node([ONE]))
    bench.drag((0.35, 0.35), (0.5, 0.35))
    after = bench.text()
    with bench.step_of_history():
        bench.button("undo").click()
    bench.settled()
    assert bench.boxes() == [ONE]
    with bench.step_of_history():
        bench.button("redo").click()
    bench.settled()
    assert bench.text() == after
    assert bench.button("redo").is_disabled()


@pytest.mark.every_version
def test_undo_brings_the_selection_back_and_keeps_the_focus(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    bench.press("Delete")
    bench.undo()
    bench.rest(300)
    assert bench.phrases() == ["red heart", "blue star"]
    assert bench.selected() == [0]
    bench.press("ArrowRight")
    assert bench.rects()[0][0] == pytest.approx(0.2 + 1 / 512, abs=2e-6)


@pytest.mark.every_version
def test_a_new_box_and_its_words_are_one_step_to_undo(bench):
    bench.load(editor_node([ONE]))
    depth = bench.undo_depth()
    bench.drag((0.6, 0.6), (0.9, 0.9))
    bench.keys.type("blue star")
    bench.press("Enter")
    assert bench.undo_depth() == depth + 1
    bench.button("addBox").click()
    bench.keys.type("moon")
    bench.press("Enter")
    assert bench.phrases() == ["red heart", "blue star", "moon"] and bench.undo_depth() == depth + 2
    bench.undo()
    bench.undo()
    assert bench.boxes() == [ONE]
    bench.redo()
    assert bench.phrases() == ["red heart", "blue star"]


def test_run_by_key_while_writing_keeps_the_box(bench):
    bench.load(editor_node())
    bench.drag((0.1, 0.1), (0.4, 0.4))
    bench.keys.type("red heart")
    bench.page.evaluate("""async () => {
        const { api } = await import("/scripts/api.js"), real = api.queuePrompt;
        api.queuePrompt = async (number, prompt) => { window.sent = prompt.output; api.queuePrompt = real; return {}; };
    }""")
    bench.press("Control+Enter")
    bench.page.wait_for_function("() => window.sent")
    text = bench.page.evaluate("Object.values(window.sent)[0].inputs.regions_json")
    assert [region["phrase"] for region in json.loads(text)["regions"]] == ["red heart"]


def test_undo_right_after_drawing_takes_the_box_away(bench):
    bench.load(editor_node())
    bench.drag((0.1, 0.1), (0.4, 0.4))
    bench.undo()
    assert bench.boxes() == []


@pytest.mark.one_renderer
def test_undo_of_other_nodes_leaves_the_drawing_alone(bench):
    bench.load(editor_node([ONE]))
    bench.drag((0.35, 0.35), (0.5, 0.35))
    drawn = bench.text()
    bench.page.evaluate("""() => {
        const note = LiteGraph.createNode("Note");
        app.graph.add(note);
    }""")
    bench.remember()
    bench.undo()
    assert bench.text() == drawn
    bench.undo()
    assert bench.boxes() == [ONE]


# Words and settings of a box


@pytest.mark.every_version
def test_a_double_click_writes_on_the_canvas_and_escape_takes_it_back(bench):
    bench.load(editor_node([ONE]))
    bench.double_click(0.35, 0.35)
    bench.keys.type("green tree")
    bench.press("Enter")
    assert bench.phrases() == ["green tree"]
    bench.double_click(0.35, 0.35)
    bench.keys.type("something else")
    bench.press("Escape")
    assert bench.phrases() == ["green tree"]


def test_the_list_renames(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.row(1, ".bw-phrase").fill("yellow moon")
    bench.press("Enter")
    assert bench.phrases() == ["red heart", "yellow moon"]


def test_the_list_and_the_canvas_select_for_each_other(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.row(1, ".bw-chip").click()
    assert bench.selected() == [1]
    bench.drag((0.75, 0.85), (0.75, 0.95))  # the lower handle of the selected box
    assert bench.rects()[1] == near([0.6, 0.55, 0.3, 0.4])
    bench.click(0.3, 0.3)
    assert bench.selected() == [0]


@pytest.mark.every_version
def test_the_list_toggles_and_keeps_what_it_toggles(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.row(0, ".bw-check").click()
    bench.row(0, ".bw-icon >> nth=0").click()
    bench.row(1, ".bw-icon >> nth=1").click()
    first, second = bench.boxes()
    assert (first["enabled"], first["hidden"], second["locked"]) == (False, True, True)
    bench.row(0, ".bw-check").click()
    bench.row(0, ".bw-icon >> nth=0").click()
    assert bench.boxes()[0] == ONE


def test_hidden_and_locked_boxes_let_the_mouse_through(bench):
    bench.load(editor_node([ONE, box("lid", 0, 0, 1, 1, locked=True), box("fog", 0, 0, 1, 1, hidden=True)]))
    bench.drag((0.35, 0.35), (0.55, 0.35))
    assert bench.rects() == [near([0.4, 0.2, 0.3, 0.3]), [0, 0, 1, 1], [0, 0, 1, 1]]
    bench.row(1, ".bw-chip").click()
    bench.part(".bw-canvas").focus()
    bench.press("Delete", "ArrowRight")
    assert len(bench.boxes()) == 3 and bench.rects()[1] == [0, 0, 1, 1]


@pytest.mark.every_version
def test_the_order_changes_by_drag_and_by_keyboard(bench):
    bench.load(editor_node([ONE, TWO, box("moon", 0.1, 0.7, 0.2, 0.2)]))
    chip, last = bench.row(0, ".bw-chip").bounding_box(), bench.row(2).bounding_box()
    bench.mouse.move(chip["x"] + 8, chip["y"] + 8)
    bench.mouse.down()
    bench.mouse.move(chip["x"] + 8, last["y"] + last["height"] - 2, steps=6)
    bench.mouse.up()
    bench.frames()
    assert bench.phrases() == ["blue star", "moon", "red heart"]
    bench.row(2, ".bw-chip").focus()
    bench.press("Alt+ArrowUp")
    assert bench.phrases() == ["blue star", "red heart", "moon"]


def test_numbers_in_pixels_and_per_cent(bench):
    bench.load(editor_node([ONE], width=512, height=256))
    bench.click(0.35, 0.35)
    for label, value in (("Left edge", "128"), ("Top edge", "64"), ("Width", "256"), ("Height", "32")):
        bench.field(label).fill(value)
        bench.press("Enter")
    assert bench.rects() == [[0.25, 0.25, 0.5, 0.125]]
    bench.part(".bw-unit").select_option("%")
    bench.frames()
    assert bench.field("Width").input_value() == "50"
    bench.field("Left edge").fill("10")
    bench.press("Enter")
    assert bench.rects()[0][0] == 0.1
    bench.field("Width").fill("900")  # as far as it goes
    bench.press("Enter")
    assert bench.rects()[0][2] == pytest.approx(0.9, abs=1e-6)


@pytest.mark.every_version
def test_every_setting_of_a_box_is_kept(bench):
    bench.load(editor_node([{**ONE, "theirs": [1, {"deep": None}]}]))
    bench.click(0.35, 0.35)
    for label, value in (("Strength", "0.4"), ("Start", "0.1"), ("End", "0.8"), ("Feather", "0.05")):
        bench.field(label).last.fill(value)
        bench.press("Enter")
    bench.part(".bw-text").fill("blurry")
    bench.press("Tab")
    bench.part(".bw-color").evaluate("""(input) => {
        input.value = "#123456";
        input.dispatchEvent(new Event("input"));
        input.dispatchEvent(new Event("change"));
    }""")
    expected = {
        **ONE,
        "strength": 0.4,
        "start": 0.1,
        "end": 0.8,
        "feather": 0.05,
        "negative": "blurry",
        "color": "#123456",
        "theirs": [1, {"deep": None}],
    }
    assert bench.boxes() == [expected]
    bench.part(':text("Automatic")').click()
    bench.field("Start").fill("")
    bench.press("Enter")
    left = bench.boxes()[0]
    assert "color" not in left and "start" not in left and left["end"] == 0.8


@pytest.mark.one_renderer
def test_a_setting_goes_to_all_selected_boxes(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.part(".bw-canvas").focus()
    bench.press("Control+a")
    bench.field("Strength").last.fill("0.25")
    bench.press("Enter")
    assert [region["strength"] for region in bench.boxes()] == [0.25, 0.25]


# Presets, snapping


def test_presets_split_the_image(bench):
    bench.load(editor_node())
    for name, columns, rows in (
        ("columns2", 2, 1),
        ("columns3", 3, 1),
        ("rows2", 1, 2),
        ("rows3", 1, 3),
        ("grid22", 2, 2),
        ("grid33", 3, 3),
    ):
        bench.put()
        bench.menu("arrange", name)
        expected = [
            [column / columns, row / rows, 1 / columns, 1 / rows] for row in range(rows) for column in range(columns)
        ]
        assert bench.rects() == [pytest.approx(rect, abs=2e-6) for rect in expected], name


def test_a_preset_splits_the_selected_box_and_a_background_fills_the_rest(bench):
    bench.load(editor_node([{**ONE, "strength": 0.5}, TWO]))
    bench.click(0.3, 0.3)
    bench.menu("arrange", "columns2")
    assert bench.rects()[:2] == [near([0.2, 0.2, 0.15, 0.3]), near([0.35, 0.2, 0.15, 0.3])]
    assert [region.get("strength") for region in bench.boxes()] == [0.5, 0.5, None]
    bench.menu("arrange", "background")
    assert bench.rects()[0] == [0, 0, 1, 1] and len(bench.boxes()) == 4


def test_a_moved_box_snaps_and_alt_leaves_it_free(bench):
    bench.load(editor_node([box("a", 0.1, 0.1, 0.2, 0.2), box("b", 0.6, 0.6, 0.3, 0.3)], snap=True))
    bench.drag((0.2, 0.2), (0.505, 0.2), release=False)  # its middle to 0.505: the image's middle is near
    bench.shot("guides")
    bench.mouse.up()
    assert bench.rects()[0][0] == pytest.approx(0.4, abs=1e-6)
    bench.drag((0.5, 0.2), (0.5, 0.506))  # its lower edge near the upper edge of b
    assert bench.rects()[0][1] == pytest.approx(0.4, abs=1e-6)
    bench.click(0.5, 0.5)
    bench.mouse.move(*bench.place(0.5, 0.5))
    bench.mouse.down()
    bench.mouse.move(*bench.place(0.53, 0.5), steps=3)
    with bench.held("Alt"):
        bench.mouse.move(*bench.place(0.507, 0.5), steps=3)
        bench.mouse.up()
    assert bench.rects()[0][0] == near(0.407) and bench.rects()[0][0] != pytest.approx(0.4, abs=1e-4)


def test_resizing_and_drawing_snap_to_the_grid(bench):
    bench.load(editor_node([ONE], grid=64))
    bench.click(0.35, 0.35)
    bench.drag((0.5, 0.5), (0.63, 0.746))
    assert bench.rects()[0] == pytest.approx([0.2, 0.2, 0.425, 0.55], abs=1e-6)
    bench.drag((0.745, 0.005), (0.88, 0.13))
    bench.press("Escape")
    assert bench.rects()[1] == pytest.approx([0.75, 0, 0.125, 0.125], abs=1e-6)


@pytest.mark.one_renderer
def test_view_options_are_kept_with_the_node(bench):
    bench.load(editor_node([ONE], snap=True))
    bench.button("view").click()
    bench.part('[data-view="snap"]').uncheck()
    bench.part('[data-view="grid"]').select_option("32")
    bench.part('[data-view="gaps"]').check()
    saved = bench.page.evaluate("nodeOf(1).serialize().properties['boxwright.view']")
    assert saved == {"snap": False, "grid": 32, "gaps": True}
