"""Layouts of any origin, read alike by Python and by the editor: the golden cases, which tests/web reads too."""

import json
from pathlib import Path

import pytest
from pack.attention_patches.core.tokens import find_occurrences
from pack.attention_patches.core.types import MAX_PHRASE, MAX_REGIONS, Box, BoxwrightError, Region
from pack.nodes.parts import boxes, checks, layout_units, regions_json
from pack.nodes.parts.layout_import import read_layout
from pack.nodes.parts.layout_report import layout_report

FOLDER = Path(__file__).resolve().parents[1] / "golden"
DRAWING = json.loads((FOLDER / "drawing.json").read_text("utf-8"))
GOLDEN = json.loads((FOLDER / "layouts.json").read_text("utf-8"))


def text_of(case):
    """The case's text; the two that would be long are written out here."""
    if case.get("json") == "BOXES_65":
        return json.dumps([{"x": 0, "y": 0, "width": 1, "height": 1}] * 65)
    text = case["text"] if "text" in case else json.dumps(case["json"])
    return text.replace("PHRASE_1001", "x" * 1001)


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def refused(words):
    def check(error):
        return len(str(error)) < 500 and "\n" not in str(error)

    return pytest.raises(BoxwrightError, match=words, check=check)


def test_the_limits_are_the_golden_ones():
    assert GOLDEN["limits"] == {
        "boxes": MAX_REGIONS,
        "phrase": MAX_PHRASE,
        "text": regions_json.MAX_TEXT,
        "depth": regions_json.MAX_DEPTH,
        "rounding": checks.ROUNDING,
        "slack": layout_units.SLACK,
    }


@named(GOLDEN["import"])
def test_a_text_is_read_as_the_editor_reads_it(case):
    width, height = case.get("size", (512, 384))
    if "error" in case:
        with refused(case["words"]):
            read_layout(text_of(case), width, height, "regions_json")
        return
    read = read_layout(text_of(case), width, height, "regions_json")
    assert (read.source, read.order, read.unit) == (case["source"], case["order"], case["unit"])
    found = [[each.phrase, each.area.x, each.area.y, each.area.width, each.area.height] for each in read.regions]
    assert [row[0] for row in found] == [row[0] for row in case["boxes"]]
    for row, wanted in zip(found, case["boxes"], strict=True):
        assert row[1:] == pytest.approx(wanted[1:], abs=1e-9)


@named(GOLDEN["drawing"])
def test_a_region_of_our_own_is_read_as_the_editor_reads_it(case):
    text = json.dumps({"type": "boxwright.regions", "version": 1, "regions": [case["region"]]})
    if "words" in case:
        with refused(case["words"]):
            regions_json.parse_drawing(text)
    else:
        assert regions_json.parse_drawing(text).count == 1


@pytest.mark.parametrize(
    "text, how",
    [
        ('[{"bbox": [256, 192, 512, 384]}]', "1 box read as [x1, y1, x2, y2] in pixels of a picture of 512 x 384"),
        ("[[0.5, 0.5, 0.9, 0.9], [0, 0, 0.4, 0.4]]", "2 boxes read as [x1, y1, x2, y2] in fractions"),
        ('{"type": "boxwright.regions", "version": 1, "regions": []}', "0 regions of a Boxwright layout"),
    ],
)
def test_what_was_understood_is_said(text, how):
    assert read_layout(text, 512, 384, "text").how == how


def test_a_picture_of_unknown_size_is_asked_later():
    """Before a run the width may come by wire: what needs it is not refused then."""
    assert len(read_layout('[{"bbox": [100, 100, 200, 200]}]', None, None, "text", strict=False).regions) == 1
    with refused("must be a number"):
        read_layout('[{"bbox": [100, "a", 200, 200]}]', None, None, "text", strict=False)
    with refused("Set width and height"):
        read_layout('[{"bbox": [100, 100, 200, 200]}]', None, None, "text")


def test_the_regions_node_takes_such_a_text_and_names_its_boxes():
    pasted = '[{"x": 128, "y": 96, "width": 256, "height": 192}]'
    (region,) = boxes.collect_regions(pasted, "a cat", 512, 384)
    assert (region.phrase, region.area) == ("a cat", Box(0.25, 0.25, 0.5, 0.5))
    with refused("phrases has 0 lines, but the connected areas need 1"):
        boxes.collect_regions(pasted, "", 512, 384)


@pytest.mark.parametrize("text", [
    "[" * 500_000, "[{" * 300_000, '[{"a":' * 100_000, '{"boxes": ' * 50_000, "xyxy " * 100_000 + "[",
    "caption " + "[{" * 5000 + "]", "x " + "[{}, " * 70 + "1," * 490_000, json.dumps([[0, 0, 1, 1]] * 50_000),
    '{"layers": ' + json.dumps([{}] * 70_000) + "}",
    json.dumps({"annotations": [{"image_id": n, "bbox": [0, 0, 1, 1]} for n in range(20_000)]}),
])  # fmt: skip
def test_hostile_texts_are_refused_in_words(text):
    with refused("."):
        read_layout(text, 512, 512, "regions_json")


@pytest.mark.parametrize("phrase, prompt, found", DRAWING["phrases"])
def test_a_phrase_is_found_where_the_editor_finds_it(phrase, prompt, found):
    assert bool(find_occurrences(prompt, phrase)) is found


@pytest.mark.parametrize("case", DRAWING["coverage"])
def test_a_layout_covers_what_the_editor_says(case):
    regions = [Region(str(number), Box(*box)) for number, box in enumerate(case["boxes"])]
    covered = f"Covered: {100 * case['covered']:.1f} % of the image"
    assert covered in layout_report(regions, 512, 512).splitlines()[0]
