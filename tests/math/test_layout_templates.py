"""Templates of one's own: the texts to the letter, the way back, and every refusal."""

import json
import random
from dataclasses import replace

import pytest
from layout_texts import HEART, SIZE, STAR, keyed, random_box, refused
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import layout_formats as formats
from pack.nodes.parts import layout_template as template
from pack.nodes.parts.layout_document import Document

JSON_TEMPLATE = (
    '{"caption": {prompt:json}, "size": [{width}, {height}], "boxes": [\n'
    '  {"label": {phrase:json}, "text": {text:json}, "box": [{y1:pxc}, {x1:pxc}, {y2:pxc}, {x2:pxc}]}{,}\n]}'
)


def test_template_lines_with_a_box_are_repeated():
    document = Document((HEART, STAR), prompt="a picture")
    assert template.write_template(template.EXAMPLE, document, None) == (
        "a picture\na red heart: [100, 200, 400, 600]\na blue star: [600, 500, 900, 750]"
    )
    line = "{n}/{count} {id} {phrase} {x:.3} {w:%} {cx:px} {h:100} {not} {x9} {"
    assert template.write_template(line, document, SIZE).splitlines()[0] == (
        "1/2 obj_1 a red heart 0.100 30.0 256 40 {not} {x9} {"
    )


def test_template_of_json_is_json():
    sign = keyed(Region('a "neon"\nsign', STAR.area), text="OPEN")
    text = template.write_template(JSON_TEMPLATE, Document((HEART, sign), prompt='a "picture"'), SIZE)
    data = json.loads(text)
    assert (data["caption"], data["size"]) == ('a "picture"', [1024, 768])
    assert data["boxes"][1] == {"label": 'a "neon"\nsign', "text": "OPEN", "box": [0, 102, 192, 410]}


@pytest.mark.parametrize(
    "form",
    [
        template.EXAMPLE,
        JSON_TEMPLATE,
        "{phrase}|{x:px}|{y:px}|{w:px}|{h:px}",
        ("# {background}\n{n}. {id}: {phrase} ({x1:9999} {y1:.6} {x2:9999} {y2:.6})\nend"),
    ],
)
def test_template_round_trip_is_exact_to_its_grid(form):
    rng = random.Random(2)
    for _ in range(100):
        regions = tuple(
            Region(f"thing {number}", random_box(rng), extra={"text": "T"} if form == JSON_TEMPLATE else {})
            for number in range(rng.randint(1, 5))
        )
        if "px" in form:  # whole pixels
            regions = tuple(
                Region(
                    each.phrase,
                    Box(
                        *(round(side * 64) / 64 for side in (each.area.x / 2, each.area.y / 2)),
                        rng.randint(1, 32) / 64,
                        rng.randint(1, 32) / 64,
                    ),
                    extra=each.extra,
                )
                for each in regions
            )
        document = Document(regions, prompt="a picture", background="sky")
        text = template.write_template(form, document, SIZE)
        read = template.read_template(form, text, SIZE)
        assert template.write_template(form, read, SIZE) == text
        assert [(each.phrase, each.extra) for each in read.regions] == [(each.phrase, each.extra) for each in regions]


@pytest.mark.parametrize(
    "form, words",
    [
        ("", ("template is empty",)),
        ("{x1:abc}", ("{x1:abc}", "not known")),
        ("{x1:0}", ("{x1:0}",)),
        ("{phrase:px}", ("{phrase:px}",)),
        ("x" * 20_001, ("20001 characters",)),
        ("\n" * 300, ("301 lines",)),
        ("{x1:px}", ("size of the picture is not known",)),
    ],
)
def test_bad_templates_are_refused(form, words):
    with refused(*words):
        template.write_template(form, Document((HEART,)), None)


@pytest.mark.parametrize(
    "form, text, words",
    [
        ("hello", "hello", ("no line with a box",)),
        ("{phrase}: {x1}", "a: 5", ("does not say where a box ends",)),
        (template.EXAMPLE, "a picture", ("Line 2", "the end of the text")),
        (template.EXAMPLE, "a picture\nwolf", ("Line 2", '"wolf"')),
        (template.EXAMPLE, "p\na: [1, 2, 3, 4]\nb", ("Line 3", "fits no line")),
        (template.EXAMPLE, "p\na: [1, 2, 3000, 4]", ("Region 1", "reaches outside")),
        (template.EXAMPLE, "p\na: [5, 2, 3, 4]", ("above 0",)),
        (template.EXAMPLE, "p\n" + "a: [1, 2, 3, 4]\n" * 65, ("65 regions",)),
        ("{phrase} {x1}{y1}", "a 1", ("Line 1",)),
    ],
)
def test_texts_that_do_not_fit_the_template_are_refused(form, text, words):
    with refused(*words):
        template.read_template(form, text, None)


def test_a_template_with_blank_lines_is_read_back():
    form = "{prompt}\n\n{phrase}: [{x}, {y}, {w}, {h}]"
    document = Document((HEART,), prompt="a picture")
    text = template.write_template(form, document, None)
    assert template.write_template(form, template.read_template(form, text, None), None) == text


def test_what_a_template_has_no_place_for_is_named():
    form = template.template_format("{phrase}: [{x}, {y}, {w}, {h}]")
    strong = replace(HEART, strength=0.5)
    with pytest.raises(BoxwrightError, match="The template cannot hold the strength"):
        formats.left_out(Document((strong,)), form, False)
    (note,) = formats.left_out(Document((strong,)), form, True)
    assert "strength" in note
    with pytest.raises(BoxwrightError, match="There is no region"):
        formats.left_out(Document(()), form, False)
