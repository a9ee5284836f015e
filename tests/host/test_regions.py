"""BoxwrightRegions and BoxwrightRegionsPreview in the host: their contract, the host's own box nodes, the picture."""

import asyncio
import json
import types
from importlib.util import find_spec
from pathlib import Path

import comfy.model_management
import execution
import folder_paths
import nodes
import pytest
import torch
from comfy_extras.nodes_images import BoundingBox as PrimitiveBoundingBox
from comfy_extras.nodes_primitive import StringMultiline
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import boxes, drawing
from pack.nodes.parts.sized_regions import SizedRegions
from pack.nodes.regions import BoxwrightRegions
from pack.nodes.regions_preview import BoxwrightRegionsPreview

ROOT = Path(__file__).resolve().parents[2]
SENT = {"regions_json": "", "width": 256, "height": 128, "phrases": ""}
CORNER = Box(0.25, 0.25, 0.5, 0.5)


def contract(node):
    """[(input name, type, required)], [output type] as the host's /object_info gives them."""
    info = node.GET_SCHEMA().get_v1_info(node)
    return [
        (name, info.input[group][name][0], group == "required")
        for group in ("required", "optional")
        for name in info.input[group]
    ], info.output


def widget(node, name):
    info = node.GET_SCHEMA().get_v1_info(node)
    return (info.input["required"] | info.input["optional"])[name][1]


def host_editor():
    module = pytest.importorskip("comfy_extras.nodes_bounding_boxes", reason="only recent hosts have this node")
    return module.CreateBoundingBoxes


def run_graph(monkeypatch, folder, graph, *host_nodes):
    """Check and run an API-format graph on the host's own executor -> (its history result, its messages).

    A graph that the check refuses gives (the problem, the errors by node) instead.
    """
    for node in (BoxwrightRegions, BoxwrightRegionsPreview, *host_nodes):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    monkeypatch.setattr(folder_paths, "temp_directory", str(folder))
    valid, problem, outputs, node_errors = asyncio.run(execution.validate_prompt("id", graph, None))
    if not valid:
        return problem, node_errors
    server = types.SimpleNamespace(client_id=None, last_node_id=None, sockets_metadata={}, send_sync=lambda *_: None)
    executor = execution.PromptExecutor(
        server, cache_type=execution.CacheType.CLASSIC, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    )
    executor.execute(graph, "id", {}, outputs)
    return executor.history_result, executor.status_messages


# The contract: saved workflows depend on each of these words.


def test_schema_of_regions():
    inputs, outputs = contract(BoxwrightRegions)
    assert inputs == [
        ("regions_json", "STRING", True),
        ("width", "INT", True),
        ("height", "INT", True),
        ("phrases", "STRING", True),
        ("bounding_boxes", "BOUNDING_BOX", False),
        ("elements", "ARRAY", False),
        ("masks", "MASK", False),
        ("frame", "INT", False),
    ]
    assert outputs == ["BOXWRIGHT_REGIONS", "STRING"]
    assert BoxwrightRegions.GET_SCHEMA().node_id == "BoxwrightRegions"
    assert widget(BoxwrightRegions, "bounding_boxes")["forceInput"] is True


def test_schema_of_preview():
    inputs, outputs = contract(BoxwrightRegionsPreview)
    assert inputs == [
        ("regions", "BOXWRIGHT_REGIONS", True),
        ("width", "INT", True),
        ("height", "INT", True),
        ("background", "IMAGE", False),
    ]
    assert outputs == ["IMAGE", "STRING"]
    assert BoxwrightRegionsPreview.GET_SCHEMA().node_id == "BoxwrightRegionsPreview"


@pytest.mark.parametrize("node", [BoxwrightRegions, BoxwrightRegionsPreview])
def test_every_input_is_explained(node):
    schema = node.GET_SCHEMA()
    assert schema.category == "Boxwright" and schema.description and schema.search_aliases
    assert all(widget(node, name).get("tooltip") for name, _, _ in contract(node)[0])


# Execution


def test_the_placeholder_is_an_example_that_works_and_empty_defaults_say_what_is_missing():
    defaults = {name: widget(BoxwrightRegions, name)["default"] for name in SENT}
    with pytest.raises(BoxwrightError, match="There is no region"):
        BoxwrightRegions.execute(**defaults)
    example = widget(BoxwrightRegions, "regions_json")["placeholder"]
    assert BoxwrightRegions.execute(**{**defaults, "regions_json": example})[0] == boxes.EXAMPLE_REGIONS


