"""Prompts of FLUX.3: the texts to the letter, the way back, and every refusal."""

import json
import random

import pytest
from layout_texts import HEART, STAR, edit_row, keyed, random_regions, refused, row, table, write
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import layout_formats as formats
from pack.nodes.parts.layout_document import thousandths
from pack.nodes.parts.layout_flux3 import split_flux3, uncited


def moved(region, **changes):
    return Region(region.phrase, Box(**{**vars(region.area), **changes}), region.strength, dict(region.extra))


# A new picture


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


# An edit


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


def test_detections_with_numbers_for_ids_are_no_flux3():
    assert formats.recognised('[{"id": 3, "bbox": [1, 2, 30, 40], "desc": "cat", "score": 0.9}]') is None
    assert formats.recognised('[{"id": "cat_1", "bbox": [1, 2, 30, 40], "desc": "cat"}]') == "FLUX.3"


# There and back


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
