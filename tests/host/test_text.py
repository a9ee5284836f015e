"""Every tokenizer that the host ships, and tiny encoders of the host's own classes: which column is which word.

Oracles that share no code with the pack: the offsets that the tokenizers library reports, the ids of a phrase
tokenised alone, and the encoders themselves (attention switched off, one row of the token table changed: exactly the
columns of that token change).
"""

import io
import re
import types
import unicodedata
from dataclasses import replace

import comfy.hooks
import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders as encoders
import nodes
import pytest
import safetensors.torch
import tokenizers
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.text_encoders import (
    anima,
    aura_t5,
    boogu,
    cogvideo,
    cosmos,
    flux,
    genmo,
    hidream,
    hidream_o1,
    hunyuan_image,
    hunyuan_video,
    hydit,
    ideogram4,
    joyimage,
    kandinsky5,
    krea2,
    longcat_image,
    lt,
    lumina2,
    mage_flow,
    omnigen2,
    ovis,
    pixart_t5,
    qwen35,
    sa_t5,
    sd2_clip,
    sd3_clip,
    wan,
    z_image,
)
from comfy_extras.nodes_hooks import SetClipHooks
from pack.attention_patches.core.tokens import phrase_columns
from pack.attention_patches.core.types import Box, BoxwrightError, PhraseNotFoundError, Region, TokenMap
from pack.attention_patches.host.text.conditioning import encode, text_notes
from pack.attention_patches.host.text.layout import encode_layout, missing_phrases
from pack.attention_patches.host.text.reader import BYTE_OF, PromptReader
from tokenizers.models import BPE

EVERYWHERE = Box(0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tiny_sentencepiece(bos=-1, eos=1, pad=0, unk=2, byte_fallback=True):
    """A SentencePiece model trained on two sentences, as the host's checkpoints carry it: uint8 tensor."""
    import sentencepiece

    sentences = ["a red cat and a blue dog in the green forest", "the quick brown fox jumps over the lazy dog"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        unk_id=unk,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def mistral_tokenizer(**kwargs):
    """FLUX.2's, with a vocabulary of every byte and a few words behind Mistral's special tokens.

    The converter of the checkpoints' vocabulary is another one in every version of transformers: here it is made.
    """
    spelling = {byte: character for character, byte in BYTE_OF.items()}
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    special += [f"<SPECIAL_{number}>" for number in range(len(special), 11)] + ["<pad>"]
    merges = [(left, right) for word in (" red", " cat", " dog") for left, right in pairs("\u0120" + word[1:])]
    pieces = [*special, *spelling.values(), *(left + right for left, right in merges)]
    vocabulary = tokenizers.Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in special])
    made = {"tokenizer_object": vocabulary, "legacy": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux, "load_mistral_tokenizer", lambda data: made)
        return flux.Flux2Tokenizer(**kwargs)


def pairs(word):
    return [(word[:end], word[end]) for end in range(1, len(word))]


def spiece(**ids):
    return lambda: {"spiece_model": tiny_sentencepiece(**ids)}


