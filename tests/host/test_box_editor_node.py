"""BoxwrightBoxEditor without a browser: what comes out, what is refused, and what the browser is told."""

import json
import math
import re
import types
from pathlib import Path

import comfy.sample
import pytest
import torch
from comfy import latent_formats
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_mask import SolidMask
from nodes import EmptyLatentImage
from pack.attention_patches.core.types import Box, Region
from pack.nodes import box_editor
from pack.nodes.box_editor import BoxwrightBoxEditor
from pack.nodes.parts import drawing, regions_json
from pack.nodes.parts.progress import progress_reporter
from pack.nodes.parts.sized_regions import prompt_of, size_of
from test_regions import run_graph

ROOT = Path(__file__).resolve().parents[2]
HEART = {"phrase": "red heart", "x": 0.25, "y": 0.25, "width": 0.5, "height": 0.25}
STAR = {"phrase": "blue star", "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}


def text(*regions, **more):
    return json.dumps({"type": regions_json.FORMAT_TYPE, "version": 1, "regions": list(regions), **more})


def run(regions_json="", width=64, height=128, prompt="a red heart", image_opacity=0.5, **sockets):
    return BoxwrightBoxEditor.execute(regions_json, width, height, prompt, image_opacity, **sockets)


def test_the_outputs_say_what_was_drawn():
    drawn = text(HEART | {"strength": 0.5, "mine": 1}, STAR | {"enabled": False})
    regions, prompt, pixels, masks, preview = run(drawn).args[:5]
    assert regions == (Region("red heart", Box(0.25, 0.25, 0.5, 0.25), 0.5, {"mine": 1}),)
    assert prompt == "a red heart"
    assert [[{key: box[key] for key in ("x", "y", "width", "height")} for box in frame] for frame in pixels] == [
        [{"x": 16, "y": 32, "width": 32, "height": 32}]
    ]
    assert masks.shape == (1, 128, 64) and masks.dtype == torch.float32
    expected = torch.zeros(128, 64)
    expected[32:64, 16:48] = 1.0
    assert torch.equal(masks[0], expected)
    assert preview.shape == (1, 128, 64, 3) and preview.std() > 0.05


def test_size_and_latent_are_those_of_the_picture():
    args = run(text(HEART), width=136, height=64, prompt="a card").args
    assert args[5:7] == (136, 64)
    stock = EmptyLatentImage().generate(136, 64)[0]
    assert args[7]["samples"].shape == stock["samples"].shape and not args[7]["samples"].any()
    assert args[7]["downscale_ratio_spacial"] == stock.get("downscale_ratio_spacial", 8)
    assert (size_of(args[0]), prompt_of(args[0])) == ((136, 64), "a card")


@pytest.mark.parametrize(
    "latent_format, shape",
    [
        (latent_formats.SD15, (1, 4, 32, 16)),
        (latent_formats.Flux, (1, 16, 32, 16)),
        (latent_formats.Wan21, (1, 16, 1, 32, 16)),
        (latent_formats.Flux2, (1, 128, 16, 8)),
    ],
)
def test_the_hosts_samplers_give_the_latent_their_models_shape(latent_format, shape):
    latent = run(text(HEART), width=128, height=256)[7]
    model = types.SimpleNamespace(get_model_object=lambda name: latent_format())
    fixed = comfy.sample.fix_empty_latent_channels(model, latent["samples"], latent["downscale_ratio_spacial"])
    assert tuple(fixed.shape) == shape


def test_the_outputs_fit_the_regions_node():
    from pack.nodes.regions import BoxwrightRegions

    pixels = run(text(HEART, STAR))[2]
    again = BoxwrightRegions.execute("", 64, 128, "", bounding_boxes=pixels)[0]
    assert [(region.phrase, region.area) for region in again] == [
        ("red heart", Box(0.25, 0.25, 0.5, 0.25)),
        ("blue star", Box(0.5, 0.5, 0.5, 0.5)),
    ]


def test_a_feathered_mask_falls_off_by_taxicab_distance():
    mask = run(text(HEART | {"feather": 0.125}), width=128, height=128)[3][0]
    reach, left, top = 16, 32, 32
    for y, x in ((40, 30), (40, 20), (30, 40), (28, 28), (10, 40), (40, 12)):
        away = max(0, left - x) + max(0, top - y)
        assert mask[y, x] == pytest.approx(max(0.0, 1 - away / reach), abs=1e-5), (y, x)
    assert mask[40, 40] == 1


def test_many_large_masks_are_halved_until_they_fit(monkeypatch):
    monkeypatch.setattr(box_editor, "MAX_MASK_VALUES", 64 * 128)
    assert run(text(HEART))[3].shape == (1, 128, 64)
    assert run(text(HEART, STAR))[3].shape == (2, 64, 32)


def test_a_large_picture_has_a_preview_of_the_same_shape():
    assert drawing.preview_size(8192, 4096) == (drawing.MAX_SIDE, drawing.MAX_SIDE // 2)
    assert drawing.preview_size(512, 768) == (512, 768)
    assert drawing.preview_size(8192, 64) == (drawing.MAX_SIDE, drawing.MIN_SIDE)


def test_the_image_shows_through_as_much_as_asked():
    image = torch.ones(2, 16, 16, 3)
    corner = [run(text(HEART), image=image, image_opacity=opacity)[4][0, -1, 0, 0].item() for opacity in (0, 0.5, 1)]
    paper = drawing.PAPER[0] / 255
    assert corner == pytest.approx([paper, (1 + paper) / 2, 1.0], abs=0.005)


@pytest.mark.parametrize(
    "drawn, words",
    [
        ("", "There is no box"),
        (text(), "There is no box"),
        (text(HEART | {"enabled": False}), "switched off"),
        (text(HEART, STAR | {"phrase": ""}), "Box 2 of the box editor .*nothing is written"),
        (text(HEART | {"phrase": ""}, STAR | {"phrase": ""}), "Boxes 1, 2 "),
    ],
)
def test_what_cannot_be_used_stops_whoever_uses_it(drawn, words):
    """Not the editor itself: the browser must still be told of boxes that came in without words."""
    regions, _, _, _, preview = run(drawn).args[:5]
    assert isinstance(regions, ExecutionBlocker)
    assert re.search(words, regions.message), regions.message
    assert preview.shape == (1, 128, 64, 3)


@pytest.mark.parametrize(
    "bad, words",
    [
        ("{", "not valid JSON"),
        (text(HEART | {"x": 2}), "reaches outside"),
        (text(HEART | {"start": 2}), "start 2"),
        (text(*[HEART] * 65), "65 regions"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_anything_runs(bad, words):
    assert words in BoxwrightBoxEditor.validate_inputs(regions_json=bad)
    assert BoxwrightBoxEditor.validate_inputs(regions_json=text(HEART | {"phrase": ""})) is True
    assert BoxwrightBoxEditor.validate_inputs() is True


def test_connected_boxes_replace_the_drawing_once():
    cat = [{"x": 16, "y": 32, "width": 32, "height": 32, "label": "cat"}]
    first = run(text(HEART), boxes=cat)
    assert [region.phrase for region in first[0]] == ["cat"]
    incoming, mark = first.ui["boxwright_upstream"]
    assert regions_json.parse_regions_json(incoming) == first[0]
    edited = text(HEART, upstream=mark)
    second = run(edited, boxes=cat)
    assert [region.phrase for region in second[0]] == ["red heart"] and "boxwright_upstream" not in second.ui
    third = run(edited, boxes=[{**cat[0], "label": "dog"}])
    assert [region.phrase for region in third[0]] == ["dog"] and third.ui["boxwright_upstream"][1] != mark


@pytest.mark.parametrize(
    "drawn, sockets, words",
    [
        ("", {}, "Draw one in the box editor"),
        (text(HEART | {"enabled": False}), {}, "Switch one on"),
        (text(HEART | {"phrase": ""}), {}, "nothing is written there"),
        ("", {"boxes": ["2", 0]}, "nothing is written there"),
    ],
)
def test_the_node_to_mend_is_the_one_that_is_marked(monkeypatch, tmp_path, drawn, sockets, words):
    """Not the one that takes its regions."""
    heard = []
    monkeypatch.setattr(box_editor, "tell_browser", lambda *message: heard.append(message))
    inputs = {"regions_json": drawn, "width": 64, "height": 64, "prompt": "", "image_opacity": 0.5} | sockets
    graph = {
        "1": {"class_type": "BoxwrightBoxEditor", "inputs": inputs},
        "2": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}},
        "3": {"class_type": "BoxwrightRegionsPreview", "inputs": {"regions": ["1", 0], "width": 64, "height": 64}},
    }
    _, messages = run_graph(monkeypatch, tmp_path, graph, BoxwrightBoxEditor, SolidMask)
    kind, said = messages[-1]
    assert kind == "execution_error" and said["node_id"] == "1" and words in said["exception_message"]
    [(number, output, refusal)] = heard
    assert number == "1" and words in refusal and ("boxwright_upstream" in output) == bool(sockets)


@pytest.mark.parametrize("client, told", [("tab", ["tab"]), (None, [])])
def test_only_the_browser_that_pressed_run_is_told(monkeypatch, client, told):
    """A prompt that no browser sent has no client: the host would tell all of them."""
    heard = []
    server = types.SimpleNamespace(client_id=client, send_sync=lambda event, data, sid: heard.append(sid))
    monkeypatch.setattr(box_editor.PromptServer, "instance", server, raising=False)
    box_editor.tell_browser("1", {}, "There is no box.")
    assert heard == told
    server.send_progress_text = lambda line, node, client: heard.append(client)
    progress_reporter("1")("half done")
    assert heard == 2 * told


def test_an_editor_whose_boxes_nobody_takes_may_be_empty(monkeypatch, tmp_path):
    inputs = {"regions_json": "", "width": 64, "height": 64, "prompt": "a moon", "image_opacity": 0.5}
    graph = {
        "1": {"class_type": "BoxwrightBoxEditor", "inputs": inputs},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 4]}},
    }
    _, messages = run_graph(monkeypatch, tmp_path, graph, BoxwrightBoxEditor)
    assert messages[-1][0] == "execution_success"


