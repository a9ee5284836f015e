"""Layout to Prompt and Prompt to Regions as nodes: their wires, what they say, what they hold back."""

import json

import pytest
from comfy_execution.graph_utils import ExecutionBlocker
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.layout_to_prompt import BoxwrightLayoutToPrompt
from pack.nodes.parts.layout_template import EXAMPLE
from pack.nodes.parts.sized_regions import SizedRegions, size_of
from pack.nodes.prompt_to_regions import BoxwrightPromptToRegions

HEART = Region("a red heart", Box(0.1, 0.2, 0.3, 0.4))
MOVED = Region("a red heart", Box(0.5, 0.2, 0.3, 0.4))
SENT = dict(prompt="", background="", style="", unsupported="refuse")


def write(format, *regions, **inputs):
    return BoxwrightLayoutToPrompt.execute(format, **SENT | {"regions": regions or None} | inputs)


def read(text, format="auto", keep_marks=True, **inputs):
    return BoxwrightPromptToRegions.execute(text, format, keep_marks, **inputs)


def test_there_and_back_by_wire():
    style = "lighting: noon\nart_style: flat"
    written = write("Ideogram 4", HEART, prompt="a card", background="paper", style=style)
    regions, prompt, background, found, source, report = read(written[0]).args
    assert [(each.phrase, each.area.x) for each in regions] == [("a red heart", 0.1)]
    assert (prompt, background) == ("a card", "paper")
    assert write("Ideogram 4", *regions, prompt=prompt, background=background, style=found)[0] == written[0]
    assert isinstance(source, ExecutionBlocker) and "source" in source.message
    assert report == "Read as Ideogram 4: 1 region."


def test_an_edit_has_two_sides():
    text = write("FLUX.3", MOVED, source=(HEART,), prompt="At night.")[0]
    assert text.startswith("At night. Move a red heart <obj_1>. [")
    regions, prompt, _, _, source, report = read(text).args
    assert (regions[0].area, source[0].area) == (MOVED.area, HEART.area)
    assert write("FLUX.3", *regions, source=source, prompt=prompt)[0] == text
    assert "1 thing in the picture" in report
    removed = read(write("FLUX.3", source=(HEART,))[0]).args
    assert isinstance(removed[0], ExecutionBlocker) and removed[4][0].area == HEART.area


def test_marks_can_be_taken_away():
    text = 'A heart <obj_1> on paper [{"id":"obj_1","bbox":[1,1,9,9],"desc":"a huge heart of stone"}]'
    assert read(text)[1] == "A heart <obj_1> on paper"
    assert read(text, keep_marks=False)[1] == "A heart on paper"


def test_the_size_comes_with_the_regions_or_by_hand():
    sized = SizedRegions((HEART,), 1024, 768)
    assert sized == (HEART,) and size_of(None, sized) == (1024, 768) and size_of((HEART,)) is None
    assert '"4:3"' in BoxwrightLayoutToPrompt.execute("Ming-Image", **SENT | {"regions": sized})[0]
    assert '"2:1"' in write("Ming-Image", HEART, width=200, height=100)[0]
    with pytest.raises(BoxwrightError, match="needs the shape of the picture"):
        write("Ming-Image", HEART)
    with pytest.raises(BoxwrightError, match="width 5 and height 0 belong together"):
        write("Ming-Image", HEART, width=5)
    pixels = '[{"bbox": [256, 192, 512, 384], "label": "a cat"}]'
    regions = read(pixels, width=512, height=384)[0]
    assert regions[0].area == Box(0.5, 0.5, 0.5, 0.5) and size_of(regions) == (512, 384)
    with pytest.raises(BoxwrightError, match="Set width and height to it"):
        read(pixels)


def test_a_template_both_ways():
    text = write("template", HEART, MOVED, prompt="two hearts", template=EXAMPLE)[0]
    regions, prompt = read(text, "template", template=EXAMPLE).args[:2]
    assert prompt == "two hearts" and [each.area.x for each in regions] == [0.1, 0.5]
    with pytest.raises(BoxwrightError, match="no place for source boxes"):
        write("template", HEART, source=(HEART,))


def test_what_is_lost_is_said():
    weak = Region("a cat", HEART.area, 0.5)
    with pytest.raises(BoxwrightError, match="FLUX.3 cannot hold the strength of region 1"):
        write("FLUX.3", weak)
    text, report = write("FLUX.3", weak, unsupported="leave out").args
    assert json.loads(text[text.index("[") :])[0]["desc"] == "a cat"
    assert report.splitlines() == [
        "1 region written as FLUX.3.",
        'Left out, FLUX.3 cannot hold it: the strength of region 1 ("a cat")',
    ]


def test_a_bad_style_is_refused_before_anything_runs():
    assert "'mood'" in BoxwrightLayoutToPrompt.validate_inputs(style="mood: dark")
    assert BoxwrightLayoutToPrompt.validate_inputs() is True


def test_any_list_of_boxes_is_read_and_how_is_said():
    _, _, _, _, _, report = read("xywh fractions [[0.1, 0.1, 0.2, 0.2]]").args
    assert report == "1 box read as [x, y, width, height] in fractions."
