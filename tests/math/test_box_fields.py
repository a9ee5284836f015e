"""The box editor's text and what a region may carry: checked once, in words, and kept."""

import copy
import json
import pickle

import pytest
from pack.attention_patches.core.regions import OPTIONS
from pack.attention_patches.core.types import Box, BoxwrightError, Moment, Region, StepWindow, holds_in, window_of
from pack.nodes.parts import boxes, regions_json

HEART = {"phrase": "red heart", "x": 0.1, "y": 0.2, "width": 0.3, "height": 0.4}


def text(*regions, **more):
    return json.dumps({"type": regions_json.FORMAT_TYPE, "version": 1, "regions": list(regions), **more})


def test_options_are_checked_and_become_fields_and_the_rest_is_kept():
    given = {
        "negative": " blurry ",
        "start": 0,
        "end": 1,
        "feather": 0.25,
        "opacity": 0.5,
        "color": "#E69f00",
        "enabled": True,
        "lora": " inks\\blue.safetensors ",
        "lora_strength": -2,
        "locked": True,
        "hidden": False,
        "theirs": {"a": [1]},
    }
    [region] = regions_json.parse_regions_json(text(HEART | given))
    assert region == Region(
        "red heart",
        Box(0.1, 0.2, 0.3, 0.4),
        1.0,
        {key: given[key] for key in ("locked", "hidden", "theirs")},
        negative="blurry",
        start=0.0,
        end=1.0,
        feather=0.25,
        opacity=0.5,
        color="#E69f00",
        enabled=True,
        lora="inks/blue.safetensors",
        lora_strength=-2.0,
    )
    assert [type(getattr(region, key)) for key in regions_json.FRACTIONS] == [float] * 4
    assert regions_json.parse_regions_json(regions_json.regions_to_json([region])) == (region,)


def test_an_option_is_written_under_the_name_of_its_field_and_only_where_it_says_something():
    values = {
        "negative": "blurry",
        "start": 0.1,
        "end": 0.9,
        "feather": 0.25,
        "opacity": 0.5,
        "color": "#e69f00",
        "enabled": False,
    }
    values |= {"start_frame": 1, "end_frame": 9}
    values |= {"lora": "ink.safetensors", "lora_strength": 0.5}
    assert set(values) == {option.name for option in OPTIONS}
    for key, value in values.items():
        region = Region("red heart", Box(0.1, 0.2, 0.3, 0.4), extra={"mine": 1}, **{key: value})
        (written,) = json.loads(regions_json.regions_to_json([region]))["regions"]
        assert written == HEART | {"strength": 1.0, key: value, "mine": 1}
        if key != "enabled":
            assert regions_json.parse_regions_json(regions_json.regions_to_json([region])) == (region,)


def test_an_unknown_key_never_overrules_a_field():
    region = Region("red heart", Box(0.1, 0.2, 0.3, 0.4), extra={"start": 0.5, "phrase": "wolf"}, start=0.25)
    (read,) = regions_json.parse_regions_json(regions_json.regions_to_json([region]))
    assert (read.start, read.phrase, read.extra) == (0.25, "red heart", {})


