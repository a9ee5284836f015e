"""The report's numbers, against numbers worked out by hand."""

import pytest
import torch
from pack.attention_patches.core.types import Box, Region
from pack.nodes.parts.layout_report import MAX_OVERLAP_LINES, layout_report


def test_report_of_two_separate_boxes():
    regions = [Region("red heart", Box(0.0, 0.0, 0.5, 0.5)), Region("blue star", Box(0.5, 0.5, 0.5, 0.25), 0.5)]
    assert layout_report(regions, 512, 384).splitlines() == [
        "2 regions on 512 x 384 pixels. Covered: 37.5 % of the image; uncovered: 62.5 %.",
        "1. red heart: 25.0 % (box)",
        "2. blue star: 12.5 % (box, strength 0.5)",
        "No two regions overlap on more than 1.0 % of the image.",
    ]


def test_overlap_is_counted_once_in_the_cover():
    # 0.6 x 0.6 twice, shifted by 0.3: overlap 0.3 x 0.3, cover 0.36 + 0.36 - 0.09.
    lines = layout_report([Region("a", Box(0.0, 0.0, 0.6, 0.6)), Region("b", Box(0.3, 0.3, 0.6, 0.6))], 512, 512)
    assert "Covered: 63.0 % of the image; uncovered: 37.0 %." in lines
    assert "1 and 2 overlap: 9.0 %" in lines
    assert "the picture shows the later one on top" in lines


def test_touching_boxes_leave_no_gap_and_no_overlap():
    third = 1.0 / 3.0
    report = layout_report([Region(str(i), Box(i * third, 0.0, third, 1.0)) for i in range(3)], 512, 512)
    assert "Covered: 100.0 % of the image; uncovered: 0.0 %." in report
    assert "No two regions overlap" in report


def test_masks_of_any_size_and_softness():
    soft = torch.zeros(3, 5)
    soft[:, 0] = 0.5  # a fifth of the image at half strength
    report = layout_report([Region("cloud", soft), Region("left", Box(0.0, 0.0, 0.2, 1.0))], 640, 512)
    assert "1. cloud: 10.0 % (mask)" in report
    assert "1 and 2 overlap: 10.0 %" in report
    assert "Covered: 20.0 %" in report
    corner = torch.zeros(8, 8)
    corner[0, :4] = 0.5
    assert "1. cloud: 3.1 % (mask)" in layout_report([Region("cloud", corner)], 640, 512)


def test_small_overlaps_are_left_out_and_many_are_bounded():
    report = layout_report([Region("a", Box(0, 0, 0.5, 0.5)), Region("b", Box(0.49, 0.0, 0.5, 0.5))], 512, 512)
    assert "No two regions overlap on more than 1.0 %" in report  # 0.01 x 0.5
    report = layout_report([Region(f"r{i}", Box(0.4, 0.4, 0.2, 0.2)) for i in range(64)], 512, 512)
    assert sum(" overlap: 4.0 %" in line for line in report.splitlines()) == MAX_OVERLAP_LINES
    assert f"and {64 * 63 // 2 - MAX_OVERLAP_LINES} more overlaps" in report


@pytest.mark.parametrize(
    ("side", "grids"),
    [
        (0.125, None),  # exactly one cell of the 8 x 8 grid
        (0.08, "8 x 8 by half"),  # 0.41 of its area
        (0.03, "8 x 8 and 16 x 16 by half"),
    ],
)
def test_regions_below_one_attention_cell_are_flagged(side, grids):
    report = layout_report([Region("dot", Box(0.0, 0.0, side, side))], 512, 512)
    assert ("too small for the coarsest attention grid" in report) == (grids is not None)
    assert grids is None or grids in report


def test_the_grid_follows_the_size_of_the_picture():
    dot = Region("dot", Box(0.0, 0.0, 0.03, 0.03))
    assert "too small" not in layout_report([dot], 2048, 2048)  # 61 of 64 pixels
    assert "24 x 6 and 48 x 12 by half" in layout_report([dot], 1536, 384)


def test_a_speck_is_not_called_nothing():
    assert "1. dot: under 0.1 %" in layout_report([Region("dot", Box(0.5, 0.5, 0.01, 0.01))], 512, 512)


def test_phrases_are_shortened_to_one_line():
    report = layout_report([Region("a\nb\x1b" + "c" * 900, Box(0, 0, 1, 1))], 512, 512)
    assert "1. a b " + "c" * 53 + "...: 100.0 %" in report
