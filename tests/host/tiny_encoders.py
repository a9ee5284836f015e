"""Every tokenizer that the host ships, and tiny encoders of the host's own classes."""

import importlib
import importlib.util
import io
import re
import types

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders as encoders
import pytest
import tokenizers
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.text_encoders import (
    anima,
    aura_t5,
    cosmos,
    flux,
    genmo,
    hidream,
    hunyuan_image,
    hunyuan_video,
    hydit,
    kandinsky5,
    lt,
    lumina2,
    omnigen2,
    ovis,
    pixart_t5,
    sa_t5,
    sd2_clip,
    sd3_clip,
    wan,
    z_image,
)
from pack.attention_patches.core.types import Box, Region
from pack.attention_patches.host.text.reader import BYTE_OF, PromptReader
from tokenizers.models import BPE

EVERYWHERE = Box(0.0, 0.0, 1.0, 1.0)


def of_newer_hosts(name):
    """A module of the host's text encoders; None where this host has no such file."""
    name = f"comfy.text_encoders.{name}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


boogu, cogvideo, ideogram4, joyimage, krea2, mage_flow, qwen35 = map(
    of_newer_hosts, ("boogu", "cogvideo", "ideogram4", "joyimage", "krea2", "mage_flow", "qwen35")
)


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
    "cogvideo": cogvideo and (cogvideo.CogVideoXTokenizer, ("t5xxl",), dict),
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
    "krea2": krea2 and (krea2.Krea2Tokenizer, ("qwen3vl_4b",), dict),
    "mage_flow": mage_flow and (mage_flow.MageFlowTokenizer, ("qwen3vl_4b",), dict),
    "joyimage": joyimage and (joyimage.JoyImageTokenizer, ("qwen3vl_8b",), dict),
    "boogu": boogu and (boogu.BooguTokenizer, ("qwen3vl_8b",), dict),
    "ideogram4": ideogram4 and (ideogram4.Ideogram4Tokenizer, ("qwen3vl_8b",), dict),
    "z_image": (z_image.ZImageTokenizer, ("qwen3_4b",), dict),
    "klein": (flux.KleinTokenizer, ("qwen3_4b",), dict),
    "flux2": (mistral_tokenizer, ("mistral3_24b",), dict),
    "anima": (anima.AnimaTokenizer, ("qwen3_06b", "t5xxl"), dict),
    "omnigen2": (omnigen2.Omnigen2Tokenizer, ("qwen25_3b",), dict),
    "ovis": (ovis.OvisTokenizer, ("qwen3_2b",), dict),
    "qwen35": qwen35 and (qwen35.tokenizer("qwen35_2b"), ("qwen35_2b",), dict),
}
TOKENIZERS = {name: row for name, row in TOKENIZERS.items() if row}


def readers():
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
    "krea2": krea2 and ("krea2", krea2.te(), "qwen3vl_4b"),
    "mage_flow": mage_flow and ("mage_flow", mage_flow.te(), "qwen3vl_4b"),
    "joyimage": joyimage and ("joyimage", joyimage.te(), "qwen3vl_8b"),
    "boogu": boogu and ("boogu", boogu.te(), "qwen3vl_8b"),
    "klein": ("klein", flux.klein_te(), "qwen3_4b"),
    "flux2": ("flux2", flux.flux2_te(), "mistral3_24b"),
    "hunyuan_video15": ("hunyuan_video15", hunyuan_image.te(byt5=False), "qwen25_7b"),
    "ideogram4": ideogram4 and ("ideogram4", ideogram4.te(), "qwen3vl_8b"),
}
ENCODERS = {name: row for name, row in ENCODERS.items() if row}


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


def assert_same_conditioning(ours, stock):
    assert len(ours) == len(stock)
    for (tensor, values), (stock_tensor, stock_values) in zip(ours, stock):
        assert torch.equal(tensor, stock_tensor) and tensor.dtype == stock_tensor.dtype
        assert values.keys() == stock_values.keys()
        for key, value in values.items():
            assert torch.equal(value, stock_values[key]) if torch.is_tensor(value) else value == stock_values[key]


def regions(*phrases):
    return [Region(phrase, EVERYWHERE) for phrase in phrases]
