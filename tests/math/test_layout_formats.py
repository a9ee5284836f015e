"""Prompts of models that read boxes: the texts to the letter, the way back, and every refusal."""

import json
import random
from dataclasses import replace

import pytest
import torch
from pack.attention_patches.core.regions import OPTIONS
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import layout_formats as formats
from pack.nodes.parts import layout_template as template
from pack.nodes.parts.layout_document import Document, on_the_grid, thousandths
from pack.nodes.parts.layout_flux3 import split_flux3, uncited
from pack.nodes.parts.layout_ming import ming_box

HEART = Region("a red heart", Box(0.1, 0.2, 0.3, 0.4))
STAR = Region("a blue star", Box(0.6, 0.5, 0.3, 0.25))
SIZE = (1024, 768)


def write(name, *regions, source=None, leave_out=False, size=SIZE, **words):
    document = Document(regions, None if source is None else tuple(source), **words)
    return formats.written(document, name, size, leave_out)[0]


def refused(*words):
    def check(error):
        text = str(error)
        return all(word in text for word in words) and len(text) < 500 and "\n" not in text

    return pytest.raises(BoxwrightError, check=check)


def moved(region, **changes):
    return Region(region.phrase, Box(**{**vars(region.area), **changes}), region.strength, dict(region.extra))


def keyed(region, **keys):
    """The region with further keys of its JSON: fields, or kept."""
    options = {key: keys.pop(key) for key in {option.name for option in OPTIONS} & keys.keys()}
    return replace(region, extra={**region.extra, **keys}, **options)


def row(**changes):
    return {"id": "obj_1", "bbox": [200, 100, 600, 400], "desc": "a red heart"} | changes


def edit_row(**changes):
    keep = {"src_bbox": [200, 100, 600, 400], "tgt_bbox": [200, 100, 600, 400]}
    return {"id": "obj_1", "from": "ref_image_0", **keep, "desc": "a red heart"} | changes


def table(*rows, caption="a picture"):
    return f"{caption} {json.dumps(rows)}"


# FLUX.3, a new picture


def test_flux3_caption_and_table_to_the_letter():
    assert write("FLUX.3", HEART, STAR, prompt="A red heart beside a blue star, flat colours") == (
        'A red heart <obj_1> beside a blue star <obj_2>, flat colours [{"id":"obj_1","bbox":[200,100,600,400],'
        '"desc":"a red heart"},{"id":"obj_2","bbox":[500,600,750,900],"desc":"a blue star"}]'
    )


@pytest.mark.parametrize(
    "prompt, phrases, caption",
    [
        ("", ["a cat", "a dog"], "a cat <obj_1>, a dog <obj_2>"),
        ("a lawn", ["a cat"], "a lawn, a cat <obj_1>"),
        ("a cat and a cat", ["a cat", "a cat"], "a cat <obj_1> and a cat <obj_2>"),
        ("a red heart", ["heart", "red heart"], "a red heart <obj_2>, heart <obj_1>"),
        ("concatenate", ["cat"], "concatenate, cat <obj_1>"),
        ("the <obj_2> sits on <obj_1>", ["a mat", "a cat"], "the <obj_2> sits on <obj_1>"),
        ("A (cat) [x] C++", ["c++"], "A (cat) [x] C++ <obj_1>"),
        ("<ref_image_0> with a cat", ["a cat"], "<ref_image_0> with a cat <obj_1>"),
    ],
)
def test_flux3_caption_names_every_box(prompt, phrases, caption):
    text = write("FLUX.3", *[Region(phrase, HEART.area) for phrase in phrases], prompt=prompt)
    assert text.startswith(caption + ' [{"id"')


def test_flux3_ids_are_kept_and_filled_up():
    regions = [keyed(HEART, id="heart_1"), STAR, keyed(HEART, id="obj_2")]
    assert [each["id"] for each in split_flux3(write("FLUX.3", *regions))[1]] == ["heart_1", "obj_3", "obj_2"]


def test_flux3_lettering_goes_into_the_description():
    text = write("FLUX.3", keyed(Region("a neon sign", HEART.area), text="OPEN"), prompt="a neon sign")
    assert json.loads(text[text.index("[") :])[0]["desc"] == 'a neon sign reading "OPEN"'
    (region,) = formats.read(text, "FLUX.3").regions
    assert (region.phrase, region.extra) == ("a neon sign", {"text": "OPEN"})


# FLUX.3, an edit


