"""The Layout Prompt node: its interface, and what it hands on and shows."""

import nodes
import pytest
from pack.attention_patches.core.types import Box, BoxwrightError, Layout, Region
from pack.nodes.layout_prompt import BoxwrightLayoutPrompt, ownership_report, runs_of
from pack.nodes.parts.sized_regions import SizedRegions

CORNER = Box(0.0, 0.0, 0.5, 0.5)


def run(clip, prompt, phrases, append_missing=True):
    regions = tuple(Region(phrase, CORNER) for phrase in phrases)
    return BoxwrightLayoutPrompt.execute(clip, regions, prompt, append_missing)


def shown(output):
    return "".join(output.ui.as_dict()["text"])


def test_interface_is_kept():
    schema = BoxwrightLayoutPrompt.define_schema()
    assert (schema.node_id, schema.display_name, schema.category) == (
        "BoxwrightLayoutPrompt",
        "Layout Prompt",
        "Boxwright",
    )
    assert [(i.id, i.get_io_type()) for i in schema.inputs] == [
        ("clip", "CLIP"),
        ("regions", "BOXWRIGHT_REGIONS"),
        ("prompt", "STRING"),
        ("append_missing", "BOOLEAN"),
        ("negative_prompt", "STRING"),
    ]
    assert [(o.id, o.get_io_type()) for o in schema.outputs] == [
        ("positive", "CONDITIONING"),
        ("layout", "BOXWRIGHT_LAYOUT"),
        ("negative", "CONDITIONING"),
    ]
    inputs = {i.id: i for i in schema.inputs}
    assert inputs["append_missing"].default is True
    assert inputs["prompt"].multiline and inputs["prompt"].dynamic_prompts
    assert all(i.tooltip for i in schema.inputs) and schema.description and schema.search_aliases


def test_positive_goes_to_the_sampler_and_layout_to_the_methods(toy):
    output = run(toy[1], "a red circle and a blue star", ["red circle", "blue star"])
    positive, layout, _ = output.args
    stock = nodes.CLIPTextEncode().encode(toy[1], "a red circle and a blue star")[0]
    assert (positive[0][0] == stock[0][0]).all()
    assert isinstance(layout, Layout) and positive[0][1]["boxwright_layout"] == layout.key
    assert [region.phrase for region in layout.regions] == ["red circle", "blue star"]


def test_negative_is_what_clip_text_encode_makes(toy):
    regions = (Region("red circle", CORNER),)
    for words in ("", "a blue star"):
        negative = BoxwrightLayoutPrompt.execute(toy[1], regions, "a red circle", True, words)[2]
        stock = nodes.CLIPTextEncode().encode(toy[1], words)[0]
        assert (negative[0][0] == stock[0][0]).all() and negative[0][1].keys() == stock[0][1].keys()


def test_an_empty_prompt_is_that_of_the_box_editor(toy):
    regions = SizedRegions((Region("red circle", CORNER),), 64, 64, "a red circle on paper")
    for prompt, used in (("", "a red circle on paper"), ("a red circle", "a red circle")):
        layout = BoxwrightLayoutPrompt.execute(toy[1], regions, prompt, True)[1]
        assert layout.prompt.tokens.text == used


def test_report_names_columns_words_and_what_was_appended(toy):
    text = shown(run(toy[1], "a Red  circle and a red circle", ["red circle", "blue star"]))
    assert text.splitlines() == [
        "2 regions, 77 columns of text.",
        "1. red circle: columns 2-3, 6-7 (Red circle, red circle)",
        "2. blue star: columns 9-10 (blue star)",
        "Appended to the prompt: blue star",
    ]


def test_report_is_silent_about_appending_when_nothing_was(toy):
    text = shown(run(toy[1], "a red circle", ["circle"]))
    assert text.splitlines() == ["1 region, 77 columns of text.", "1. circle: column 3 (circle)"]


def test_what_is_not_drawn_is_said(toy):
    output = run(toy[1], "a red circle <lora:toon:1> BREAK a {blue|red} star", ["(red circle:1.3)", "star <lora:x:1>"])
    stock = nodes.CLIPTextEncode().encode(toy[1], "a red circle, a {blue|red} star")[0]
    assert (output.args[0][0][0] == stock[0][0]).all()
    assert [line.split(".")[0] for line in shown(output).splitlines()[3:]] == [
        "The prompt: <lora:toon:1> left out",
        "The prompt: BREAK left out, a comma put in its place",
        "The prompt: {blue|red} is read as it stands; nothing is put in its place here",
        "Region 2: <lora:x:1> left out",
    ]


def test_long_phrases_are_shortened_in_the_report(toy):
    layout = run(toy[1], "", ["very " * 60 + "red circle"]).args[1]
    assert all(len(line) < 300 for line in ownership_report(layout, ["x" * 1000]).splitlines())


def test_runs():
    assert runs_of([]) == [] and runs_of([False]) == []
    assert runs_of([True, True, False, True]) == [(0, 1), (3, 3)]


@pytest.mark.parametrize(
    "phrases, append, message",
    [
        (["red cicle"], False, '"red cicle" is not in the prompt.*"red circle"'),
        (["red circle", ""], True, "Region 2 has no phrase"),
    ],
)
def test_errors_reach_the_user(toy, phrases, append, message):
    with pytest.raises(BoxwrightError, match=message):
        run(toy[1], "a red circle", phrases, append)
