"""Layouts as text encoders read them: which words each region owns, what is appended, and the key."""

from dataclasses import replace

import comfy.hooks
import nodes
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from pack.attention_patches.core.types import PhraseNotFoundError, Region
from pack.attention_patches.host.text.conditioning import text_notes
from pack.attention_patches.host.text.layout import encode_layout, missing_phrases
from pack.attention_patches.host.text.reader import PromptReader
from tiny_encoders import EVERYWHERE, assert_same_conditioning, regions, tiny_clip

pytestmark = pytest.mark.usefixtures("one_thread")


def owned(layout):
    """The words that each region owns."""
    tokens = layout.prompt.tokens
    return [[tokens.text[slice(*tokens.spans[column])] for column in row.nonzero().flatten()] for row in layout.columns]


def test_layout_of_the_toy(toy):
    clip = toy[1]
    conditioning, layout = encode_layout(
        clip, "a (red:1.2) circle and a blue star", regions("red circle", "blue star"), True
    )
    assert owned(layout) == [["red", "circle"], ["blue", "star"]]
    assert layout.columns.dtype == torch.bool and layout.columns.shape == (2, 77)
    assert_same_conditioning(
        [[tensor, {k: v for k, v in values.items() if k != "boxwright_layout"}] for tensor, values in conditioning],
        nodes.CLIPTextEncode().encode(clip, "a (red:1.2) circle and a blue star")[0],
    )
    assert [values["boxwright_layout"] for _, values in conditioning] == [layout.key]
    assert torch.equal(layout.prompt.embedding, conditioning[0][0])
    for region, text in zip(layout.regions, layout.region_texts):
        assert torch.equal(text.embedding, nodes.CLIPTextEncode().encode(clip, region.phrase)[0][0][0])
        assert text.tokens.text == region.phrase


def test_missing_phrases_are_appended_once_and_in_order(toy):
    phrases = ("blue star", "red (big) circle", "star", "blue star")
    _, layout = encode_layout(toy[1], "a green ring,", regions(*phrases), True)
    assert layout.prompt.tokens.text == "a green ring, blue star, red big circle"
    assert owned(layout) == [["blue", "star"], ["red", "big", "circle"], ["star"], ["blue", "star"]]
    assert missing_phrases(toy[1], "a green ring,", regions(*phrases)) == ["blue star", "red (big) circle"]
    assert encode_layout(toy[1], " ", regions("blue star"), True)[1].prompt.tokens.text == "blue star"


@pytest.mark.parametrize(
    "prompt, phrase, drawn, own, words",
    [
        # (prompt, phrase, what is encoded as the prompt, what as the region's text, which words the region owns)
        ("a red circle", "(red circle:1.3)", "a red circle", "(red circle:1.3)", "red circle"),
        ("a (red:1.2) circle", "((red) circle:0.7)", "a (red:1.2) circle", "((red) circle:0.7)", "red circle"),
        ("a star", "a (red:1.3) circle", "a star, a (red:1.3) circle", "a (red:1.3) circle", "a red circle"),
        ("a \\(red\\) circle", "(red) circle", "a \\(red\\) circle", "\\(red\\) circle", "( red ) circle"),
        ("a \\(red\\) circle", "\\(red\\) circle", "a \\(red\\) circle", "\\(red\\) circle", "( red ) circle"),
        ("a star", "\\(red\\) circle", "a star, \\(red\\) circle", "\\(red\\) circle", "( red ) circle"),
        ("a star (", "(red:1.3) circle", "a star (, red circle", "(red:1.3) circle", "red circle"),
        ("a star", "red :) circle", "a star, red :\\) circle", "red :) circle", "red :) circle"),
        ("a red circle", "red circle <lora:toon:0.8>", "a red circle", "red circle", "red circle"),
        ("a star", "red BREAK circle", "a star, red, circle", "red, circle", "red , circle"),
    ],
)
def test_phrases_are_read_as_prompts(toy, prompt, phrase, drawn, own, words):
    _, layout = encode_layout(toy[1], prompt, regions(phrase), True)
    stock = [nodes.CLIPTextEncode().encode(toy[1], text)[0][0][0] for text in (drawn, own)]
    assert torch.equal(layout.prompt.embedding, stock[0])
    assert torch.equal(layout.region_texts[0].embedding, stock[1])
    assert owned(layout) == [words.split()]
    assert missing_phrases(toy[1], prompt, regions(phrase)) == [own] * (prompt != drawn)