# name: (outer tokenizer, its streams, the vocabulary that the checkpoint brings)
TOKENIZERS = {
    "sd1": (SD1Tokenizer, ("l",), dict),
    "sd2": (sd2_clip.SD2Tokenizer, ("h",), dict),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, ("l", "g"), dict),
    "cascade": (comfy.sdxl_clip.StableCascadeTokenizer, ("g",), dict),
    "sd3": (sd3_clip.SD3Tokenizer, ("l", "g", "t5xxl"), dict),
    "flux": (flux.FluxTokenizer, ("l", "t5xxl"), dict),
    "pixart": (pixart_t5.PixArtTokenizer, ("t5xxl",), dict),
    "ltxv": (lt.LTXVT5Tokenizer, ("t5xxl",), dict),
    "mochi": (genmo.MochiT5Tokenizer, ("t5xxl",), dict),
    "cosmos": (cosmos.CosmosT5Tokenizer, ("t5xxl",), dict),
    "cogvideo": (cogvideo.CogVideoXTokenizer, ("t5xxl",), dict),
    "sa_t5": (sa_t5.SAT5Tokenizer, ("t5base",), dict),
    "aura": (aura_t5.AuraT5Tokenizer, ("pile_t5xl",), dict),
    "wan": (wan.WanT5Tokenizer, ("umt5xxl",), spiece()),
    "wan_unk": (wan.WanT5Tokenizer, ("umt5xxl",), spiece(byte_fallback=False)),
    "hydit": (hydit.HyditTokenizer, ("hydit_clip", "mt5xl"), lambda: {"mt5xl.spiece_model": tiny_sentencepiece()}),
    "lumina2": (lumina2.LuminaTokenizer, ("gemma2_2b",), spiece(bos=2, unk=3)),
    "gemma3": (lumina2.NTokenizer, ("gemma3_4b",), spiece(bos=2, unk=3)),
    "hunyuan_video": (hunyuan_video.HunyuanVideoTokenizer, ("l", "llama"), dict),
    "hunyuan_video15": (hunyuan_video.HunyuanVideo15Tokenizer, ("qwen25_7b",), dict),
    "hunyuan_image": (hunyuan_image.HunyuanImageTokenizer, ("qwen25_7b",), dict),
    "hidream": (hidream.HiDreamTokenizer, ("l", "g", "t5xxl", "llama"), dict),
    "qwen_image": (encoders.qwen_image.QwenImageTokenizer, ("qwen25_7b",), dict),
    "kandinsky5": (kandinsky5.Kandinsky5Tokenizer, ("qwen25_7b", "l"), dict),
    "krea2": (krea2.Krea2Tokenizer, ("qwen3vl_4b",), dict),
    "mage_flow": (mage_flow.MageFlowTokenizer, ("qwen3vl_4b",), dict),
    "joyimage": (joyimage.JoyImageTokenizer, ("qwen3vl_8b",), dict),
    "boogu": (boogu.BooguTokenizer, ("qwen3vl_8b",), dict),
    "ideogram4": (ideogram4.Ideogram4Tokenizer, ("qwen3vl_8b",), dict),
    "z_image": (z_image.ZImageTokenizer, ("qwen3_4b",), dict),
    "klein": (flux.KleinTokenizer, ("qwen3_4b",), dict),
    "flux2": (mistral_tokenizer, ("mistral3_24b",), dict),
    "anima": (anima.AnimaTokenizer, ("qwen3_06b", "t5xxl"), dict),
    "omnigen2": (omnigen2.Omnigen2Tokenizer, ("qwen25_3b",), dict),
    "ovis": (ovis.OvisTokenizer, ("qwen3_2b",), dict),
    "qwen35": (qwen35.tokenizer("qwen35_2b"), ("qwen35_2b",), dict),
}

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


@pytest.fixture(scope="module")
def reader():
    """PromptReader of a tokenizer by its name; each is built once."""
    built = {}

    def get(name):
        if name not in built:
            outer, _, vocabulary = TOKENIZERS[name]
            built[name] = PromptReader(clip_without_model(outer(tokenizer_data=vocabulary())))
        return built[name]

    return get