def test_connected_boxes_without_words_reach_the_browser_to_be_named():
    found = run("", boxes=torch.ones(1, 8, 8))
    assert isinstance(found[0], ExecutionBlocker)
    [region] = regions_json.parse_drawing(found.ui["boxwright_upstream"][0]).regions
    assert region == Region("", Box(0.0, 0.0, 1.0, 1.0))


def test_a_colour_of_its_own_is_used_in_the_preview():
    plain, own = (run(text(HEART | extra), width=128)[4] for extra in ({}, {"color": "#ff0000"}))
    assert not torch.equal(plain, own)
    assert own[0, 50, 64, 0] > own[0, 50, 64, 1] + 0.2


# Shapes


ELLIPSE = {"shape": {"kind": "ellipse"}}


def test_shapes_come_out_as_masks_and_as_the_boxes_around_them():
    regions, _, pixels, masks, preview = run(text(HEART | ELLIPSE, STAR), width=128, height=128).args[:5]
    assert isinstance(regions[0].area, torch.Tensor) and regions[1].area == Box(0.5, 0.5, 0.5, 0.5)
    assert [box[key] for box in pixels[0][:1] for key in ("x", "y", "width", "height")] == [32, 32, 64, 32]
    assert masks[0].sum().item() == pytest.approx(math.pi / 4 * 64 * 32, rel=2e-3)
    assert masks[0, 48, 64] == 1 and masks[0, 33, 34] == 0
    assert preview[0, 48, 50].sub(preview[0, 33, 34]).abs().max() > 0.1, "the corners of the box stay free"


