"""Wire data -> regions: every accepted shape, and every refusal with the words a user needs."""

import json
import random

import numpy as np
import pytest
import torch
from pack.attention_patches.core.types import MAX_REGIONS, Box, BoxwrightError, Region
from pack.nodes.parts import boxes, checks, regions_json


def layout_text(*regions, **top):
    return json.dumps({"type": "boxwright.regions", "version": 1, "regions": list(regions)} | top)


def entry(**changes):
    return {"phrase": "red heart", "x": 0.1, "y": 0.2, "width": 0.3, "height": 0.4} | changes


def pixel_box(x=64, y=32, width=128, height=64, **more):
    return {"x": x, "y": y, "width": width, "height": height, **more}


def refused(*words):
    """pytest.raises for a BoxwrightError that names all of these, on one line of sane length."""

    def check(error):
        text = str(error)
        return all(word in text for word in words) and len(text) < 500 and "\n" not in text

    return pytest.raises(BoxwrightError, check=check)


# Our JSON


def test_json_becomes_regions():
    text = layout_text(entry(), entry(phrase="  blue star ", strength=0.5))
    assert regions_json.parse_regions_json(text) == (
        Region("red heart", Box(0.1, 0.2, 0.3, 0.4)),
        Region("blue star", Box(0.1, 0.2, 0.3, 0.4), 0.5),
    )


def test_whole_numbers_and_the_whole_image():
    (region,) = regions_json.parse_regions_json(layout_text(entry(x=0, y=0, width=1, height=1, strength=0)))
    assert region == Region("red heart", Box(0.0, 0.0, 1.0, 1.0), 0.0)


def test_unknown_keys_survive_the_round_trip():
    text = layout_text(entry(locked=True, note={"by": ["Ann", None, 1.5]}))
    (region,) = regions_json.parse_regions_json(text)
    assert region.extra == {"locked": True, "note": {"by": ["Ann", None, 1.5]}}
    assert regions_json.parse_regions_json(regions_json.regions_to_json([region])) == (region,)


def test_unknown_keys_never_overrule_known_ones():
    region = Region("red heart", Box(0.1, 0.2, 0.3, 0.4), extra={"x": 0.9, "phrase": "wolf", "note": 1})
    (read,) = regions_json.parse_regions_json(regions_json.regions_to_json([region]))
    assert (read.phrase, read.area, read.extra) == (region.phrase, region.area, {"note": 1})


def test_round_trip_of_random_layouts():
    rng = random.Random(0)
    letters = "aé\"\\/ \u4e2d\U0001f98a'{}[],:"
    for _ in range(200):
        regions = []
        for _ in range(rng.randint(1, 8)):
            x, y = rng.random() * 0.9, rng.random() * 0.9
            width, height = (1.0 - x) * rng.uniform(0.01, 1.0), (1.0 - y) * rng.uniform(0.01, 1.0)
            phrase = "p" + "".join(rng.choices(letters, k=rng.randint(0, 30))) + "q"
            regions.append(Region(phrase, Box(x, y, width, height), rng.random(), {"seed": rng.random()}))
        text = regions_json.regions_to_json(regions)
        read = regions_json.parse_regions_json(text)
        assert read == tuple(regions)
        assert regions_json.regions_to_json(read) == text


def test_example_is_valid_and_has_one_line_per_region():
    text = regions_json.regions_to_json(boxes.EXAMPLE_REGIONS)
    assert regions_json.parse_regions_json(text) == boxes.EXAMPLE_REGIONS
    assert [json.loads(line.strip(" ,"))["phrase"] for line in text.splitlines()[1:-1]] == ["red heart", "blue star"]


