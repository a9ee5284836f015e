"""Regions that are not boxes, drawn by mouse in the real frontend, and the fields of a region: both renderers.

Each test reads back what the workflow keeps. Places are fractions of the image.
"""

import json

import pytest
from browser import box, editor_node, near, run
from pack.nodes.parts import regions_json, shapes

SQUARE = [(0.2, 0.2), (0.7, 0.25), (0.75, 0.7), (0.3, 0.8)]
POINTS = [5000, 0, 10000, 5000, 5000, 10000, 0, 5000]
POLYGON = box("kite", 0.2, 0.2, 0.4, 0.4, shape={"kind": "polygon", "points": POINTS})
ELLIPSE = {"kind": "ellipse"}
pytestmark = pytest.mark.usefixtures("no_errors")


def shape_of(bench, index=0):
    return bench.boxes()[index].get("shape")


def covered(bench, x, y, index=0):
    """How much of the place the region covers, as Python reads what the workflow keeps."""
    region = bench.boxes()[index]
    area = regions_json.parse_drawing(json.dumps({**bench.drawing(), "regions": [region]})).regions[0]
    return float(shapes.covered_pixels(area, 100, 100)[int(y * 100), int(x * 100)])


def choose(bench, tool):
    bench.button("tool").click()
    bench.part(f'[data-tool="{tool}"]').click()
    bench.page.evaluate("editorOf(1).stage.freehand.setBrush({ radius: 0.04, softness: 0.25 })")  # whoever drew before
    bench.frames(2)


@pytest.mark.every_version
def test_an_ellipse_is_drawn_like_a_box_and_asks_for_its_words(bench):
    bench.load(editor_node())
    choose(bench, "ellipse")
    bench.drag((0.1, 0.2), (0.7, 0.6))
    bench.keys.type("moon")
    bench.press("Enter")
    assert bench.rects() == [near([0.1, 0.2, 0.6, 0.4])] and bench.phrases() == ["moon"]
    assert shape_of(bench) == ELLIPSE
    bench.click(0.9, 0.9)
    bench.drag((0.8, 0.7), (0.95, 0.95))
    bench.press("Escape")
    assert len(bench.boxes()) == 2 and shape_of(bench, 1) is None, "the next drag draws a box again"
    bench.shot("ellipse")


@pytest.mark.every_version
def test_a_polygon_is_drawn_corner_by_corner(bench):
    bench.load(editor_node())
    choose(bench, "polygon")
    for corner in SQUARE:
        bench.click(*corner)
    assert bench.boxes() == [], "nothing is kept before it is closed"
    bench.shot("polygon_under_way")
    bench.click(*SQUARE[0])
    bench.keys.type("kite")
    bench.press("Enter")
    assert bench.rects() == [near([0.2, 0.2, 0.55, 0.6])] and bench.phrases() == ["kite"]
    assert len(shape_of(bench)["points"]) == 8
    assert covered(bench, 0.5, 0.5) > 0.9 and covered(bench, 0.72, 0.23) < 0.1
    bench.undo()
    assert bench.boxes() == [], "one step for the undo"
    bench.redo()
    assert shape_of(bench)["kind"] == "polygon"


@pytest.mark.every_version
def test_keys_and_a_double_click_close_and_take_back_corners_and_escape_gives_up(bench):
    bench.load(editor_node())
    bench.click(0.9, 0.9)
    bench.press("p")
    for corner in [*SQUARE, (0.9, 0.1)]:
        bench.click(*corner)
    bench.press("Backspace", "Enter")
    bench.press("Escape")
    assert len(shape_of(bench)["points"]) == 8
    bench.press("p")
    for corner in SQUARE[:2]:
        bench.click(*corner)
    bench.press("Escape", "Escape")
    assert len(bench.boxes()) == 1
    bench.press("p")
    for corner in [(0.8, 0.05), (0.95, 0.05)]:
        bench.click(*corner)
    bench.double_click(0.9, 0.15)
    bench.keys.type("roof")
    bench.press("Enter")
    assert bench.phrases() == ["", "roof"] and len(shape_of(bench, 1)["points"]) == 6


