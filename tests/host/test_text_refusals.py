"""Text encoders, prompts and phrases that are refused."""

import pytest
from comfy.text_encoders import hidream, longcat_image, sd3_clip
from pack.attention_patches.core.types import BoxwrightError, Region
from pack.attention_patches.host.text.conditioning import encode
from pack.attention_patches.host.text.layout import encode_layout
from tiny_encoders import (
    EVERYWHERE,
    LLM_SIZE,
    SIZES,
    clip_without_model,
    cogvideo,
    of_newer_hosts,
    regions,
    tiny_clip,
)

hidream_o1 = of_newer_hosts("hidream_o1")

pytestmark = pytest.mark.usefixtures("one_thread")


UNSUPPORTED = [
    (longcat_image.LongCatImageTokenizer, longcat_image.te(), "does not tell the prompt's tokens"),
    (hidream.HiDreamTokenizer, hidream.hidream_clip(t5=False), 'without its "t5xxl" part'),
    (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(clip_l=False, clip_g=False, t5=False), "not known"),
    cogvideo and (cogvideo.CogVideoXT5Tokenizer, cogvideo.CogVideoXT5XXL, "come from no tokenizer of that name"),
    hidream_o1 and (hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE, "not known"),
]


@pytest.mark.parametrize("tokenizer, encoder, why", [row for row in UNSUPPORTED if row])
def test_unsupported_encoder_is_named_with_what_is_supported(tokenizer, encoder, why):
    clip = clip_without_model(tokenizer())
    clip.cond_stage_model = encoder(model_options=dict(SIZES, qwen3_06b_model_config=LLM_SIZE))
    with pytest.raises(BoxwrightError) as raised:
        encode_layout(clip, "a red cat", [Region("cat", EVERYWHERE)], True)
    assert all(part in str(raised.value) for part in (type(clip.cond_stage_model).__name__, why, "CLIP-L"))


def test_conditioning_of_unexpected_length_is_refused(reader, monkeypatch):
    clip = tiny_clip(reader, "z_image")
    whole = type(clip.cond_stage_model).encode_token_weights
    for cut in (slice(1, None), slice(0, -1), [0, *range(12)]):

        def shorter(self, tokens, cut=cut):
            out, *rest = whole(self, tokens)
            return out[:, cut], *rest

        monkeypatch.setattr(type(clip.cond_stage_model), "encode_token_weights", shorter)
        with pytest.raises(BoxwrightError, match="columns for .* tokens"):
            encode(clip, "a red cat and")


def test_template_stripping_that_would_cost_a_word_is_refused(reader):
    clip = tiny_clip(reader, "hunyuan_video")
    with pytest.raises(BoxwrightError, match="columns for .* tokens"):
        encode(clip, "a red cat<|eot_id|> and a dog")  # the host cuts off what follows, too


def test_no_clip_is_one_clear_error():
    with pytest.raises(BoxwrightError, match="no text encoder"):
        encode_layout(None, "a cat", [Region("cat", EVERYWHERE)], True)


@pytest.mark.parametrize(
    "prompt, phrase, message",
    [
        ("a cat", " \t", "Region 1 has no phrase"),
        ("a cat", "<lora:toon:1>", "Region 1 has no phrase"),
        ("a cat", "x" * 1001, "phrase of region 1 has 1001 characters; the limit is 1000"),
        ("x" * 100_001, "x", "prompt has 100001 characters; the limit is 100000"),
        ("a \ud800 cat", "cat", r"prompt holds '\\ud800'"),
        ("a cat", "c\udfffat", r"phrase of region 1 holds '\\udfff'"),
        ("a \0 cat", "cat", r"prompt holds '\\x00'"),
    ],
)
def test_bad_text_is_refused_before_anything_is_tokenised(toy, monkeypatch, prompt, phrase, message):
    clip = toy[1].clone()
    monkeypatch.setattr(clip, "tokenize", None)
    with pytest.raises(BoxwrightError, match=message):
        encode_layout(clip, prompt, regions(phrase), True)


def test_a_phrase_of_marks_alone_is_refused(toy):
    with pytest.raises(BoxwrightError, match=r'no words in the phrase of region 1, "\(\(\)\)"'):
        encode_layout(toy[1], "a cat", regions("(())"), True)
