"""Prompts of models that read boxes: Ideogram 4, Ming-Image, and what holds for every format."""

import json
import random
from dataclasses import replace

import pytest
import torch
from layout_texts import HEART, SIZE, STAR, edit_row, ideogram, keyed, random_regions, refused, row, table, write
from pack.attention_patches.core.types import Box, Region
from pack.nodes.parts import layout_formats as formats
from pack.nodes.parts.layout_document import Document, thousandths
from pack.nodes.parts.layout_ming import ming_box

# Ideogram 4


def test_ideogram_keys_stand_in_the_order_it_was_trained_on():
    style = {"color_palette": ["#ff0000"], "medium": "photograph", "photo": "85mm", "lighting": "noon"}
    style["aesthetics"] = "x"
    sign = keyed(Region("a neon sign", STAR.area), text="OPEN", palette=["#ff00aa"])
    assert write("Ideogram 4", HEART, sign, prompt="a shop", background="a wall", style=style) == (
        '{"high_level_description":"a shop","style_description":{"aesthetics":"x","lighting":"noon","photo":"85mm",'
        '"medium":"photograph","color_palette":["#FF0000"]},"compositional_deconstruction":{"background":"a wall",'
        '"elements":[{"type":"obj","bbox":[200,100,600,400],"desc":"a red heart"},{"type":"text",'
        '"bbox":[500,600,750,900],"text":"OPEN","desc":"a neon sign","color_palette":["#FF00AA"]}]}}'
    )
    art = json.loads(write("Ideogram 4", HEART, style={"art_style": "flat", "medium": "illustration"}))
    assert list(art["style_description"]) == ["medium", "art_style"]


def test_ideogram_is_what_the_hosts_elements_are():
    from pack.nodes.parts.boxes import from_elements

    caption = json.loads(write("Ideogram 4", HEART, STAR))
    read = from_elements(caption["compositional_deconstruction"]["elements"])
    assert [(each.phrase, thousandths(each.area)) for each in read] == [
        (each.phrase, thousandths(each.area)) for each in (HEART, STAR)
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("{}", ("compositional_deconstruction",)),
        ("[1]", ("compositional_deconstruction",)),
        (ideogram({"desc": "a", "bbox": [0, 0, 0, 9]}), ("Element 1", "empty or turned around")),
        (ideogram({"bbox": [0, 0, 9, 9]}), ("Element 1", "lacks desc")),
        (ideogram("a"), ("Element 1", "must be an object")),
        (ideogram({"desc": "a", "bbox": [0, 0, 9, 9], "color_palette": ["red"]}), ("Element 1", "#E69F00")),
        (ideogram({"desc": "a", "bbox": [0, 0, 9, 9], "color_palette": ["#000000"] * 6}), ("6 colours", "at most 5")),
        (ideogram(style_description={"photo": "a", "art_style": "b"}), ("both photo and art_style",)),
        (ideogram(style_description=5), ("style_description must be an object",)),
        (ideogram(high_level_description=5), ("high_level_description must be text",)),
    ],
)
def test_ideogram_bad_captions_are_refused(text, words):
    with refused(*words):
        formats.read(text, "Ideogram 4")


def test_ideogram_says_what_it_leaves_out():
    elements = {"type": "obj", "desc": "a cloud"}, {"desc": "a", "bbox": [0, 0, 9, 9], "mood": 1}
    text = ideogram(*elements, aspect_ratio="1:1")
    document = formats.read(text, "Ideogram 4")
    assert len(document.regions) == 1
    assert [("aspect_ratio" in note, "a cloud" in note, "mood" in note) for note in document.notes] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


# Ming-Image


def test_ming_layers_to_the_letter():
    document = json.loads(write("Ming-Image", keyed(HEART, palette=["#ff0000"]), background="a sky"))
    assert document == {
        "canvas_settings": {"aspect_ratio": "4:3", "ambient_lighting": "", "image_style": ""},
        "layers": [
            {"description": "a sky", "coordinates": "cx: 0.500, cy: 0.500, w: 1.000, h: 1.000",
             "hierarchy_and_relation": "Behind everything else.", "color_specs": []},
            {"description": "a red heart", "coordinates": "cx: 0.250, cy: 0.400, w: 0.300, h: 0.400",
             "hierarchy_and_relation": "In front of the background.", "color_specs": ["#FF0000"]},
        ],
    }  # fmt: skip
    assert [list(layer) for layer in document["layers"]][0] == [
        "description",
        "coordinates",
        "hierarchy_and_relation",
        "color_specs",
    ]