@pytest.mark.parametrize("size", [(128, 128), (1000, 600)], ids=str)
def test_a_feathered_shape_keeps_what_it_covers_and_fades_outside(size):
    width, height = size
    hard = run(text(HEART | ELLIPSE), width=width, height=height)[3][0]
    soft = run(text(HEART | ELLIPSE | {"feather": 0.25}), width=width, height=height)[3][0]
    assert bool((soft >= hard - 1e-6).all()) and bool((soft[hard == 1] == 1).all())
    y, x = round(0.375 * height), round(0.75 * width)
    row = [float(soft[y, min(width - 1, x + round(step * 0.25 * width))]) for step in (0.25, 0.5, 0.75)]
    assert row == pytest.approx([0.75, 0.5, 0.25], abs=0.07)


def test_a_mask_becomes_paint_and_the_same_mask_again():
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    messages = run("", width=64, height=64, boxes=ramp[None]).ui
    words, mark = messages["boxwright_upstream"]
    [back] = regions_json.parse_drawing(words).regions
    drawn = regions_json.regions_to_json([Region("sky", back.area, 1.0, back.extra)])
    drawn = drawn.replace('"version": 1', f'"version": 1, "upstream": "{mark}"')
    again = run(drawn, width=64, height=64, boxes=ramp[None])
    assert "boxwright_upstream" not in again.ui
    torch.testing.assert_close(again[3][0], ramp, atol=0.011, rtol=0.0)


@pytest.mark.parametrize("extra, told", [
    ({"workflow": {"id": "a-b-c"}}, {"boxwright_workflow": ["a-b-c"]}),
    ({"workflow": {"id": 5}}, {}), ({"workflow": []}, {}), ({}, {}), (None, {}),
])  # fmt: skip
def test_the_browser_is_told_which_workflow_runs(extra, told):
    assert box_editor.workflow_of(types.SimpleNamespace(extra_pnginfo=extra)) == told
    assert box_editor.workflow_of(None) == {}
