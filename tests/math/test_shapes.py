"""Regions that are not boxes: read, refused, covered, imported from masks and written, as the golden cases say."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest
import torch
from pack.attention_patches.core.grids import coverage
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import boxes, regions_json, shapes

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "shapes.json").read_text("utf-8"))
HEART = {"phrase": "red heart", "x": 0.1, "y": 0.2, "width": 0.5, "height": 0.4}
ELLIPSE = {"kind": "ellipse"}


def text(*regions):
    return json.dumps({"type": regions_json.FORMAT_TYPE, "version": 1, "regions": list(regions)})


def read(**changes):
    [region] = regions_json.parse_regions_json(text(HEART | changes))
    return region


def test_the_limits_are_the_golden_ones():
    ours = {"steps": shapes.STEPS, "points": [shapes.MIN_POINTS, shapes.MAX_POINTS], "cells": shapes.MAX_CELLS}
    assert GOLDEN["limits"] == ours | {"runs": shapes.MAX_RUNS, "letters": shapes.LETTERS}


@pytest.mark.parametrize("case", GOLDEN["shapes"], ids=range(len(GOLDEN["shapes"])))
def test_shapes_cover_what_the_golden_cases_say(case):
    box, shape = Box(*case["box"]), case["shape"]
    cells = shapes.rasterized(shape, box, (5, 4))
    assert cells.flatten().tolist() == pytest.approx(case["cells"], abs=2e-6)
    assert float(shapes.rasterized(shape, box, (96, 96)).double().mean()) == pytest.approx(case["covered"], abs=2e-6)
    region = read(**dict(zip(shapes.BOX_KEYS, case["box"], strict=True)), shape=shape)
    assert coverage(region.area, (5, 4)).flatten().tolist() == pytest.approx(case["cells"], abs=6e-3)


@pytest.mark.parametrize("shape", GOLDEN["refused"], ids=range(len(GOLDEN["refused"])))
def test_what_is_no_shape_is_refused_in_words(shape):
    with pytest.raises(BoxwrightError, match="Region 1 of regions_json .*red heart") as refused:
        read(shape=shape)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("case", GOLDEN["fields"], ids=range(len(GOLDEN["fields"])))
def test_further_fields_are_read_as_the_golden_cases_say(case):
    region = read(**case["given"])
    for key, value in case["read"].items():
        assert region.extra[key] == value if key in region.extra else getattr(region, key) == value


def test_areas_are_those_of_geometry():
    box = Box(0.2, 0.1, 0.6, 0.8)
    grid = (512, 512)
    assert float(shapes.rasterized(ELLIPSE, box, grid).double().mean()) == pytest.approx(math.pi * 0.12, rel=1e-4)
    triangle = {"kind": "polygon", "points": [0, 10000, 5000, 0, 10000, 10000]}
    assert float(shapes.rasterized(triangle, box, grid).double().mean()) == pytest.approx(0.24, rel=1e-3)
    square = {"kind": "polygon", "points": [0, 0, 10000, 0, 10000, 10000, 0, 10000]}
    torch.testing.assert_close(shapes.rasterized(square, box, (40, 40)), coverage(box, (40, 40)))
    whole = {"kind": "paint", "width": 3, "height": 7, "runs": "Z21"}
    torch.testing.assert_close(shapes.rasterized(whole, box, (33, 17)), coverage(box, (33, 17)))


def test_a_shape_is_written_as_it_was_read():
    for case in GOLDEN["shapes"]:
        region = read(**dict(zip(shapes.BOX_KEYS, case["box"], strict=True)), shape=case["shape"], mine=[1])
        written = json.loads(regions_json.regions_to_json([region]))["regions"][0]
        assert written["shape"] == case["shape"] and written["mine"] == [1]
        assert [written[key] for key in shapes.BOX_KEYS] == pytest.approx(case["box"])


def test_another_mask_is_not_written_as_the_shape_that_it_had():
    region = read(shape=ELLIPSE)
    other = Region(region.phrase, torch.roll(region.area, 40, 1), 1.0, region.extra)
    shape, box = shapes.outline_of(other)
    assert shape["kind"] == "paint" and box.x == pytest.approx(0.1 + 40 / 512, abs=2e-3)
    boxed = Region(region.phrase, Box(0.0, 0.0, 1.0, 1.0), 1.0, region.extra)
    written = json.loads(regions_json.regions_to_json([boxed]))["regions"][0]
    assert "shape" not in written and written["width"] == 1.0


def test_no_shape_is_a_box():
    assert read(shape=None).area == Box(0.1, 0.2, 0.5, 0.4)
    assert "shape" not in read(shape=None).extra


@pytest.mark.parametrize("size", [(40, 60), (512, 512), (700, 1100), (1, 1), (3, 2000)], ids=str)
def test_a_mask_becomes_paint_that_covers_the_same(size):
    torch.manual_seed(0)
    down, across = (torch.arange(side) / max(1, side - 1) for side in size)
    soft = (1.3 - 2.6 * torch.hypot(down[:, None] - 0.4, across[None] - 0.6)).clamp(0.0, 1.0)
    if not soft.any():
        soft += 0.7
    [region] = boxes.from_anything(soft, 9, 9)
    [back] = regions_json.parse_drawing(regions_json.regions_to_json([region])).regions
    grid = (20, 30)
    torch.testing.assert_close(coverage(back.area, grid), coverage(soft, grid), atol=0.02, rtol=0.0)
    assert regions_json.regions_to_json([back]) == regions_json.regions_to_json([region])


def test_noise_becomes_coarser_until_it_fits():
    torch.manual_seed(0)
    shape, box = shapes.paint_of(torch.rand(600, 600))
    assert len(shape["runs"]) <= shapes.MAX_RUNS and 80 <= shape["width"] <= 256
    assert box == Box(0.0, 0.0, 1.0, 1.0)
    faint = torch.zeros(2000, 2000)
    faint[0, 0] = faint[-1, -1] = 0.01
    shape, _ = shapes.paint_of(faint)
    assert shapes.painted_cells(shape, "here").any()


def test_a_mask_that_is_a_rectangle_becomes_a_box_and_an_empty_one_is_refused():
    mask = torch.zeros(3, 4, 8)
    mask[0, 1:3, 2:6] = 1.0
    mask[1, 3, 7] = 0.5
    first, second = boxes.from_anything(mask[:2], 9, 9)
    assert first.area == Box(0.25, 0.25, 0.5, 0.5)
    assert shapes.bounding_box(second) == Box(0.875, 0.75, 0.125, 0.25) and isinstance(second.area, torch.Tensor)
    with pytest.raises(BoxwrightError, match="Mask 3 .*is empty"):
        boxes.from_anything(mask, 9, 9)


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "polygon", "points": [1, 2] * 100_000},
        {"kind": "paint", "width": 512, "height": 512, "runs": "aZ" * 450_000},
        {"kind": "paint", "width": 1e300, "height": 512, "runs": "Z"},
        {"kind": "paint", "width": 512, "height": 512, "runs": "a1" * 7_500},
        {"kind": "paint", "width": 512, "height": 512, "runs": "Z999999" * 2_000},
        {"kind": "polygon", "points": [[[[0]]]] * 20_000},
    ],
    ids=range(6),
)
def test_hostile_shapes_are_refused_before_they_are_unpacked(shape):
    long = text(*[HEART | {"shape": ELLIPSE}] * 10, HEART | {"shape": shape})
    tracemalloc.start()
    try:
        with pytest.raises(BoxwrightError):
            regions_json.parse_drawing(long)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20  # what reading the JSON and the ellipses before it takes, and no grid of its own


def test_nan_is_refused_and_the_largest_drawing_that_is_allowed_is_read():
    with pytest.raises(BoxwrightError, match="only ordinary numbers"):
        regions_json.parse_drawing(text(HEART | {"shape": {"kind": "polygon", "points": [math.nan] * 6}}))
    points = [(7 * n * n) % 10_001 for n in range(512)]
    noise = {"kind": "paint", "width": 512, "height": 14, "runs": "aZ" * 3_584}
    regions = [HEART | {"shape": {"kind": "polygon", "points": points}}] * 32 + [HEART | {"shape": noise}] * 32
    assert len(regions_json.parse_drawing(text(*regions)).regions) == 64


def test_a_shape_too_thin_to_cover_anything_is_refused():
    with pytest.raises(BoxwrightError, match="covers nothing"):
        read(shape={"kind": "polygon", "points": [0, 0, 5000, 0, 10000, 0]})


def test_boxes_around_shapes_and_masks_at_the_size_of_the_picture():
    region = read(shape=ELLIPSE)
    [[box]] = boxes.to_bounding_boxes([region], 100, 50)
    assert {key: box[key] for key in shapes.BOX_KEYS} == {"x": 10, "y": 10, "width": 50, "height": 20}
    sharp = shapes.covered_pixels(region, 800, 1600)
    torch.testing.assert_close(sharp, shapes.rasterized(ELLIPSE, Box(0.1, 0.2, 0.5, 0.4), (800, 1600)))
    assert float(((sharp > 0) & (sharp < 1)).float().mean()) < 0.002


def test_masks_from_elsewhere_are_not_turned_into_paint_only_to_be_measured(monkeypatch):
    mask = torch.zeros(4, 8)
    mask[1:3, 2:6] = 0.5
    expected = shapes.paint_of(mask)[1]
    monkeypatch.setattr(shapes, "paint_of", None)  # slow where a mask is large
    assert shapes.bounding_box(Region("a", mask)) == expected == Box(0.25, 0.25, 0.5, 0.5)
    torch.testing.assert_close(shapes.covered_pixels(Region("a", mask), 4, 8), mask)
    with pytest.raises(BoxwrightError, match="empty"):
        shapes.bounding_box(Region("a", torch.zeros(4, 8)))


def test_as_many_masks_as_there_may_be_regions_make_a_text_that_is_read():
    torch.manual_seed(0)
    noisy = Region("w" * 1000, torch.rand(100, 120), negative="n" * 1000)
    written = regions_json.regions_to_json([noisy] * 64)
    assert len(written) <= regions_json.MAX_TEXT
    assert len(regions_json.parse_drawing(written).regions) == 64
