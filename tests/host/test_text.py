"""Every tokenizer that the host ships, and tiny encoders of the host's own classes: which column is which word.

Oracles that share no code with the pack: the offsets that the tokenizers library reports, the ids of a phrase
tokenised alone, and the encoders themselves (attention switched off, one row of the token table changed: exactly the
columns of that token change).
"""

import unicodedata

import nodes
import pytest
import torch
from pack.attention_patches.core.tokens import phrase_columns
from pack.attention_patches.core.types import TokenMap
from pack.attention_patches.host.text.conditioning import encode
from tiny_encoders import ENCODERS, TOKENIZERS, assert_same_conditioning, change_rows, tiny_clip

pytestmark = pytest.mark.usefixtures("one_thread")


# --- tokenizers -------------------------------------------------------------------------------------------------------

NASTY = (
    "a (red:1.2) CAT, ((blue)) \\(dog\\)  sitting (on (a:0.5) mat",
    "赤い猫 and a \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 émoji café e\u0301, naïve\tx\n\ny",
    "\u200bשלום हिन्दी แมว",
    "\nnew line first, I'm don't 12345 ‘quoted’ wait… ½ ﬁre",
    "!!! ... -- a)b(c :1.5) (x:y) <|endoftext|> </s> <unk>",
    "",
    " ",
    "()",
    "(:1.2)",
    "\\",
)