def test_an_outline_drawn_by_hand_is_a_polygon_of_few_corners(bench):
    bench.load(editor_node())
    choose(bench, "polygon")
    places = [(0.2, 0.5), (0.25, 0.3), (0.4, 0.2), (0.6, 0.22), (0.75, 0.4), (0.7, 0.65), (0.5, 0.8), (0.3, 0.7)]
    bench.mouse.move(*bench.place(*places[0]))
    bench.mouse.down()
    for place in places[1:]:
        bench.mouse.move(*bench.place(*place), steps=6)
    bench.mouse.up()
    bench.frames(2)
    bench.press("Escape")
    assert bench.rects() == [near([0.2, 0.2, 0.55, 0.6])]
    assert 8 <= len(shape_of(bench)["points"]) // 2 <= 16
    assert covered(bench, 0.5, 0.5) > 0.9 and covered(bench, 0.22, 0.22) < 0.1


@pytest.mark.every_version
def test_corners_are_dragged_and_taken_away(bench):
    bench.load(editor_node([POLYGON]))
    bench.click(0.4, 0.4)
    bench.shot("polygon_corners")
    bench.drag((0.6, 0.4), (0.9, 0.5))
    assert bench.rects() == [near([0.2, 0.2, 0.7, 0.4])]
    assert shape_of(bench)["points"][2:4] == [10000, pytest.approx(7500, abs=200)]
    with bench.held("Alt"):
        bench.click(0.9, 0.5)
    assert len(shape_of(bench)["points"]) == 6 and bench.rects() == [near([0.2, 0.2, 0.2, 0.4])]


def test_a_polygon_moves_and_resizes_as_a_box_does(bench):
    bench.load(editor_node([POLYGON]))
    bench.drag((0.4, 0.4), (0.6, 0.5))
    assert bench.rects() == [near([0.4, 0.3, 0.4, 0.4])]
    bench.drag((0.8, 0.7), (0.9, 0.9))
    assert bench.rects() == [near([0.4, 0.3, 0.5, 0.6])]
    assert shape_of(bench) == POLYGON["shape"]


def test_a_press_beside_a_shape_but_in_its_box_reaches_what_lies_below(bench):
    bench.load(editor_node([box("sky", 0, 0, 1, 1), {**POLYGON, "phrase": "kite"}]))
    bench.click(0.22, 0.22)
    assert bench.selected() == [0]
    bench.click(0.4, 0.4)
    assert bench.selected() == [1]


@pytest.mark.every_version
def test_a_brush_paints_a_new_region_and_the_eraser_takes_away(bench):
    bench.load(editor_node())
    choose(bench, "brush")
    bench.drag((0.3, 0.5), (0.7, 0.5))
    assert shape_of(bench)["kind"] == "paint"
    [[x, y, width, height]] = bench.rects()
    assert [x, x + width] == [pytest.approx(0.26, abs=0.01), pytest.approx(0.74, abs=0.01)]
    assert height == pytest.approx(0.08, abs=0.01)
    assert covered(bench, 0.5, 0.5) > 0.9 and covered(bench, 0.5, 0.6) < 0.1
    bench.drag((0.5, 0.3), (0.5, 0.7))
    assert len(bench.boxes()) == 1 and covered(bench, 0.5, 0.65) > 0.9, "a second stroke goes on with the region"
    bench.shot("brush")
    choose(bench, "eraser")
    bench.drag((0.5, 0.5), (0.9, 0.5))
    assert covered(bench, 0.65, 0.5) < 0.1 and covered(bench, 0.35, 0.5) > 0.9
    bench.undo()
    assert covered(bench, 0.65, 0.5) > 0.9
    bench.press("Escape", "Enter")
    bench.keys.type("river")
    bench.press("Enter")
    assert bench.phrases() == ["river"]


def test_a_soft_brush_paints_softly_and_the_keys_change_its_size(bench):
    bench.load(editor_node())
    bench.click(0.9, 0.9)
    bench.press("b", *"]]]]]]")
    bench.part('.bw-tool input[aria-label="Softness"]').fill("1")
    bench.drag((0.5, 0.5), (0.51, 0.5))
    levels = [covered(bench, 0.5, 0.5 + step / 100) for step in range(0, 20, 2)]
    assert levels[0] > 0.9 and levels == sorted(levels, reverse=True)
    assert sum(0.1 < level < 0.9 for level in levels) >= 5, levels
    assert bench.rects()[0][2] > 0.25