def clip_without_model(tokenizer):
    """The host's CLIP object with a tokenizer alone."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options, clip.cond_stage_model = tokenizer, {}, None
    return clip


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
    for name in ("qwen_image", "z_image", "klein", "hunyuan_video", "omnigen2", "ovis", "qwen35"):
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

CLIP_SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
BERT_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
T5_SIZE = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2}
LLM_SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
SIZES = {
    **{f"{name}_model_config": CLIP_SIZE for name in ("clip_l", "clip_g", "clip_h")},
    **{f"{name}_model_config": T5_SIZE for name in ("t5xxl", "pile_t5xl", "umt5xxl", "t5base", "mt5xl")},
    **{
        f"{name}_model_config": LLM_SIZE
        for name in (
            "qwen25_7b",
            "qwen3_2b",
            "qwen3_4b",
            "llama",
            "gemma2_2b",
            "qwen25_3b",
            "qwen3vl_4b",
            "qwen3vl_8b",
            "qwen3_06b",
        )
    },
    "hydit_clip_model_config": BERT_SIZE,
}
SPECIAL_SIZES = {
    "hunyuan_video": {"llama_model_config": {**LLM_SIZE, "num_hidden_layers": 4}},  # third layer from the end
    **{
        name: {"qwen25_7b_model_config": {**LLM_SIZE, "num_hidden_layers": 4}}
        for name in ("hunyuan_image", "hunyuan_video15")
    },
    "flux2": {"mistral3_24b_model_config": {**LLM_SIZE, "num_hidden_layers": 40}},  # 10, 20 and 30 of 40
    "klein": {"qwen3_4b_model_config": {**LLM_SIZE, "num_hidden_layers": 28}},  # it reads layers 9, 18 and 27
    # SD3 pads its CLIP columns to T5's real width.
    **{name: {"t5xxl_model_config": {**T5_SIZE, "d_model": 4096}} for name in ("sd3", "sd3_g_t5")},
}

# name: (tokenizer in TOKENIZERS, encoder class of the host, its parts that make up the columns)
ENCODERS = {
    "sd1": ("sd1", SD1ClipModel, "clip_l"),
    "sd2": ("sd2", sd2_clip.SD2ClipModel, "clip_h"),
    "sdxl": ("sdxl", comfy.sdxl_clip.SDXLClipModel, "clip_l clip_g"),
    "refiner": ("sdxl", comfy.sdxl_clip.SDXLRefinerClipModel, "clip_g"),
    "cascade": ("cascade", comfy.sdxl_clip.StableCascadeClipModel, "clip_g"),
    "sd3": ("sd3", sd3_clip.sd3_clip(), "clip_l clip_g t5xxl"),
    "sd3_pair": ("sd3", sd3_clip.sd3_clip(t5=False), "clip_l clip_g"),
    "sd3_g": ("sd3", sd3_clip.sd3_clip(clip_l=False, t5=False), "clip_g"),
    "sd3_g_t5": ("sd3", sd3_clip.sd3_clip(clip_l=False), "clip_g t5xxl"),
    "sd3_t5": ("sd3", sd3_clip.sd3_clip(clip_l=False, clip_g=False), "t5xxl"),
    "flux": ("flux", flux.flux_clip(), "t5xxl"),
    "chroma": ("pixart", pixart_t5.pixart_te(), "t5xxl"),
    "ltxv": ("ltxv", lt.ltxv_te(), "t5xxl"),
    "cosmos": ("cosmos", cosmos.te(), "t5xxl"),
    "aura": ("aura", aura_t5.AuraT5Model, "pile_t5xl"),
    "wan": ("wan", wan.te(), "umt5xxl"),
    "hydit": ("hydit", hydit.HyditModel, "hydit_clip"),
    "lumina2": ("lumina2", lumina2.te(), "gemma2_2b"),
    "hunyuan_video": ("hunyuan_video", hunyuan_video.hunyuan_video_clip(), "llama"),
    "hunyuan_image": ("hunyuan_image", hunyuan_image.te(byt5=False), "qwen25_7b"),
    "hidream": ("hidream", hidream.hidream_clip(), "t5xxl llama"),
    "hidream_no_llama": ("hidream", hidream.hidream_clip(llama=False), "t5xxl"),
    "qwen_image": ("qwen_image", encoders.qwen_image.te(), "qwen25_7b"),
    "kandinsky5": ("kandinsky5", kandinsky5.te(), "qwen25_7b"),
    "omnigen2": ("omnigen2", omnigen2.te(), "qwen25_3b"),
    "ovis": ("ovis", ovis.te(), "qwen3_2b"),
    "z_image": ("z_image", z_image.te(), "qwen3_4b"),
    "krea2": ("krea2", krea2.te(), "qwen3vl_4b"),
    "mage_flow": ("mage_flow", mage_flow.te(), "qwen3vl_4b"),
    "joyimage": ("joyimage", joyimage.te(), "qwen3vl_8b"),
    "boogu": ("boogu", boogu.te(), "qwen3vl_8b"),
    "klein": ("klein", flux.klein_te(), "qwen3_4b"),
    "flux2": ("flux2", flux.flux2_te(), "mistral3_24b"),
    "hunyuan_video15": ("hunyuan_video15", hunyuan_image.te(byt5=False), "qwen25_7b"),
    "ideogram4": ("ideogram4", ideogram4.te(), "qwen3vl_8b"),
}


# Those whose conditioning the model turns into columns of its own.
TURNED = {"anima": ("anima", anima.te(), "")}


def tiny_clip(reader, name, attention=False):
    """The host's CLIP object with small random weights; without attention each column depends on its own token only."""
    tokenizer, encoder, _ = {**ENCODERS, **TURNED}[name]
    target = types.SimpleNamespace(params={}, clip=encoder, tokenizer=lambda **_: reader(tokenizer).clip.tokenizer)
    clip = comfy.sd.CLIP(target, model_options={**SIZES, **SPECIAL_SIZES.get(name, {})})
    draw = torch.Generator().manual_seed(0)
    for parameter_name, parameter in clip.cond_stage_model.named_parameters():
        if "visual." in parameter_name:
            continue  # the picture tower of the language models: large and not used
        if parameter.ndim == 1:
            parameter.fill_(0.0 if parameter_name.endswith("bias") else 1.0)
        elif parameter.numel() > 50_000_000:
            parameter.copy_(torch.randn(parameter.shape[1], generator=draw))  # every row the same: drawing takes long
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
        if not attention and ATTENTION_OUTPUT.search(parameter_name):
            parameter.zero_()
    return clip