def read(reader, name, prompt):
    """(stream key, Stream) for every stream of the tokenizer `name`."""
    return [(key, reader(name).read(prompt, key)) for key in TOKENIZERS[name][1]]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_and_only_words_have_characters(reader, name):
    for prompt in NASTY:
        for key, stream in read(reader, name, prompt):
            spans = [span for span in stream.spans if span is not None]
            assert [span is not None for span in stream.spans] == [role == "word" for role in stream.roles]
            assert all(0 <= a <= b <= len(stream.text) for a, b in spans)
            assert spans == sorted(spans) and [b for _, b in spans] == sorted(b for _, b in spans), (key, prompt)
            covered = {index for a, b in spans for index in range(a, b)}
            missed = [c for index, c in enumerate(stream.text) if index not in covered and not c.isspace()]
            # LlamaTokenizerFast of some transformers versions gives no token at all for a text it does not know.
            assert not missed or key == "llama" and not spans, (key, prompt, missed)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_the_host_s_and_roles_make_sense(reader, name):
    for prompt in NASTY:
        tokens = reader(name).clip.tokenize(prompt)
        for key, stream in read(reader, name, prompt):
            assert list(stream.ids) == [token[0] for chunk in tokens[key] for token in chunk]
            order = "".join(role[0] for role in stream.roles)  # start, word, end, padding, template
            assert order.strip("p").count("p") == 0 and order.count("s") <= len(tokens[key])
            assert order.count("e") in (0, len(tokens[key]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_phrase_columns_hold_the_ids_of_the_phrase_tokenised_alone(reader, name):
    prompt = "a photo of one red cat, the blue dog and some quick forest"
    for key, stream in read(reader, name, prompt):
        if key == "llama":
            continue  # some transformers versions let this vocabulary's tokens run across words
        inner = getattr(reader(name).clip.tokenizer, key, None) or getattr(reader(name).clip.tokenizer, f"clip_{key}")
        for phrase in ("red cat", "blue dog", "quick forest"):
            alone = [without_specials(inner, text) for text in (phrase, " " + phrase)]
            map_ = TokenMap(stream.text, stream.spans, stream.roles)
            columns = phrase_columns(map_, phrase).nonzero().flatten().tolist()
            assert columns == list(range(columns[0], columns[-1] + 1))
            own = [stream.ids[column] for column in columns]
            # SentencePiece spells the space before the first word as a token of its own, which is not the phrase's.
            assert own in [ids[start:] for ids in alone for start in (0, 1)], (key, phrase)


def without_specials(inner, text):
    ids = inner.tokenizer(text)["input_ids"]
    return ids[inner.tokens_start : -1 if inner.tokenizer_adds_end_token else None]


OFFSETS = [
    ("sd1", "l"),
    ("sd2", "h"),
    ("flux", "t5xxl"),
    ("hydit", "hydit_clip"),
    ("qwen_image", "qwen25_7b"),
    ("qwen35", "qwen35_2b"),
]
OFFSETS = [row for row in OFFSETS if row[0] in TOKENIZERS]


@pytest.mark.parametrize("name, key", OFFSETS)
@pytest.mark.parametrize(
    "prompt",
    [
        "A RED cat, the naïve café and 12 wait… dogs' toys",
        "赤い猫 カタカナ \U0001f600 x",
        "שלום, हिन्दी แมว ok",
        "e\u0301a ﬁne",
    ],
)
def test_spans_equal_the_offsets_of_the_tokenizers_library(reader, name, key, prompt):
    stream = reader(name).read(prompt, key)
    outer = reader(name).clip.tokenizer
    inner = getattr(outer, key, None) or getattr(outer, f"clip_{key}")
    known = inner.tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    spans = [span for span in stream.spans if span is not None]
    assert len(known) == len(spans)
    for (a, b), (c, d) in zip(known, spans):
        a, b = a + len(prompt[a:b]) - len(prompt[a:b].lstrip()), b - len(prompt[a:b]) + len(prompt[a:b].rstrip())
        if a < b and prompt[c:d].strip():  # the library gives a lone space no characters or those of the next token
            # It leaves out accents that the tokenizer merges or drops; here they belong to the letter before them.
            assert (a, b) == (c, d) or a == c and all(unicodedata.category(mark) == "Mn" for mark in prompt[b:d])


@pytest.mark.parametrize("name", ["wan", "lumina2", "sd1"])
def test_tokens_of_single_bytes_share_their_character(reader, name):
    prompt = "a dog\u8d64\U0001f9ffcat"
    stream = reader(name).read(prompt, TOKENIZERS[name][1][0])
    own = [prompt[slice(*span)] for span in stream.spans if span and span[1] > 5]
    assert own[0] == "\u8d64" and own.count("\U0001f9ff") >= 2 and "".join(dict.fromkeys(own)).endswith("cat")
    assert set(own) <= {"\u8d64", "\U0001f9ff", "c", "a", "t", "at", "cat"}


def test_template_is_no_part_of_the_prompt(reader):
    named = ("qwen_image", "z_image", "klein", "hunyuan_video", "omnigen2", "ovis", "qwen35")
    for name in TOKENIZERS.keys() & named:
        key = TOKENIZERS[name][1][-1]
        stream = reader(name).read("image of the user image", key)  # words that templates hold too
        assert stream.text == "image of the user image"
        assert "".join(stream.text[a:b] for a, b in filter(None, stream.spans)) == "imageoftheuserimage"
        assert stream.roles.count("template") >= 3


def test_prompt_may_bring_its_own_template(reader):
    own = "<|im_start|>system\nDraw.<|im_end|>\n<|im_start|>user\na red cat<|im_end|>\n<|im_start|>assistant\n"
    stream = reader("qwen_image").read(own, "qwen25_7b")
    assert stream.text == own and "template" not in stream.roles


def test_emphasis_and_escapes_are_gone_where_the_host_removes_them(reader):
    prompt = "a ((red)) (cat:1.3) \\(x\\)"
    assert reader("sd1").read(prompt, "l").text == "a red cat (x)"
    assert reader("flux").read(prompt, "t5xxl").text == "a red cat (x)"
    assert reader("qwen_image").read(prompt, "qwen25_7b").text == "a ((red)) (cat:1.3) (x)"  # takes no emphasis


def test_word_that_does_not_fit_moves_to_the_next_chunk(reader):
    prompt = "cat " * 73 + "(extraordinarily unbelievable:1.1) dog"  # 73 + 2 or more tokens: one group, 75 fit
    stream = reader("sd1").read(prompt, "l")
    assert len(stream.ids) == 154
    columns = [i for i, span in enumerate(stream.spans) if span and stream.text[span[0] : span[1]] in "extraordinarily"]
    assert columns[0] == 77 + 1 and stream.roles[74:79] == ("end", "padding", "padding", "start", "word")


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_columns_are_those_that_the_encoder_itself_writes(reader, name):
    """Change the rows of the token table that "zq" uses: the columns that change are those that the map gives it."""
    clip = tiny_clip(reader, name)
    for prompt in ("a red cat zq by the dog", "word " * 90 + "zq, end"):
        stock = nodes.CLIPTextEncode().encode(clip, prompt)[0]
        encoded, conditioning = encode(clip, prompt)
        assert_same_conditioning(conditioning, stock)
        before = read_by_the_model(conditioning)
        assert len(encoded.tokens) == sum(part.shape[1] for part in before)

        count = sum(change_rows(clip, part, prompt, "zq") for part in ENCODERS[name][2].split())
        after = read_by_the_model(nodes.CLIPTextEncode().encode(clip, prompt)[0])
        written = torch.cat([(a != b).any(dim=-1)[0] for a, b in zip(before, after, strict=True)])
        assert phrase_columns(encoded.tokens, "zq").tolist() == written.tolist()
        parts_in_one_column = 2 if "clip_l clip_g" in ENCODERS[name][2] else 1
        assert written.sum() >= count / parts_in_one_column > 0


def read_by_the_model(conditioning):
    """What image tokens read, one part behind the other; HiDream's language model stands there twice."""
    embedding, extra = conditioning[0]
    parts = [embedding.clone()]
    if "conditioning_llama3" in extra:
        parts += [extra["conditioning_llama3"][:, -1].clone()] * 2
    return parts


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "qwen_image", "z_image", "lumina2"])
def test_causal_encoders_change_from_the_word_on(reader, name):
    """With attention on: every column before the changed word stays bit for bit, its own is the first to change."""
    clip = tiny_clip(reader, name, attention=True)
    prompt, other = "a red cat and one dog at night", "a red cat and one fox at night"
    columns = phrase_columns(encode(clip, prompt)[0].tokens, "dog")
    encoded = [nodes.CLIPTextEncode().encode(clip, text)[0][0][0] for text in (prompt, other)]
    length = min(part.shape[1] for part in encoded)
    changed = (encoded[0][:, :length] != encoded[1][:, :length]).any(dim=-1)[0]
    assert changed.nonzero()[0] == columns.nonzero()[0]