def test_painting_on_a_box_keeps_its_fields_and_makes_it_paint(bench):
    bench.load(editor_node([box("wall", 0.1, 0.1, 0.3, 0.3, strength=0.5, negative="door", mine=[1])]))
    bench.click(0.25, 0.25)
    choose(bench, "brush")
    bench.drag((0.4, 0.25), (0.7, 0.25))
    [region] = bench.boxes()
    assert (region["phrase"], region["strength"], region["negative"], region["mine"]) == ("wall", 0.5, "door", [1])
    assert covered(bench, 0.15, 0.15) > 0.9 and covered(bench, 0.6, 0.25) > 0.9 and covered(bench, 0.6, 0.35) < 0.1
    choose(bench, "eraser")
    for y in (0.12, 0.18, 0.24, 0.3, 0.36, 0.4):
        bench.drag((0.0, y), (0.9, y))
    bench.shot("erased")
    assert bench.boxes() == [], "nothing is left of it"
    bench.undo()
    assert len(bench.boxes()) == 1


def test_an_eraser_without_a_region_says_so(bench):
    bench.load(editor_node([POLYGON]))
    bench.click(0.9, 0.9)
    choose(bench, "eraser")
    bench.drag((0.4, 0.4), (0.5, 0.5))
    assert bench.page.get_by_text("Select the box or shape to erase from first.").first.is_visible()
    assert bench.boxes() == [POLYGON]


def test_the_fields_choose_the_shape_and_give_it_up(bench):
    bench.load(editor_node([box("sun", 0.2, 0.2, 0.4, 0.4), POLYGON], panel="on"))
    bench.row(0, ".bw-chip").click()
    shape = bench.part('.bw-inspector select[aria-label="Shape"]')
    shape.select_option("ellipse")
    assert shape_of(bench) == ELLIPSE
    shape.select_option("box")
    assert "shape" not in bench.boxes()[0]
    bench.row(1, ".bw-chip").click()
    bench.frames(3)
    assert shape.evaluate("(list) => [...list.options].map((each) => each.value)") == ["box", "ellipse", "polygon"]
    shape.select_option("box")
    assert [shape_of(bench, index) for index in (0, 1)] == [None, None]


@pytest.mark.every_version
def test_opacity_and_lora_are_fields_and_loras_are_those_of_the_server(bench):
    listed = ["ink.safetensors", "styles/oil paint.safetensors"]
    bench.page.route("**/models/loras", lambda route: route.fulfill(json=listed))
    bench.page.evaluate("app.extensions.find((each) => each.name === 'boxwright.BoxEditor').refreshComboInNodes()")
    bench.load(editor_node([box("cat", 0.2, 0.2, 0.4, 0.4, lora="gone.safetensors")], panel="on", size=(760, 900)))
    bench.page.wait_for_timeout(700)
    bench.row(0, ".bw-chip").click()
    lora = bench.part('.bw-inspector select[aria-label="LoRA"]')
    words = lora.evaluate("(list) => [...list.options].map((each) => each.textContent)")
    assert words == ["none", *listed, "gone.safetensors (not on this server)"]
    assert "gone.safetensors is not on this server" in bench.part(".bw-warning").text_content()
    bench.shot("fields")
    lora.select_option(listed[1])
    bench.field("LoRA strength").fill("-2.5")
    bench.field("LoRA strength").press("Enter")
    number = bench.part('.bw-inspector input[type="number"][aria-label="Opacity"]')
    number.fill("0.4")
    number.press("Enter")
    [region] = bench.boxes()
    assert (region["lora"], region["lora_strength"], region["opacity"]) == (listed[1], -2.5, 0.4)
    number.fill("7")
    number.press("Enter")
    bench.field("LoRA strength").fill("99")
    bench.field("LoRA strength").press("Enter")
    [region] = bench.boxes()
    assert "opacity" not in region and region["lora_strength"] == 10
    lora.select_option("")
    assert "lora" not in bench.boxes()[0]
    bench.page.unroute("**/models/loras")