def test_flux3_edit_rows_to_the_letter():
    cat, dog, bird = (Region(name, HEART.area) for name in ("a cat", "a dog", "a bird"))
    source = [HEART, cat, dog]
    target = [HEART, moved(cat, x=0.5), bird]
    assert write("FLUX.3", *target, source=source, prompt="At night.") == (
        "At night. Move a cat <obj_2>. Add a bird <obj_3>. Remove a dog <obj_4>. "
        '[{"id":"obj_1","from":"ref_image_0","src_bbox":[200,100,600,400],"tgt_bbox":[200,100,600,400],'
        '"desc":"a red heart"},'
        '{"id":"obj_2","from":"ref_image_0","src_bbox":[200,100,600,400],"tgt_bbox":[200,500,600,800],"desc":"a cat"},'
        '{"id":"obj_3","from":null,"src_bbox":null,"tgt_bbox":[200,100,600,400],"desc":"a bird"},'
        '{"id":"obj_4","from":"ref_image_0","src_bbox":[200,100,600,400],"tgt_bbox":null,"desc":"a dog"}]'
    )


def test_flux3_of_two_alike_the_one_that_stayed_is_kept():
    left, right = Region("a tree", Box(0.0, 0.0, 0.2, 1.0)), Region("a tree", Box(0.8, 0.0, 0.2, 1.0))
    rows = split_flux3(write("FLUX.3", right, source=[left, right]))[1]
    assert [(each["src_bbox"], each["tgt_bbox"]) for each in rows] == [
        ([0, 800, 1000, 1000], [0, 800, 1000, 1000]),
        ([0, 0, 1000, 200], None),
    ]


def test_flux3_all_can_be_removed_and_ids_pair_other_words():
    rows = split_flux3(write("FLUX.3", source=[HEART]))[1]
    assert [(each["id"], each["tgt_bbox"]) for each in rows] == [("obj_1", None)]
    source, target = keyed(HEART, id="thing_1"), keyed(moved(STAR), id="thing_1")
    (only,) = split_flux3(write("FLUX.3", target, source=[source]))[1]
    assert (only["src_bbox"], only["tgt_bbox"]) == ([200, 100, 600, 400], [500, 600, 750, 900])
    assert only["desc"] == STAR.phrase


def test_flux3_other_reference_pictures():
    text = write("FLUX.3", STAR, source=[keyed(STAR, **{"from": "ref_image_3"})])
    assert '"from":"ref_image_3"' in text
    assert formats.read(text, "FLUX.3").source[0].extra == {"from": "ref_image_3"}
    with refused("ref_image_0 to ref_image_9", "'image 1'"):
        write("FLUX.3", STAR, source=[keyed(STAR, **{"from": "image 1"})])


@pytest.mark.parametrize(
    "text, words",
    [
        ("just words", ("no FLUX.3 table",)),
        ("words [{", ("not valid JSON",)),
        (table(), ("no FLUX.3 table",)),
        (table(row(id="Heart 1")), ("Row 1", 'look like "heart_1"', "'Heart 1'")),
        (table(row(), row()), ("Row 2", "obj_1 stands twice")),
        (table(row(bbox=[600, 100, 200, 400])), ("Row 1", "turned around")),
        (table(row(bbox=[0, 0, 1001, 400])), ("Row 1", "whole numbers from 0 to 1000")),
        (table(row(bbox=[0, 0, 0.5, 400])), ("Row 1", "whole numbers")),
        (table(row(bbox=None)), ("Row 1", "[top, left, bottom, right]")),
        (table(row(desc="")), ("Row 1", "desc is empty")),
        (table(row(desc=None)), ("Row 1", "must be text")),
        (table(row(colour="red")), ("Row 1", "'colour'", "does not know")),
        (table({"id": "a_1", "desc": "a"}), ("Row 1", "lacks bbox")),
        (table(row(), edit_row(id="obj_2")), ("Row 2", "another kind")),
        (table(edit_row(), row(id="obj_2")), ("Row 2", "another kind")),
        (table(edit_row(**{"from": None})), ("Row 1", "belong together")),
        (table(edit_row(src_bbox=None)), ("Row 1", "belong together")),
        (table(edit_row(**{"from": None, "src_bbox": None, "tgt_bbox": None})), ("Row 1", "needs a tgt_bbox")),
        (table(edit_row(**{"from": "image_0"})), ("ref_image_0", "'image_0'")),
        (table(row(), caption="a <dog_1>"), ("<dog_1>", "no row")),
        (table(*[row(id=f"obj_{n}") for n in range(65)]), ("65 regions",)),
    ],
)
def test_flux3_bad_tables_are_refused(text, words):
    with refused(*words):
        formats.read(text, "FLUX.3")


def test_flux3_marks_that_could_not_be_found_again_stay():
    text = table(row(desc="a huge heart of stone"), caption="A heart <obj_1> on a hill")
    document = formats.read(text, "FLUX.3")
    assert document.prompt == "A heart <obj_1> on a hill"
    assert formats.read(write("FLUX.3", *document.regions, prompt=document.prompt), "FLUX.3") == document
    assert uncited(document.prompt) == "A heart on a hill"
    assert formats.read(table(row(), caption="A red heart <obj_1>"), "FLUX.3").prompt == "A red heart"


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