@pytest.mark.parametrize(
    "changes",
    [
        {"x": -1e-7},
        {"x": 0.7, "width": 0.3 + 1e-7},
        {"y": -9e-7, "height": 1.0 + 1.8e-6},
        {"x": 0.1, "width": 0.9},
    ],
)
def test_float_rounding_is_clamped(changes):
    (region,) = regions_json.parse_regions_json(layout_text(entry(**changes)))
    box = region.area
    assert 0.0 <= box.x < box.x + box.width <= 1.0
    assert 0.0 <= box.y < box.y + box.height <= 1.0
    assert box.x == pytest.approx(max(changes.get("x", 0.1), 0.0), abs=2e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": -0.1}, ("x -0.1", "outside", "at least 0")),
        ({"x": 0.8}, ("x 0.8", "width 0.3", "outside")),
        ({"y": 0.61}, ("y 0.61", "height 0.4", "outside")),
        ({"y": 51, "height": 102}, ("y 51", "fractions, not pixels")),
        ({"width": 0}, ("width 0", "above 0")),
        ({"height": -0.25}, ("height -0.25", "above 0")),
        ({"x": 0.5, "width": 1e-20}, ("outside the image, or all but", "enlarge")),
        ({"x": "0.1"}, ("x must be a number", "'0.1'")),
        ({"width": True}, ("width must be a number", "True")),
        ({"height": None}, ("height must be a number", "null")),
        ({"y": [0.1]}, ("y must be a number", "[0.1]")),
        ({"x": 10**400}, ("x must be an ordinary number",)),
        ({"strength": 1.5}, ("strength 1.5", "0 to 1")),
        ({"strength": -0.1}, ("strength -0.1",)),
        ({"strength": "full"}, ("strength must be a number", "'full'")),
    ],
)
def test_bad_numbers_are_refused_by_region_value_and_rule(changes, words):
    with refused("Region 2", "red heart", *words):
        regions_json.parse_regions_json(layout_text(entry(phrase="fine"), entry(**changes)))


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("", ("is empty",)),
        (" \n\t", ("is empty",)),
        (7, ("must be text", "7")),
        (None, ("must be text",)),
        ("a" * 1001, ("1001 characters", "1000")),
        ("\ud800", ("half of a character pair",)),
    ],
)
def test_bad_phrases_are_refused(phrase, words):
    with refused("phrase of region 1", *words):
        regions_json.parse_regions_json(layout_text(entry(phrase=phrase)))


def test_phrase_of_the_greatest_length_is_read():
    (region,) = regions_json.parse_regions_json(layout_text(entry(phrase="a" * 1000)))
    assert len(region.phrase) == 1000


@pytest.mark.parametrize("digits", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["x", "unknown_key"])
def test_numbers_that_are_none_are_refused_everywhere(digits, key):
    with refused("regions_json holds", digits.lstrip("-")):
        regions_json.parse_regions_json(layout_text(entry(**{key: 5150515})).replace("5150515", digits))


def test_missing_keys_are_named():
    with refused("Region 1", "lacks phrase, height"):
        regions_json.parse_regions_json(layout_text({"x": 0, "y": 0, "width": 1}))
    with refused("Region 1", "must be an object", "'red heart'"):
        regions_json.parse_regions_json(layout_text("red heart"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("not valid JSON", "line 1, column 2")),
        ('{"type": "boxwright.regions",\n "version": 1,\n oops}', ("not valid JSON", "line 3, column 2")),
        ('{"regions": ' + "9" * 5000 + "}", ("number that cannot be read",)),
        ("[" * 100_000, ("levels deep",)),
        ("[" * 100_000 + "]" * 100_000, ("levels deep",)),
        (layout_text(entry(deep="HERE")).replace('"HERE"', "[" * 40 + "]" * 40), ("levels deep",)),
        (layout_text(entry(note="x" * 1_000_000)), ("1000000 are read", "characters long")),
        (layout_text(*[entry()] * 10_000), ("10000 regions", "64")),
        (layout_text(*[entry()] * (MAX_REGIONS + 1)), ("65 regions", "64")),
        (layout_text(), ("at least one region",)),
        (layout_text(regions={"a": 1}), ("must be a list",)),
        ('{"type": "boxwright.regions", "version": 1}', ("at least one region", "missing")),
        (layout_text(entry(), version=2), ("version 2", "newer", "Update the Boxwright pack")),
        (layout_text(entry(), version=0), ('"version" in regions_json must be 1', "0")),
        (layout_text(entry(), version="1"), ('"version" in regions_json must be 1', "'1'")),
        (layout_text(entry(), version=True), ('"version" in regions_json must be 1', "True")),
        (layout_text(entry(), version=None), ('"version" in regions_json must be 1', "missing")),
        (layout_text(entry(), type="other.regions"), ("not a Boxwright layout", "'other.regions'")),
        ('{"regions": []}', ("not a Boxwright layout", '"type" is missing')),
        ('{"nodes": [], "links": []}', ("looks like a ComfyUI workflow",)),
        ('{"3": {"class_type": "KSampler", "inputs": {}}}', ("looks like a ComfyUI workflow",)),
        ('{"compositional_deconstruction": {}}', ("JSON prompt", "elements socket")),
        ('[{"type": "obj", "bbox": [0, 0, 9, 9], "desc": "a"}]', ("list whose first entry is an element",)),
        ('[{"x": 1, "y": 1, "width": 9, "height": 9}]', ("bare box", "bounding_boxes socket")),
        ('{"zebra": 1, "ant": 2}', ("object with the keys ['ant', 'zebra']",)),
        ('"red heart"', ("looks like 'red heart'",)),
        ("[]", ("looks like []",)),
        ("null", ("looks like missing or null",)),
    ],
)
def test_text_that_is_no_layout_is_refused(text, words):
    with refused("regions_json", *words):
        regions_json.parse_regions_json(text)