def test_regions_share_a_phrase_whatever_its_emphasis(toy):
    _, layout = encode_layout(toy[1], "a star and a star", regions("(star:1.3)", "star"), False)
    assert [row.nonzero().flatten().tolist() for row in layout.columns] == [[2], [5]]
    assert not torch.equal(*(text.embedding for text in layout.region_texts))


def test_an_encoder_without_emphasis_reads_the_marks(reader):
    """And says so: the same layout means something else there."""
    clip = tiny_clip(reader, "qwen_image")
    _, layout = encode_layout(clip, "a red cat", regions("(red cat:1.3)"), True)
    assert layout.prompt.tokens.text == "a red cat, (red cat:1.3)"
    texts = [("The prompt", "a red cat (x)"), ("Region 1", "(red cat:1.3)")]
    (note,) = text_notes(clip, texts)
    assert note.startswith("Region 1: this text encoder knows no emphasis and reads (red cat:1.3) as text")
    assert text_notes(tiny_clip(reader, "sd1"), texts) == []


def test_prompt_that_has_every_phrase_is_encoded_as_it_stands(toy):
    for prompt in ("a ((red)) circle, ", " \\(red circle\\)"):
        _, layout = encode_layout(toy[1], prompt, regions("red circle"), False)
        assert torch.equal(layout.prompt.embedding, nodes.CLIPTextEncode().encode(toy[1], prompt)[0][0][0])


def test_missing_phrase_is_an_error_when_appending_is_off(toy):
    with pytest.raises(PhraseNotFoundError, match='"red cicle" is not in the prompt.*"red circle"'):
        encode_layout(toy[1], "a red circle", regions("red cicle"), False)


def test_phrases_are_encoded_once_each(toy, monkeypatch):
    clip, texts = toy[1].clone(), []
    tokenize = clip.tokenize
    encode = clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: texts.append(tokens) or encode(tokens))
    _, layout = encode_layout(clip, "a star and a star", regions("star", "a star", "star"), True)
    assert texts == [tokenize("a star and a star"), tokenize("star"), tokenize("a star")]
    assert layout.region_texts[0] is layout.region_texts[2]


def test_key_tells_token_sequences_apart(toy):
    def key(prompt, *phrases):
        return encode_layout(toy[1], prompt, regions(*phrases or ("circle",)), True)[1].key

    assert key("a red circle") == key("a red circle") and len(key("a red circle")) == 64
    keys = {key(prompt) for prompt in ("a red circle", "a (red:1.1) circle", "a (red:1.2) circle", "red a circle")}
    assert len(keys) == 4


def test_key_tells_layouts_of_one_prompt_apart(toy):
    """Two layouts of the same words may share a positive prompt, each for its part of the schedule."""
    own = [Region("circle", EVERYWHERE), Region("circle", EVERYWHERE, start=0.1), Region("red", EVERYWHERE)]
    keys = [encode_layout(toy[1], "a red circle", [region], True)[1].key for region in own]
    assert len(set(keys)) == 3
    assert keys[1] == encode_layout(toy[1], "a red circle", [replace(own[1], color="#ffffff")], True)[1].key


def test_clip_object_is_left_as_it_was(toy):
    clip = toy[1]
    before = dict(vars(clip)), dict(vars(clip.tokenizer)), dict(vars(clip.tokenizer.clip_l))
    encode_layout(clip, "a red circle", regions("red circle"), True)
    assert before == (dict(vars(clip)), dict(vars(clip.tokenizer)), dict(vars(clip.tokenizer.clip_l)))


def test_every_entry_of_a_scheduled_clip_carries_the_key(reader):
    clip = tiny_clip(reader, "sd1", attention=True)
    weight = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
    hooks = comfy.hooks.create_hook_model_as_lora(None, {weight: torch.ones(49408, 32)}, 0.0, 1.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    clip = SetClipHooks().apply_hooks(clip, schedule_clip=True, apply_to_conds=True, hooks=hooks)[0]
    conditioning, layout = encode_layout(clip, "a red cat", regions("red cat"), True)
    assert [values["clip_start_percent"] for _, values in conditioning] == [0.0, 0.5]
    assert not torch.equal(conditioning[0][0], conditioning[1][0])
    assert {values["boxwright_layout"] for _, values in conditioning} == {layout.key}
    assert torch.equal(layout.prompt.embedding, conditioning[0][0])


def test_prompt_at_the_limit_is_read(toy):
    prompt = "(red:1.1) circle " * 5_800 + "cat"
    tokens = PromptReader(toy[1]).read(prompt, "l")
    assert tokens.text[slice(*[span for span in tokens.spans if span][-1])] == "cat"