def test_boxes_of_the_hosts_editor():
    drawn = [
        {"x": 64, "y": 32, "width": 128, "height": 64, "metadata": {"type": "obj", "text": "", "desc": "a dog"}},
        {"x": 0, "y": 0, "width": 256, "height": 64, "metadata": {"type": "text", "text": "OPEN", "desc": ""}},
    ]
    _, pixels, elements = host_editor().execute(256, 128, editor_state=drawn).args
    expected = (Region("a dog", CORNER), Region("OPEN", Box(0.0, 0.0, 1.0, 0.5)))
    assert BoxwrightRegions.execute(**SENT, elements=elements)[0] == expected
    assert BoxwrightRegions.execute(**SENT, bounding_boxes=drawn)[0] == expected
    named = BoxwrightRegions.execute(**SENT | {"phrases": "a dog\nOPEN"}, bounding_boxes=pixels)[0]
    assert named == expected


def test_box_of_the_hosts_primitive():
    box = PrimitiveBoundingBox.execute(64, 32, 128, 64)[0]
    assert BoxwrightRegions.execute(**SENT | {"phrases": "dog"}, bounding_boxes=box)[0] == (Region("dog", CORNER),)


@pytest.mark.skipif(not find_spec("comfy_extras.nodes_rtdetr"), reason="this host has no detector")
def test_boxes_of_the_hosts_detector(monkeypatch):
    """Its real execute() on a stand-in for the network: two frames, labels, scores, a box over the edge."""
    from comfy_extras.nodes_rtdetr import COCO_CLASSES, RTDETR_detect

    found = {
        "scores": torch.tensor([0.7, 0.9, 0.1]),
        "labels": torch.tensor([COCO_CLASSES.index("dog"), COCO_CLASSES.index("car"), 0]),
        "boxes": torch.tensor([[64.0, 32.0, 192.0, 96.0], [192.0, -32.0, 320.0, 64.0], [0.0, 0.0, 9.0, 9.0]]),
    }
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0), "boxes": torch.zeros(0, 4)}
    network = types.SimpleNamespace(diffusion_model=lambda images, size: [nothing, found])
    monkeypatch.setattr(comfy.model_management, "load_model_gpu", lambda model: None)
    detected = RTDETR_detect.execute(types.SimpleNamespace(model=network), torch.zeros(2, 128, 256, 3), 0.5, "all", 9)
    regions = BoxwrightRegions.execute(**SENT, bounding_boxes=detected[0], frame=1)[0]
    assert regions == (Region("car", Box(0.75, 0.0, 0.25, 0.5)), Region("dog", CORNER))
    with pytest.raises(BoxwrightError, match=r"holds no box \(frame 0\)"):
        BoxwrightRegions.execute(**SENT, bounding_boxes=detected[0])


def test_graph_with_the_hosts_editor_runs(monkeypatch, tmp_path):
    drawn = [{"x": 64, "y": 32, "width": 128, "height": 64, "metadata": {"type": "obj", "desc": "a dog"}}]
    graph = {
        "1": {
            "class_type": "CreateBoundingBoxes",
            "inputs": {"width": 256, "height": 128, "editor_state": {"__value__": drawn}},
        },
        "2": {"class_type": "BoxwrightRegions", "inputs": SENT | {"elements": ["1", 2]}},
        "3": {"class_type": "BoxwrightRegionsPreview", "inputs": {"regions": ["2", 0], "width": 256, "height": 128}},
    }
    result, messages = run_graph(monkeypatch, tmp_path, graph, host_editor())
    assert messages[-1][0] == "execution_success"
    shown = result["outputs"]["3"]
    assert shown["text"][0].splitlines()[1] == "1. a dog: 25.0 % (box)"
    assert (tmp_path / shown["images"][0]["filename"]).is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"type": "boxwright.regions", "version": 9, "regions": []}', "Update the Boxwright pack"),
    ],
)
def test_bad_text_is_refused_before_anything_runs(monkeypatch, tmp_path, text, words):
    graph = {
        "2": {"class_type": "BoxwrightRegions", "inputs": SENT | {"regions_json": text}},
        "3": {"class_type": "BoxwrightRegionsPreview", "inputs": {"regions": ["2", 0], "width": 256, "height": 128}},
    }
    problem, node_errors = run_graph(monkeypatch, tmp_path, graph)
    assert problem["type"] == "prompt_outputs_failed_validation"
    (error,) = node_errors["2"]["errors"]
    assert words in error["details"]