def test_ming_needs_the_shape_of_the_picture():
    with refused("Ming-Image needs the shape", "Box Editor"):
        write("Ming-Image", HEART, size=None)
    assert "21:9" in write("Ming-Image", HEART, size=None, style={"aspect_ratio": "21:9"})


@pytest.mark.parametrize("coordinates", [
    None, 5, "", "cx: 1", "cx: 0.5, cy: 0.5, w: 0, h: 1", "cx: 0.5, cy: 0.5, w: nan, h: 1",
    "cx: 2, cy: 0.5, w: 1, h: 1", "cx: 0.5, cy: 0.5, w: 1e99, h: 1", "cx:" + " " * 100_000,
    "cx: 0.5, cy: 0.5, w: inf, h: 1",
])  # fmt: skip
def test_ming_bad_coordinates_are_refused(coordinates):
    text = json.dumps({"layers": [{"description": "a", "coordinates": coordinates}]})
    with refused("Layer 1 of the prompt"):
        formats.read(text, "Ming-Image")


def test_ming_reads_numbers_of_others_as_they_are():
    box = ming_box("cx: 0.33333, cy: .5, w: 0.5, h: 1e-1", "here")
    assert (box.x, box.y, box.width, box.height) == pytest.approx((0.08333, 0.45, 0.5, 0.1))


def test_a_region_over_the_whole_picture_stays_one_in_ming():
    whole = replace(HEART, area=Box(0.0, 0.0, 1.0, 1.0))
    text, _ = formats.written(Document((whole,)), "Ming-Image", SIZE, False)
    assert [region.phrase for region in formats.read(text, "Ming-Image").regions] == [HEART.phrase]


# There and back


@pytest.mark.parametrize("name, keys", [
    ("FLUX.3", ("id", "text")), ("Ideogram 4", ("text", "palette")), ("Ming-Image", ("text", "palette", "relation")),
])  # fmt: skip
def test_round_trip_is_exact(name, keys):
    rng = random.Random(0)
    for _ in range(200):
        regions = random_regions(rng, *keys)
        text = write(name, *regions, prompt="a thing" if name != "Ming-Image" else "")
        document = formats.read(text, name)
        exact = [(each.phrase, thousandths(each.area), each.extra) for each in document.regions]
        assert [row[:2] for row in exact] == [(each.phrase, thousandths(each.area)) for each in regions]
        for read, written in zip(exact, regions, strict=True):
            assert {k: v for k, v in read[2].items() if k != "id" or k in written.extra} == written.extra
        again = write(
            name, *document.regions, prompt=document.prompt, background=document.background, style=document.style
        )
        assert again == text


@pytest.mark.parametrize(
    "name, region, words",
    [
        ("FLUX.3", Region("a", HEART.area, 0.5), ("FLUX.3 cannot hold", 'the strength of region 1 ("a")', "leave out")),
        ("FLUX.3", keyed(HEART, negative="b"), ("the negative",)),
        ("FLUX.3", keyed(HEART, palette=["#000000"]), ("the palette",)),
        ("Ideogram 4", keyed(HEART, end=0.5), ("the end",)),
        ("Ideogram 4", keyed(HEART, relation="left"), ("the relation",)),
        ("Ming-Image", keyed(HEART, feather=0.1), ("the feather",)),
        ("Ming-Image", keyed(HEART, opacity=0.5), ("the opacity",)),
        ("Ideogram 4", keyed(HEART, lora="ink.safetensors"), ("the lora",)),
    ],
)
def test_what_a_format_cannot_hold_is_refused_or_left_out_aloud(name, region, words):
    with refused(*words):
        write(name, region)
    text, notes = formats.written(Document((region,)), name, SIZE, leave_out=True)
    assert text == formats.written(Document((Region(region.phrase, region.area),)), name, SIZE, leave_out=False)[0]
    assert len(notes) == 1 and words[words[0].startswith("FLUX.3 cannot")] in notes[0]