def test_a_null_option_is_an_absent_one():
    absent = dict.fromkeys(("negative", "color", "start", "enabled", "strength"))
    [region] = regions_json.parse_regions_json(text(HEART | absent))
    assert region == Region("red heart", Box(0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    "option, words",
    [
        ({"start": -0.1}, "start -0.1 is outside 0 to 1"),
        ({"end": 1.5}, "end 1.5 is outside 0 to 1"),
        ({"feather": "wide"}, "feather must be a number"),
        ({"opacity": 1.01}, "opacity 1.01 is outside 0 to 1"),
        ({"opacity": -0.5}, "opacity -0.5 is outside 0 to 1"),
        ({"opacity": "half"}, "opacity must be a number"),
        ({"opacity": True}, "opacity must be a number"),
        ({"start": 0.5, "end": 0.5}, "start 0.5 must lie below end 0.5"),
        ({"start": 1.0}, "start 1 must lie below end 1"),
        ({"enabled": 1}, "enabled must be true or false"),
        ({"hidden": "no"}, "hidden must be true or false"),
        ({"negative": 5}, "negative must be text"),
        ({"negative": "x" * 1001}, "at most 1000"),
        ({"lora": 5}, "lora must be the name of a file"),
        ({"lora": False}, "lora must be the name of a file"),
        ({"lora": "../ink.safetensors"}, "no name of a file in the folder"),
        ({"lora": "a\\..\\..\\ink.safetensors"}, "no name of a file in the folder"),
        ({"lora": "/etc/passwd"}, "no name of a file in the folder"),
        ({"lora": "C:\\ink.safetensors"}, "no name of a file in the folder"),
        ({"lora": "ink\0.safetensors"}, "no name of a file in the folder"),
        ({"lora": "ink\x85.safetensors"}, "no name of a file in the folder"),
        ({"lora": "ink\ud800.safetensors"}, "no name of a file in the folder"),
        ({"lora": "i" * 301}, "no name of a file in the folder"),
        ({"lora_strength": 10.5}, "lora_strength is 10.5; choose a number from -10"),
        ({"lora_strength": "1"}, "lora_strength must be a number"),
        ({"color": "red"}, "color must look like"),
        ({"color": "#e69f0"}, "color must look like"),
        ({"color": "#e69f00ff"}, "color must look like"),
    ],
)
def test_a_bad_option_names_box_value_and_remedy(option, words):
    with pytest.raises(BoxwrightError, match=words) as refused:
        regions_json.parse_drawing(text(HEART, HEART | option))
    assert "Region 2" in str(refused.value)


def test_a_region_that_is_switched_off_takes_no_part():
    off = HEART | {"phrase": "off", "enabled": False}
    assert [region.phrase for region in regions_json.parse_regions_json(text(off, HEART))] == ["red heart"]
    assert regions_json.parse_drawing(text(off, HEART)).count == 2
    assert regions_json.parse_drawing(text(off)).regions == ()
    with pytest.raises(BoxwrightError, match="switched off"):
        regions_json.parse_regions_json(text(off))


def test_a_drawing_may_be_empty_and_unnamed_but_regions_may_not():
    assert regions_json.parse_drawing("") == regions_json.parse_drawing("  ") == regions_json.Drawing((), 0, "")
    assert regions_json.parse_drawing(text(upstream="mark")).upstream == "mark"
    assert regions_json.parse_drawing(text(upstream=5)).upstream == ""
    assert regions_json.parse_drawing(text(HEART | {"phrase": ""})).regions[0].phrase == ""
    for bad in (text(), text(HEART | {"phrase": ""})):
        with pytest.raises(BoxwrightError):
            regions_json.parse_regions_json(bad)
    with pytest.raises(BoxwrightError, match="is empty"):
        regions_json.parse_drawing(text(HEART | {"phrase": "  "}))


def test_a_regions_own_window_goes_before_the_methods():
    window = StepWindow(0.2, 0.6)
    box = Box(0.0, 0.0, 1.0, 1.0)
    assert window_of(Region("a", box), window) == window
    assert window_of(Region("a", box, end=0.9), window) == StepWindow(0.2, 0.9)
    with pytest.raises(BoxwrightError, match="empty"):
        window_of(Region("a", box, start=0.7), window)


PIXELS = {"x": 64, "y": 32, "width": 128, "height": 64, "label": "cat"}
CAT = (Region("cat", Box(0.25, 0.125, 0.5, 0.25)),)
ELEMENT = {"bbox": [125, 250, 375, 750], "desc": "cat"}


@pytest.mark.parametrize("value", [
    PIXELS, [PIXELS], [[PIXELS], [HEART]], ELEMENT, [ELEMENT], CAT, list(CAT), json.dumps(PIXELS),
    json.dumps([[PIXELS]]), json.dumps([ELEMENT]), regions_json.regions_to_json(CAT),
], ids=range(11))  # fmt: skip
def test_boxes_are_taken_in_any_form(value):
    assert boxes.from_anything(value, 256, 256) == CAT


@pytest.mark.parametrize("value", [5, [], "", "{", "[1]", [None], {"regions": 1}, [["a"]]], ids=repr)
def test_anything_else_is_refused(value):
    with pytest.raises(BoxwrightError):
        boxes.from_anything(value, 256, 256)


def test_boxes_in_pixels_are_inside_the_picture_and_read_back():
    written = text(HEART | {"color": "#112233"}, HEART | {"x": 0.9999, "width": 0.0001})
    regions = regions_json.parse_regions_json(written)
    [[first, second]] = boxes.to_bounding_boxes(regions, 100, 50)
    assert {key: first[key] for key in ("x", "y", "width", "height")} == {"x": 10, "y": 10, "width": 30, "height": 20}
    assert first["metadata"] == {"type": "obj", "text": "", "desc": "red heart", "palette": ["#112233"]}
    assert second["x"] + second["width"] <= 100 and second["width"] == 1
    thin = regions_json.parse_regions_json(text(HEART | {"x": 0.501, "width": 0.001}))
    assert boxes.to_bounding_boxes(thin, 100, 50)[0][0]["width"] == 1
    assert boxes.from_bounding_boxes([[first]], 100, 50)[0].area == Box(0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 30])