ATTENTION_OUTPUT = re.compile(r"(out_proj|o_proj|Attention\.o|attention\.output\.dense)\.(weight|bias)$")


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


def change_rows(clip, part, prompt, letters):
    """Change the rows of a part's token table for the prompt's tokens of these letters alone; returns their number."""
    inner = getattr(clip.tokenizer, part, None) or getattr(clip.tokenizer, f"clip_{part}")
    tokens = clip.tokenize(prompt)
    stream = tokens.get(part) or tokens[part.removeprefix("clip_")]
    ids = [token for chunk in stream for token, _ in chunk]
    own = [number for number in ids if letters_of(inner.inv_vocab[number]) <= set(letters)]
    table = getattr(clip.cond_stage_model, part).transformer.get_input_embeddings().weight
    table[sorted(set(own))] += torch.linspace(-1.0, 1.0, table.shape[1])  # not a constant: a norm would take it out
    return len(own)


def letters_of(piece):
    """The letters of a token's spelling, without the marks for the space before a word or for its end."""
    return set(piece.removesuffix("</w>").strip("\u2581\u0120#")) or {""}


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


def assert_same_conditioning(ours, stock):
    assert len(ours) == len(stock)
    for (tensor, values), (stock_tensor, stock_values) in zip(ours, stock):
        assert torch.equal(tensor, stock_tensor) and tensor.dtype == stock_tensor.dtype
        assert values.keys() == stock_values.keys()
        for key, value in values.items():
            assert torch.equal(value, stock_values[key]) if torch.is_tensor(value) else value == stock_values[key]


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


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer, encoder, why",
    [
        (longcat_image.LongCatImageTokenizer, longcat_image.te(), "does not tell the prompt's tokens"),
        (hidream.HiDreamTokenizer, hidream.hidream_clip(t5=False), 'without its "t5xxl" part'),
        (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(clip_l=False, clip_g=False, t5=False), "not known"),
        (cogvideo.CogVideoXT5Tokenizer, cogvideo.CogVideoXT5XXL, "come from no tokenizer of that name"),
        (hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE, "not known"),
    ],
)
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


# --- textual inversions -----------------------------------------------------------------------------------------------


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


# --- layouts ----------------------------------------------------------------------------------------------------------


def regions(*phrases):
    return [Region(phrase, EVERYWHERE) for phrase in phrases]


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


def test_values_of_an_embedding_count_in_the_key(with_embeddings, reader):
    clip = with_embeddings(reader, "sd1")
    first = encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key
    assert encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key == first
    safetensors.torch.save_file(
        {"emb_params": torch.zeros(3, 32)}, f"{clip.tokenizer.clip_l.embedding_directory[0]}/style.safetensors"
    )
    assert encode_layout(clip, "cat embedding:style", regions("cat"), True)[1].key != first


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


def test_prompt_at_the_limit_is_read(toy):
    prompt = "(red:1.1) circle " * 5_800 + "cat"
    tokens = PromptReader(toy[1]).read(prompt, "l")
    assert tokens.text[slice(*[span for span in tokens.spans if span][-1])] == "cat"