@pytest.mark.parametrize("name, filled", [("sd1", True), ("sd2", False), ("sdxl", True), ("refiner", False)])
def test_what_columns_behind_the_prompt_hold_is_read_from_the_tokenizer(reader, name, filled):
    """SD 2.x fills up with a token of its own; where one of two encoders repeats the end token, that is there."""
    assert encode(tiny_clip(reader, name), "a red cat")[0].tokens.filled_with_end is filled


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux", "hydit", "lumina2", "qwen_image"])
@pytest.mark.parametrize("prompt", ["a (red:1.3) cat (x", "", "\ncat", "((a)) \\(b\\) <|im_end|>"])
def test_conditioning_is_that_of_the_stock_node(reader, name, prompt):
    clip = tiny_clip(reader, name, attention=True)
    stock = nodes.CLIPTextEncode().encode(clip, prompt)[0]
    encoded, conditioning = encode(clip, prompt)
    assert len(encoded.tokens) == encoded.embedding.shape[1]
    assert_same_conditioning(conditioning, stock)


def test_columns_that_a_model_makes_of_other_tokens_are_those_tokens(reader):
    """Anima's image tokens read one column for every T5 token, at least 512; T5 itself is nowhere."""
    clip = tiny_clip(reader, "anima")
    for words in (0, 600):
        prompt = "a (red:1.2) cat and one quick fox" + " word" * words
        encoded, conditioning = encode(clip, prompt)
        ids = conditioning[0][1]["t5xxl_ids"].tolist()
        assert len(encoded.tokens) == max(512, len(ids)) and (len(ids) > 512) == (words > 0)
        inner = clip.tokenizer.t5xxl
        for phrase in ("red cat", "quick fox"):
            own = phrase_columns(encoded.tokens, phrase).nonzero()[:, 0].tolist()
            assert [ids[column] for column in own] == inner.tokenizer(phrase)["input_ids"][:-1]
        assert {*encoded.tokens.roles[len(ids) :]} <= {"padding"}