def test_as_many_regions_as_allowed():
    assert len(regions_json.parse_regions_json(layout_text(*[entry()] * MAX_REGIONS))) == MAX_REGIONS


# BOUNDING_BOX

ONE = Box(0.25, 0.25, 0.5, 0.5)  # pixel_box() on a picture of 256 x 128


@pytest.mark.parametrize(
    "value",
    [
        pixel_box(),
        [pixel_box()],
        [[pixel_box()]],
        ([pixel_box()],),
        pixel_box(64.0, 32.0, 128.0, 64.0),
        pixel_box(np.float32(64), np.int64(32), np.float64(128), np.int32(64)),
        [[pixel_box(score=0.9, label=3)]],
        [pixel_box(metadata={"type": "obj", "text": "", "desc": " ", "palette": []})],
    ],
)
def test_every_shape_of_bounding_box_without_text(value):
    assert boxes.from_bounding_boxes(value, 256, 128) == (Region("", ONE),)


@pytest.mark.parametrize(
    ("more", "phrase"),
    [
        ({"label": "dog", "score": 0.9}, "dog"),
        ({"metadata": {"type": "obj", "text": "", "desc": "a dog"}}, "a dog"),
        ({"metadata": {"type": "text", "text": "OPEN", "desc": ""}}, "OPEN"),
        ({"metadata": {"type": "text", "text": "OPEN", "desc": "neon sign"}, "label": "tv"}, "neon sign"),
    ],
)
def test_the_text_a_box_carries_is_its_phrase(more, phrase):
    assert boxes.from_bounding_boxes([pixel_box(**more)], 256, 128) == (Region(phrase, ONE),)


def test_frames():
    frames = [[], [pixel_box(), pixel_box(0, 0, 256, 128)]]
    assert [r.area for r in boxes.from_bounding_boxes(frames, 256, 128, 1)] == [ONE, Box(0.0, 0.0, 1.0, 1.0)]
    assert boxes.from_bounding_boxes(pixel_box(), 256, 128, 7) == (Region("", ONE),)
    with refused("holds no box", "frame 0"):
        boxes.from_bounding_boxes(frames, 256, 128)
    for frame in (2, -1):
        with refused(f"frame {frame} does not exist", "2 frames", "from 0"):
            boxes.from_bounding_boxes(frames, 256, 128, frame)
    with refused("Frame 1", "list of boxes"):
        boxes.from_bounding_boxes([[pixel_box()], pixel_box()], 256, 128, 1)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (pixel_box(-64, -32, 128, 64), Box(0.0, 0.0, 0.25, 0.25)),
        (pixel_box(192, 96, 128, 64), Box(0.75, 0.75, 0.25, 0.25)),
        (pixel_box(-5, -5, 1000, 1000), Box(0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_detector_boxes_are_cut_at_the_edge(box, expected):
    assert boxes.from_bounding_boxes(box, 256, 128) == (Region("", expected),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pixel_box(256, 0), ("Box 1", "256 x 128 pixels", "outside")),
        (pixel_box(0, -64), ("Box 1", "outside", "y -0.5 to 0")),
        ([pixel_box(), pixel_box(width=0)], ("Box 2", "width 0", "above 0")),
        (pixel_box(height=-3), ("height -3", "above 0")),
        (pixel_box(x=float("nan")), ("x must be an ordinary number", "nan")),
        (pixel_box(y=float("inf")), ("y must be an ordinary number", "inf")),
        (pixel_box(x="64"), ("x must be a number", "'64'")),
        (pixel_box(x=True), ("x must be a number", "True")),
        (pixel_box(label="dog" * 400_000), ("text of box 1", "1200000 characters")),
        ({"x": 1, "y": 2}, ("must have x, y, width and height",)),
        ([pixel_box(), [pixel_box()]], ("Box 2", "must have x, y, width and height")),
        ([None], ("Box 1", "missing or null")),
        ("64,32,128,64", ("must be a box, a list of boxes",)),
        ([], ("holds no box",)),
        ([[]], ("holds no box",)),
        ([pixel_box()] * 10_000, ("10000 regions", "64")),
    ],
)
def test_bad_bounding_boxes_are_refused(value, words):
    with refused(*words):
        boxes.from_bounding_boxes(value, 256, 128)