@pytest.mark.parametrize(
    "name, words, lost",
    [
        ("FLUX.3", {"background": "a wall"}, "the background text"),
        ("FLUX.3", {"style": {"lighting": "noon"}}, "the style lighting"),
        ("Ideogram 4", {"source": [HEART]}, "the source boxes"),
        ("Ideogram 4", {"style": {"image_style": "flat"}}, "the style image_style"),
        ("Ming-Image", {"background": "a wall", "prompt": "a shop"}, "a prompt beside the background"),
    ],
)
def test_words_without_a_place_are_refused(name, words, lost):
    with refused(f"{name} cannot hold {lost}"):
        write(name, HEART, **words)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_of_a_shape_the_box_around_it_is_written_and_said(name):
    mask = torch.zeros(4, 8)
    mask[1:3, 2:6] = torch.tensor([0.2, 0.5, 1.0, 0.1])
    text, notes = formats.written(Document((HEART, Region("cloud", mask))), name, SIZE, False)
    boxed = Document((HEART, Region("cloud", Box(0.25, 0.25, 0.5, 0.5))))
    assert (text, ()) == formats.written(boxed, name, SIZE, False)
    assert len(notes) == 1 and '"cloud" is a shape' in notes[0] and "the box around it" in notes[0]


def test_no_region_is_refused():
    with refused("There is no region"):
        write("FLUX.3")
    with refused("no region has that id", "<dog_1>", "obj_1"):
        write("FLUX.3", HEART, prompt="a <dog_1>")
    with refused("none for FLUX.3", "'Heart'"):
        write("FLUX.3", keyed(HEART, id="Heart"))
    with refused("heart_1 stands twice"):
        write("FLUX.3", keyed(HEART, id="heart_1"), keyed(STAR, id="heart_1"))


def test_what_the_editor_shows_is_no_loss_and_unknown_keys_are_named():
    shown = keyed(HEART, color="#ff0000", locked=True, hidden=True, enabled=True)
    assert formats.written(Document((shown,)), "FLUX.3", None, False)[1] == ()
    note = formats.written(Document((keyed(HEART, mine=1),)), "FLUX.3", None, False)[1]
    assert note == ("Left out, FLUX.3 cannot hold it: the keys mine",)


# Style


def test_style_lines_and_json():
    lines = "lighting: soft: daylight\n\nphoto: 85mm\ncolor_palette: #ff0000, #00ff00"
    style = formats.parse_style(lines)
    assert style == {"lighting": "soft: daylight", "photo": "85mm", "color_palette": "#ff0000, #00ff00"}
    caption = json.loads(write("Ideogram 4", HEART, style=style))
    assert caption["style_description"]["color_palette"] == ["#FF0000", "#00FF00"]
    assert formats.parse_style(json.dumps(style)) == style
    for bad, words in [
        ("mood: dark", "'mood'"),
        ("lighting: a\nlighting: b", "twice"),
        ("{", "not valid JSON"),
        ("x" * 20_001, "20001 characters"),
        ('{"lighting": 5}', "must be text"),
    ]:
        with refused(words):
            formats.parse_style(bad)


# Which format a text is


@pytest.mark.parametrize("text, name", [
    (table(row()), "FLUX.3"), (table(edit_row()), "FLUX.3"), (json.dumps([row()]), "FLUX.3"),
    (ideogram(), "Ideogram 4"), ('{"layers": [{"coordinates": ""}]}', "Ming-Image"),
    ("transparent canvas\n" + '{"layers": [{"coordinates": ""}]}', "Ming-Image"),
    ("[[1, 2, 3, 4]]", None), ('[{"bbox": [1, 2, 3, 4], "desc": "a"}]', None), ("", None),
])  # fmt: skip
def test_formats_are_recognised(text, name):
    assert formats.recognised(text) == name