def ideogram(*elements, **more):
    return json.dumps({"compositional_deconstruction": {"background": "", "elements": list(elements)}} | more)


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


# There and back


def random_box(rng):
    left, top = rng.randrange(1000), rng.randrange(1000)
    return on_the_grid(left, top, rng.randrange(left + 1, 1001), rng.randrange(top + 1, 1001))


def random_regions(rng, *keys):
    letters = "ab é\"\\ \u4e2d\U0001f98a'{}[]<>,:"
    regions = []
    for _ in range(rng.randint(1, 6)):
        extra = {}
        if "text" in keys and rng.random() < 0.3:
            extra["text"] = "T" + "".join(rng.choices(letters, k=5)) + "t"
        if "palette" in keys and rng.random() < 0.3:
            extra["palette"] = [f"#{rng.randrange(2**24):06X}"]
        if "relation" in keys and rng.random() < 0.3:
            extra["relation"] = "left of it"
        if "id" in keys and rng.random() < 0.3:
            extra["id"] = f"thing_{len(regions) + 1}"
        phrase = "p" + "".join(rng.choices(letters, k=rng.randint(0, 12))) + "q"
        regions.append(Region(phrase, random_box(rng), extra=extra))
    return tuple(regions)


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


def test_round_trip_of_edits_is_exact():
    rng = random.Random(1)
    for _ in range(200):
        source, target = random_regions(rng, "id"), list(random_regions(rng, "id"))
        target += [
            each
            for each in source
            if rng.random() < 0.3 and each.extra.get("id") not in {other.extra.get("id") for other in target}
        ]
        try:
            text = write("FLUX.3", *target, source=source, prompt="night")
        except BoxwrightError as error:
            assert "stands twice" in str(error)  # one id for two things
            continue
        document = formats.read(text, "FLUX.3")
        assert [thousandths(each.area) for each in document.regions] == [thousandths(each.area) for each in target]
        assert sorted(thousandths(each.area) for each in document.source) == sorted(
            thousandths(each.area) for each in source
        )
        assert write("FLUX.3", *document.regions, source=document.source, prompt=document.prompt) == text


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
    for bad, words in [("mood: dark", "'mood'"), ("lighting: a\nlighting: b", "twice"), ("{", "not valid JSON"),
                       ("x" * 20_001, "20001 characters"), ('{"lighting": 5}', "must be text")]:  # fmt: skip
        with refused(words):
            formats.parse_style(bad)


# Templates

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


@pytest.mark.parametrize("form", [template.EXAMPLE, JSON_TEMPLATE, "{phrase}|{x:px}|{y:px}|{w:px}|{h:px}", (
    "# {background}\n{n}. {id}: {phrase} ({x1:9999} {y1:.6} {x2:9999} {y2:.6})\nend")])  # fmt: skip
def test_template_round_trip_is_exact_to_its_grid(form):
    rng = random.Random(2)
    for _ in range(100):
        regions = tuple(
            Region(f"thing {number}", random_box(rng), extra={"text": "T"} if form == JSON_TEMPLATE else {})
            for number in range(rng.randint(1, 5))
        )
        if "px" in form:  # whole pixels
            regions = tuple(
                Region(each.phrase, Box(*(round(side * 64) / 64 for side in (each.area.x / 2, each.area.y / 2)),
                                        rng.randint(1, 32) / 64, rng.randint(1, 32) / 64), extra=each.extra)
                for each in regions
            )  # fmt: skip
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


@pytest.mark.parametrize("text, name", [
    (table(row()), "FLUX.3"), (table(edit_row()), "FLUX.3"), (json.dumps([row()]), "FLUX.3"),
    (ideogram(), "Ideogram 4"), ('{"layers": [{"coordinates": ""}]}', "Ming-Image"),
    ("transparent canvas\n" + '{"layers": [{"coordinates": ""}]}', "Ming-Image"),
    ("[[1, 2, 3, 4]]", None), ('[{"bbox": [1, 2, 3, 4], "desc": "a"}]', None), ("", None),
])  # fmt: skip
def test_formats_are_recognised(text, name):
    assert formats.recognised(text) == name


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


def test_a_region_over_the_whole_picture_stays_one_in_ming():
    whole = replace(HEART, area=Box(0.0, 0.0, 1.0, 1.0))
    text, _ = formats.written(Document((whole,)), "Ming-Image", SIZE, False)
    assert [region.phrase for region in formats.read(text, "Ming-Image").regions] == [HEART.phrase]


def test_detections_with_numbers_for_ids_are_no_flux3():
    assert formats.recognised('[{"id": 3, "bbox": [1, 2, 30, 40], "desc": "cat", "score": 0.9}]') is None
    assert formats.recognised('[{"id": "cat_1", "bbox": [1, 2, 30, 40], "desc": "cat"}]') == "FLUX.3"