def test_a_picture_without_pixels_is_refused():
    with refused("width 0", "at least 1"):
        boxes.from_bounding_boxes(pixel_box(), 0, 128)


# ARRAY elements


def element(bbox=(250, 125, 750, 500), **more):
    return {"type": "obj", "bbox": list(bbox), **more}


def test_elements_are_y_first_on_a_thousand():
    assert boxes.from_elements([element(desc="a dog")]) == (Region("a dog", Box(0.125, 0.25, 0.375, 0.5)),)


@pytest.mark.parametrize(
    ("more", "phrase"),
    [
        ({"type": "text", "text": "OPEN", "desc": "neon sign", "color_palette": ["#fff"]}, "neon sign"),
        ({"type": "text", "text": "OPEN", "desc": ""}, "OPEN"),
        ({"desc": ""}, ""),
        ({}, ""),
    ],
)
def test_description_before_lettering(more, phrase):
    (region,) = boxes.from_elements([element(**more)])
    assert region.phrase == phrase


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ("holds no element",)),
        ("[]", ("must be a list",)),
        ([pixel_box()], ("Element 1", "bounding_boxes socket")),
        ([element(), element((1, 2, 3))], ("Element 2", "[ymin, xmin, ymax, xmax]")),
        ([element((750, 125, 250, 500))], ("Element 1", "turned around")),
        ([element((250, 125, 750, 125))], ("Element 1", "empty")),
        ([element((250, 125, 750, 1001))], ("1001", "outside 0 to 1000")),
        ([element((-1, 125, 750, 500))], ("-1", "outside 0 to 1000")),
        ([element(("1", 125, 750, 500))], ("must be a number", "'1'")),
        ([element((float("nan"), 125, 750, 500))], ("ordinary number", "nan")),
        ([7], ("Element 1", "7")),
        ([element()] * 65, ("65 regions", "64")),
    ],
)
def test_bad_elements_are_refused(value, words):
    with refused(*words):
        boxes.from_elements(value)


# MASK


def test_masks_keep_soft_edges_and_are_clamped():
    mask = torch.tensor([[0.0, 0.25, 1.0], [-1.0, 0.5, 2.0]], dtype=torch.float64)
    (region,) = boxes.from_masks(mask)
    assert region.area.dtype == torch.float32
    assert region.area.tolist() == [[0.0, 0.25, 1.0], [0.0, 0.5, 1.0]]


def test_the_connected_mask_stays_as_it_was():
    mask = torch.tensor([[-1.0, 2.0]])  # the host caches what nodes hand out
    boxes.from_masks(mask)
    assert mask.tolist() == [[-1.0, 2.0]]


def test_a_mask_batch_is_one_region_each():
    batch = torch.stack([torch.full((3, 5), 0.1), torch.full((3, 5), 0.2)])
    assert [float(r.area.mean()) for r in boxes.from_masks(batch)] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (torch.stack([torch.ones(4, 4), torch.full((4, 4), float("nan"))]), ("Mask 2", "NaN")),
        (torch.full((1, 4, 4), float("inf")), ("Mask 1", "infinite")),
        (torch.ones(1, 1, 4, 4), ("[B, H, W]", "[1, 1, 4, 4]")),
        (torch.ones(4), ("[B, H, W]", "[4]")),
        (torch.ones(0, 4, 4), ("no pixels", "[0, 4, 4]")),
        (torch.ones(2, 0, 4), ("no pixels",)),
        (torch.ones(65, 2, 2), ("65 regions",)),
        ([[1.0]], ("[B, H, W]", "[[1.0]]")),
    ],
)
def test_bad_masks_are_refused(masks, words):
    with refused(*words):
        boxes.from_masks(masks)


