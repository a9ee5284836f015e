"""Textual inversions in the prompt and in the phrases of regions: their columns, and those that are missing."""

import nodes
import pytest
import safetensors.torch
import torch
from pack.attention_patches.core.tokens import phrase_columns
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.text.conditioning import encode, text_notes
from pack.attention_patches.host.text.layout import encode_layout
from tiny_encoders import ENCODERS, TOKENIZERS, change_rows, regions, tiny_clip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def with_embeddings(tmp_path):
    """A clip whose embedding folder holds: style (3 vectors), wide (another width), pair (2 for CLIP-L, 3 for G)."""
    draw = torch.Generator().manual_seed(1)
    files = {
        "style": {"emb_params": torch.randn(3, 32, generator=draw)},
        "wide": {"emb_params": torch.randn(2, 48, generator=draw)},
        "pair": {"clip_l": torch.randn(2, 32, generator=draw), "clip_g": torch.randn(3, 32, generator=draw)},
        "both": {"clip_l": torch.randn(2, 32, generator=draw), "clip_g": torch.randn(2, 32, generator=draw)},
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")

    def build(reader, name):
        clip = tiny_clip(reader, name)
        outer, _, vocabulary = TOKENIZERS[ENCODERS[name][0]]
        clip.tokenizer = outer(embedding_directory=[str(tmp_path)], tokenizer_data=vocabulary())
        return clip

    return build


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("a embedding:style, red cat zq", "a embedding:style, red cat zq"),
        ("embedding:style red  cat\nzq", "embedding:style red cat zq"),
        ("(embedding:style:1.2) zq", "embedding:style zq"),
        ("a (old embedding:style:0.5)zq", "a old embedding:style zq"),
        ("a embedding:nofile zq", "a zq"),  # the host leaves out what it does not find
    ],
)
def test_embedding_has_one_column_per_vector(with_embeddings, reader, prompt, text):
    clip = with_embeddings(reader, "sd1")
    encoded, conditioning = encode(clip, prompt)
    tokens = encoded.tokens
    assert tokens.text == text
    assert phrase_columns(tokens, "embedding:style").sum() == 3 * ("embedding:style" in text)
    assert phrase_columns(tokens, "style").sum() == 3 * ("embedding:style" in text)
    before = conditioning[0][0].clone()
    change_rows(clip, "clip_l", prompt.replace("embedding:style", " "), "zq")
    after = nodes.CLIPTextEncode().encode(clip, prompt)[0][0][0]
    assert phrase_columns(tokens, "zq").tolist() == (before != after).any(dim=-1)[0].tolist()


def test_embedding_that_would_shift_the_words_is_refused_by_name(with_embeddings, reader):
    with pytest.raises(BoxwrightError, match='"embedding:wide" has 48 values .* takes 32'):
        encode(with_embeddings(reader, "sd1"), "a embedding:wide cat")
    with pytest.raises(BoxwrightError, match="another number of vectors in each"):
        encode(with_embeddings(reader, "sdxl"), "a embedding:pair cat")
    assert len(encode(with_embeddings(reader, "sdxl"), "a embedding:both cat")[0].tokens) == 77


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("phrase", ["embedding:nofile", "red embedding:nofile, cat", "(embedding:nofile:1.2)"])
def test_a_phrase_with_a_missing_embedding_is_refused_by_its_name(with_embeddings, reader, name, phrase, append):
    clip = with_embeddings(reader, name)
    with pytest.raises(BoxwrightError, match='region 1.*"nofile", and there is none.*models/embeddings') as raised:
        encode_layout(clip, "a red cat", regions(phrase), append)
    assert "append_missing" not in str(raised.value)


def test_a_missing_embedding_in_the_prompt_is_said(with_embeddings, reader):
    clip = with_embeddings(reader, "sdxl")
    encode_layout(clip, "a embedding:nofile, red cat", regions("red cat"), False)
    notes = text_notes(clip, [("The prompt", "a embedding:nofile, red embedding:both cat")])
    assert notes == [
        'The prompt: there is no embedding "nofile", so that it is left out. Put its file into models/embeddings.'
    ]


def test_values_of_an_embedding_count_in_the_key(with_embeddings, reader):
    clip = with_embeddings(reader, "sd1")
    first = encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key
    assert encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key == first
    safetensors.torch.save_file(
        {"emb_params": torch.zeros(3, 32)}, f"{clip.tokenizer.clip_l.embedding_directory[0]}/style.safetensors"
    )
    assert encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key != first