@pytest.mark.one_renderer
def test_masks_come_in_as_paint_and_go_out_as_masks(bench):
    """A mask wired to boxes becomes paint in the editor; the next run sends the same mask out."""
    mask = {
        "id": 2,
        "type": "SolidMask",
        "pos": [900, 60],
        "size": [300, 120],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": "MASK", "type": "MASK", "links": [1]}],
        "properties": {},
        "widgets_values": [0.5, 64, 64],
    }
    node = editor_node(width=64, height=64)
    node["inputs"] = [{"name": "boxes", "type": "BOUNDING_BOX,ARRAY,BOXWRIGHT_REGIONS,MASK,STRING", "link": 1}]
    bench.load(node, mask, links=[[1, 2, 0, 1, 0, "MASK"]])
    assert run(bench)[0] == "execution_success"
    bench.page.wait_for_timeout(500)
    bench.settled()
    [region] = bench.boxes()
    assert region["shape"] == {"kind": "paint", "width": 64, "height": 64, "runs": "A4096"}


@pytest.mark.every_version
def test_sixty_regions_with_ten_polygons_and_paint_stay_fluid(bench):
    """Frames while one region of sixty is dragged about, as with boxes."""
    points = [value for n in range(60) for value in (abs(n * 337 % 20000 - 10000), abs(n * 611 % 20000 - 10000))]
    regions = [box(f"thing {n}", 0.09 * (n % 10), 0.15 * (n // 10), 0.12, 0.2) for n in range(60)]
    for n in range(10):
        regions[n]["shape"] = {"kind": "polygon", "points": points}
    for n in range(10, 15):
        regions[n]["shape"] = {"kind": "paint", "width": 64, "height": 64, "runs": "am" + "Z" * 4094}
    regions[55].update(x=0.4, y=0.4, width=0.3, height=0.3)
    bench.load(editor_node(regions))
    bench.click(0.45, 0.68)
    bench.page.evaluate("""() => {
        window.paints = [];
        const { stage } = editorOf(1), { paint } = stage;
        stage.paint = function () {
            const began = performance.now();
            paint.call(this);
            window.paints.push(performance.now() - began);
        };
    }""")
    bench.mouse.move(*bench.place(0.55, 0.6))
    bench.mouse.down()
    for step in range(40):
        bench.mouse.move(*bench.place(0.55 + 0.2 * (step % 10) / 10, 0.6 - 0.2 * (step % 7) / 7))
    bench.mouse.up()
    paints = sorted(bench.page.evaluate("window.paints"))
    assert len(paints) > 10
    print(f"paint of 60 regions, ms: median {paints[len(paints) // 2]:.1f}, worst {paints[-1]:.1f}")
    bench.shot("sixty")


@pytest.mark.every_version
def test_a_run_of_another_open_workflow_is_told_to_that_one(bench):
    """Both have a node 1; the host hands the run's words to whichever is shown."""
    bench.load(editor_node([POLYGON]))
    result = bench.page.evaluate("""async () => {
        const { runOf } = await import("/extensions/boxwright/host/memory.js");
        const { workflow, command } = app.extensionManager, first = workflow.activeWorkflow;
        const mine = (app.rootGraph ?? app.graph).id;
        nodeOf(1).onExecuted({ boxwright_size: [111, 222], boxwright_workflow: [mine] });
        const own = runOf(nodeOf(1)).size, copy = JSON.parse(JSON.stringify(app.graph.serialize()));
        await command.execute("Comfy.NewBlankWorkflow");
        copy.id = "00000000-1111-4222-8333-444444444444";
        await app.loadGraphData(copy, true, false, workflow.activeWorkflow);
        await new Promise((done) => setTimeout(done, 400));
        const before = runOf(nodeOf(1)).size;
        nodeOf(1).onExecuted({ boxwright_size: [333, 444], boxwright_workflow: [first.activeState.id] });
        const after = runOf(nodeOf(1)).size;
        nodeOf(1).onExecuted({ boxwright_size: [555, 666], boxwright_workflow: [copy.id] });
        const second = runOf(nodeOf(1)).size;
        await app.loadGraphData(first.activeState, true, true, first);
        await new Promise((done) => setTimeout(done, 400));
        const back = runOf(nodeOf(1)).size;
        return { own, before, after, second, back, same: mine === first.activeState.id };
    }""")
    assert result["same"], "the host keeps a workflow's number"
    assert (result["own"], result["before"], result["after"]) == ([111, 222], None, None)
    assert (result["second"], result["back"]) == ([555, 666], [333, 444])