@pytest.mark.parametrize(
    "window",
    [
        (0.0, 0.01),
        (0.1, 0.2),
        (0.26, 0.27),
        (0.3, 0.5),
        (0.5, 0.9),
        (0.95, 1.0),
        (0.0, 1.0),
    ],
)
def test_every_window_has_a_step_however_few_there_are(window, steps):
    """Those inside it; where there is none, the one step that passes over it, and no other."""
    window, edges = StepWindow(*window), [step / steps for step in range(steps + 1)]
    moments = [Moment(now, until) for now, until in zip(edges, edges[1:])]
    inside = [float(m) for m in moments if window.start <= m < window.end]
    found = [float(m) for m in moments if window.contains(m)]
    assert found == inside or not inside and len(found) == 1
    if not inside:
        assert found[0] < window.start and window.end <= found[0] + 1 / steps + 1e-9


def test_a_window_that_a_run_never_reaches_has_no_step():
    """The later part of a schedule, as in img2img."""
    assert not any(StepWindow(0.1, 0.3).contains(m) for m in (Moment(0.5, 0.75), Moment(0.75, 1.0)))
    assert not StepWindow(0.3, 0.4).contains(0.25)  # a moment alone says nothing about the next


def test_a_copy_of_a_moment_knows_where_the_next_lies():
    for again in (copy.copy, copy.deepcopy, lambda moment: pickle.loads(pickle.dumps(moment))):
        moment = again(Moment(0.25, 0.5))
        assert (float(moment), moment.until) == (0.25, 0.5)


@pytest.mark.parametrize(
    "start, end, held",
    [
        (None, None, [0, 1, 2]),
        (0, 1, [0]),
        (1, None, [1, 2]),
        (4, 5, [1]),
        (5, None, [2]),
        (None, 5, [0, 1]),
        (9, None, []),
    ],
)
def test_a_region_holds_in_the_frames_that_show_its_pictures(start, end, held):
    """A film's latent frame makes four pictures, the first one."""
    region = Region("cat", Box(0.0, 0.0, 1.0, 1.0), start_frame=start, end_frame=end)
    frames = [(0, 1), (1, 5), (5, 9)]
    assert [k for k, pictures in enumerate(frames) if holds_in(region, pictures)] == held
    assert holds_in(region, None)