# Phrases, and everything together


def named(regions, phrases):
    return [region.phrase for region in boxes.name_regions(regions, phrases)]


UNNAMED, DOG = Region("", ONE), Region("dog", ONE)


@pytest.mark.parametrize(
    ("regions", "phrases", "expected"),
    [
        ([UNNAMED, UNNAMED], "cat\nhat", ["cat", "hat"]),
        ([UNNAMED, UNNAMED], "\n  cat \r\n\n hat\n", ["cat", "hat"]),
        ([DOG, DOG], "", ["dog", "dog"]),
        ([UNNAMED, DOG, UNNAMED], "cat\nhat", ["cat", "dog", "hat"]),
        ([UNNAMED, DOG], "cat\nwolf", ["cat", "wolf"]),
        ([], " \n", []),
    ],
)
def test_lines_become_phrases(regions, phrases, expected):
    assert named(regions, phrases) == expected


@pytest.mark.parametrize(
    ("regions", "phrases", "words"),
    [
        ([UNNAMED, UNNAMED], "cat", ("1 line,", "need 2", "2 areas")),
        ([UNNAMED], "cat\nhat\nbat", ("3 lines", "need 1", "1 area ")),
        ([UNNAMED, DOG, DOG], "cat\nhat", ("2 lines", "1, or 3 to name every area anew", "3 areas")),
        ([UNNAMED], "", ("0 lines", "need 1")),
        ([], "cat", ("1 line,", "no area is connected", "Clear phrases")),
        ([UNNAMED], "c" * 1001, ("area 1", "1001 characters")),
    ],
)
def test_wrong_number_of_lines_names_both(regions, phrases, words):
    with refused(*words):
        boxes.name_regions(regions, phrases)


def test_all_inputs_together_in_order():
    regions = boxes.collect_regions(
        layout_text(entry()),
        "sun\ncloud\nmoon",
        256,
        128,
        bounding_boxes=[pixel_box(label="dog"), pixel_box()],
        elements=[element(desc="neon sign")],
        masks=torch.ones(2, 4, 6),
    )
    assert [region.phrase for region in regions] == ["red heart", "dog", "sun", "neon sign", "cloud", "moon"]
    assert [type(region.area) for region in regions] == [Box] * 4 + [torch.Tensor] * 2


def test_masks_of_other_sizes_stand_beside_boxes():
    regions = boxes.collect_regions(layout_text(entry()), "cloud", 256, 128, masks=torch.ones(1, 3, 7))
    assert regions[1].area.shape == (3, 7)


def test_an_empty_mask_is_named():
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    with refused("Mask 2", "cloud", "is empty"):
        boxes.collect_regions("", "dog\nsun\ncloud", 256, 128, bounding_boxes=pixel_box(), masks=masks)
    with refused("Mask 1", "sun", "is empty"):
        boxes.collect_regions("", "sun", 256, 128, masks=-torch.ones(1, 4, 4))


def test_no_region_at_all():
    with refused("no region", "regions_json", "masks"):
        boxes.collect_regions("  \n", "", 256, 128)


def test_more_regions_than_allowed_over_all_inputs():
    with refused("65 regions", "64"):
        boxes.collect_regions(layout_text(*[entry()] * 64), "sun", 256, 128, masks=torch.ones(1, 4, 4))


def test_shortened_is_one_printable_line():
    assert checks.shortened("a\x00b\n\tc\u202e d", 40) == "a b c d"
    assert checks.shortened("abcdefghij", 8) == "abcde..."


def test_boxes_of_a_detector_on_the_wire_are_read_as_its_text():
    """[x1, y1, x2, y2] in pixels where only that fits, not the elements' [top, left, bottom, right] in thousandths."""
    found = boxes.from_anything([{"bbox": [300, 50, 400, 500], "label": "cat"}], 512, 512)
    assert [(region.phrase, region.area) for region in found] == [
        ("cat", Box(300 / 512, 50 / 512, 100 / 512, 450 / 512))
    ]
    with pytest.raises(BoxwrightError, match="both fit.*Write xyxy or xywh"):
        boxes.from_anything([{"bbox": [100, 50, 300, 400], "label": "cat"}], 512, 512)