def test_a_text_of_another_program_is_read_and_how_is_said(monkeypatch, tmp_path):
    text = '[{"bbox": [128, 64, 256, 128], "label": "a dog"}]'
    regions, report = BoxwrightRegions.execute(**SENT | {"regions_json": text}).args
    assert regions == (Region("a dog", Box(0.5, 0.5, 0.5, 0.5)),)
    assert report.splitlines() == ["1 box read as [x1, y1, x2, y2] in pixels of a picture of 256 x 128.", "1. a dog"]
    ambiguous = {"regions_json": '[{"bbox": [10, 10, 20, 20], "label": "a dog"}]'}
    graph = {
        "2": {"class_type": "BoxwrightRegions", "inputs": SENT | ambiguous},
        "3": {"class_type": "BoxwrightRegionsPreview", "inputs": {"regions": ["2", 0], "width": 256, "height": 128}},
    }
    _, messages = run_graph(monkeypatch, tmp_path, graph)
    assert messages[-1][0] == "execution_error"
    assert "Write xyxy or xywh in front" in messages[-1][1]["exception_message"]


def test_connected_text_is_checked_when_it_arrives(monkeypatch, tmp_path):
    graph = {
        "1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "{"}},
        "2": {"class_type": "BoxwrightRegions", "inputs": SENT | {"regions_json": ["1", 0]}},
        "3": {"class_type": "BoxwrightRegionsPreview", "inputs": {"regions": ["2", 0], "width": 256, "height": 128}},
    }
    _, messages = run_graph(monkeypatch, tmp_path, graph, StringMultiline)
    assert messages[-1][0] == "execution_error"
    assert "not valid JSON" in messages[-1][1]["exception_message"]


# The picture


def pixel(image, x, y):
    return [round(255 * part) for part in image[0, y, x].tolist()]


def blended(colour, paper, share=1.0):
    return [round(p + (c - p) * drawing.FILL * share) for c, p in zip(colour, paper)]


def test_box_is_filled_outlined_and_nothing_else_is_touched():
    image = drawing.draw_layout([Region("a", Box(0.25, 0.5, 0.5, 0.25))], 400, 200)
    assert image.shape == (1, 200, 400, 3) and image.dtype == torch.float32
    orange = drawing.region_color(0)
    assert pixel(image, 250, 125) == pytest.approx(blended(orange, drawing.PAPER), abs=1)
    for x, y in ((299, 149), (299, 120), (200, 149)):  # the corner without the label, and two edges
        assert pixel(image, x, y) == list(orange)
    outside = image.clone()
    outside[:, 100:150, 100:300] = drawing.PAPER[0] / 255.0
    assert bool((outside - drawing.PAPER[0] / 255.0).abs().max() < 1e-6)


def test_later_regions_lie_on_top():
    red, blue = drawing.region_color(0), drawing.region_color(1)
    image = drawing.draw_layout([Region("a", Box(0.0, 0.0, 0.7, 1.0)), Region("b", Box(0.3, 0.0, 0.7, 1.0))], 400, 400)
    assert pixel(image, 200, 300) == pytest.approx(blended(blue, blended(red, drawing.PAPER)), abs=2)


def test_preview_takes_its_size_from_the_regions():
    regions = (Region("a", CORNER),)
    for given, size, shape in [
        ((0, 0), None, (512, 512)),
        ((0, 0), (320, 192), (192, 320)),
        ((64, 128), (320, 192), (128, 64)),
        ((0, 0), (8192, 4096), (2048, 4096)),
    ]:
        known = regions if size is None else SizedRegions(regions, *size)
        image, report = BoxwrightRegionsPreview.execute(known, *given).args
        assert image.shape[1:3] == shape
        if given == (0, 0) and size:
            assert report.startswith(f"1 region on {size[0]} x {size[1]} pixels")
    with pytest.raises(BoxwrightError, match="belong together"):
        BoxwrightRegionsPreview.execute(regions, 64, 0)


def test_mask_is_drawn_with_its_soft_edge():
    ramp = torch.linspace(0.0, 1.0, 400).expand(400, 400)
    image = drawing.draw_layout([Region("a", ramp)], 400, 400)
    for x in (20, 100, 380):
        expected = blended(drawing.region_color(0), drawing.PAPER, float(ramp[0, x]))
        assert pixel(image, x, 390) == pytest.approx(expected, abs=2)


def test_mask_of_another_size_is_stretched():
    mask = torch.zeros(4, 2)
    mask[:2, 1] = 1.0
    image = drawing.draw_layout([Region("a", mask)], 800, 200)
    for x, y in ((20, 20), (20, 180), (780, 180)):
        assert pixel(image, x, y) == list(drawing.PAPER)
    for y in (5, 60):
        assert pixel(image, 780, y) == pytest.approx(blended(drawing.region_color(0), drawing.PAPER), abs=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_background_is_stretched_behind(channels):
    background = torch.zeros(2, 10, 20, channels)
    background[0, :, 10:] = 1.0
    image = drawing.draw_layout([Region("a", Box(0.0, 0.0, 0.2, 0.2))], 400, 400, background)
    assert pixel(image, 100, 300) == [0, 0, 0]
    assert pixel(image, 300, 300) == [255, 255, 255]


def test_background_with_broken_pixels_is_drawn():
    background = torch.tensor([float("nan"), float("inf"), -5.0]).expand(1, 8, 8, 3)
    image = drawing.draw_layout([Region("a", Box(0.0, 0.0, 0.2, 0.2))], 64, 64, background)
    assert pixel(image, 60, 60) == [0, 255, 0]


def tags(monkeypatch, regions, width, height):
    """The rectangles in which labels were put."""
    placed = []
    place = drawing._free_place

    def spy(*args):
        placed.append(place(*args))
        return placed[-1]

    monkeypatch.setattr(drawing, "_free_place", spy)
    drawing.draw_layout(regions, width, height)
    return placed


def test_labels_do_not_hide_each_other_and_stay_inside(monkeypatch):
    regions = [Region(f"same place {i}", Box(0.9, 0.7, 0.1, 0.3)) for i in range(12)]
    placed = tags(monkeypatch, regions, 512, 512)
    assert all(0 <= left < right <= 512 and 0 <= top < bottom <= 512 for left, top, right, bottom in placed)
    assert sum(drawing._shared_pixels(a, b) for i, a in enumerate(placed) for b in placed[:i]) == 0


@pytest.mark.parametrize("phrase", ["word " * 200, "<b>bold</b>\n\x00", "\u202e\u0301" * 500, "\u5fc3" * 1000])
@pytest.mark.parametrize("size", [(64, 4096), (4096, 64), (64, 64)])
def test_any_label_on_any_picture(monkeypatch, phrase, size):
    ((left, top, right, bottom),) = tags(monkeypatch, [Region(phrase, Box(0.4, 0.4, 0.1, 0.1))], *size)
    assert right - left <= max(size[0] // 3, 24) + 1 and bottom <= size[1]


def test_label_keeps_its_number():
    font = drawing.ImageFont.load_default(12)
    assert drawing._fitted_label(12, "red heart", font, 500) == "12 red heart"
    assert drawing._fitted_label(12, "red heart", font, 1) == "12"
    cut = drawing._fitted_label(12, "red heart", font, 50)
    assert cut.startswith("12 r") and cut.endswith("...") and font.getlength(cut) <= 50


def test_colours_are_distinct_and_labels_readable():
    colours = [drawing.region_color(index) for index in range(64)]
    distances = [sum((p - q) ** 2 for p, q in zip(a, b)) ** 0.5 for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 15

    def luminance(colour):  # WCAG 2.1
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for colour in colours:
        light, dark = sorted((luminance(colour), luminance(drawing._ink(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_colours_and_ink_are_those_of_the_editor():
    golden = json.loads((ROOT / "tests" / "golden" / "drawing.json").read_text("utf-8"))
    assert ["#" + bytes(drawing.region_color(index)).hex() for index in range(70)] == golden["palette"]
    for colour, ink in golden["inks"]:
        assert "#" + bytes(drawing._ink(tuple(bytes.fromhex(colour[1:])))).hex() == ink, colour


@pytest.mark.parametrize("size", [(63, 512), (512, 4097)])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(BoxwrightError, match="from 64 to 4096"):
        drawing.draw_layout(boxes.EXAMPLE_REGIONS, *size)
