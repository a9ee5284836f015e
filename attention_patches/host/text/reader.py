"""A CLIP object and a prompt -> which characters each token stands for. The only place that tokenises.

No tokenizer of the host is imitated here. The host tokenises on a copy of the CLIP object whose vocabularies report
every text they are given, and what they report is what the encoder reads. conditioning.py checks two things each time:
the copy gives the tokens that the CLIP object gives, and the tokens make up exactly the columns of the conditioning.
What cannot be established is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.sd1_clip import SDTokenizer, escape_important, unescape_important

from ...core.tokens import Piece, Span, align_pieces
from ...core.types import BoxwrightError, TokenRole

PROBE = "boxwright"  # a prompt that no template contains
SUPPORTED = (
    "CLIP-L, CLIP-H, CLIP-G and pairs of them, SD3, Flux, Anima, HiDream, Hunyuan-DiT and HunyuanVideo encoders, any "
    "single T5, UMT5 or language model that ComfyUI loads as an SD1ClipModel"
)

# The printable characters that byte-level vocabularies (GPT-2's scheme: CLIP, Qwen, Llama 3, Mistral) write bytes as.
PRINTABLE_BYTES = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE_BYTES}
BYTE_OF |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in set(PRINTABLE_BYTES))}


@dataclass(frozen=True)
class Heard:
    """A text that a vocabulary was given, or the name of a textual inversion. The host makes one group of each."""

    text: str
    ids: tuple[int, ...] | None  # None: a textual inversion
    behind_absent: bool = False  # a textual inversion that there is not stood in front of it


@dataclass(frozen=True)
class Stream:
    """One tokenizer's reading of a prompt. One element per token, the chunks one after the other."""

    text: str  # the prompt as this tokenizer read it
    ids: tuple[int | torch.Tensor, ...]  # Tensor [C]: one vector of a textual inversion
    spans: tuple[Span | None, ...]
    roles: tuple[TokenRole, ...]
    filled_with_end: bool  # by its tokenizer, behind the prompt


class Listening:
    """Stands in for a vocabulary: passes everything on to it and notes the texts with their token ids."""

    def __init__(self, vocabulary: Any, heard: list[Heard]):
        self.vocabulary = vocabulary
        self.heard = heard
        self.behind_absent = False

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        out = self.vocabulary(text, *args, **kwargs)
        self.heard.append(Heard(text, tuple(out["input_ids"]), self.behind_absent))
        self.behind_absent = False
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vocabulary, name)


class PromptReader:
    """Reads prompts as one CLIP object does, which is neither changed nor run."""

    def __init__(self, clip: Any):
        if clip is None:
            raise BoxwrightError("There is no CLIP: the checkpoint holds no text encoder; load one with a CLIP loader.")
        self.clip = clip
        self.encoder = clip.cond_stage_model
        self.heard: dict[str, list[Heard]] = {}
        self.absent: list[str] = []  # names of embeddings that the last text asked for, and that there are not
        self.spellers: dict[SDTokenizer, Callable[[str | None], Piece]] = {}
        self.listener = copy.copy(clip)
        self.listener.tokenizer = copy.copy(clip.tokenizer)
        for name, inner in vars(clip.tokenizer).items():
            if isinstance(inner, SDTokenizer):
                self.heard[name] = []
                setattr(self.listener.tokenizer, name, listening_copy(inner, self.heard[name], self.absent))

    def read(self, prompt: str, key: str) -> Stream:
        """The stream `key` of the prompt's tokens. Raises BoxwrightError where its tokens cannot be traced."""
        name = next((name for name in (key, f"clip_{key}") if name in self.heard), None)
        if name is None:
            raise self.unsupported(f'its tokens "{key}" come from no tokenizer of that name')
        self.hear(PROBE)
        template = joined(self.heard[name])[0].split(PROBE)
        chunks = self.hear(prompt)[key]
        if not chunks or not all(len(token) == 3 for chunk in chunks for token in chunk):
            raise self.unsupported("its tokenizer does not tell the prompt's tokens from its own")
        text, starts = joined(self.heard[name])
        begin, end = self.prompt_within(text, prompt, template)
        inner = getattr(self.clip.tokenizer, name)
        tokens = [token for chunk in chunks for token in chunk]
        roles = [role for chunk in chunks for role in chunk_roles(chunk, inner)]
        spans: list[Span | None] = [None] * len(tokens)
        places_of: dict[int, list[int]] = {}
        for place, (_, _, group) in enumerate(tokens):
            if group:
                places_of.setdefault(group - 1, []).append(place)
        for group, places in places_of.items():
            own = self.group_spans(self.heard[name][group], [tokens[place][0] for place in places], inner)
            for place, (a, b) in zip(places, own, strict=True):
                a, b = starts[group] + a, starts[group] + b
                if max(a, begin) < min(b, end) or begin <= a == b <= end:
                    spans[place] = max(a, begin) - begin, min(b, end) - begin
                else:
                    roles[place] = "template"
        ids = tuple(token[0] for token in tokens)
        return Stream(text[begin:end], ids, tuple(spans), tuple(roles), inner.pad_token == inner.end_token)

    def hear(self, text: str) -> dict[str, list]:
        """The host's tokens of `text` with their groups; what the vocabularies were given is in `self.heard`."""
        for heard in self.heard.values():
            heard.clear()
        self.absent.clear()
        return self.listener.tokenize(text, return_word_ids=True)

    def prompt_within(self, text: str, prompt: str, template: list[str]) -> Span:
        """Which characters of `text`, what a vocabulary was given, are the prompt and not a template around it."""
        if len(template) != 2:
            raise self.unsupported("the prompt does not appear once in what its tokenizer reads")
        before, after = template
        if len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after):
            return len(before), len(text) - len(after)
        if not prompt.strip():
            return len(text), len(text)  # a template of its own for the empty prompt
        if text == unescape_important(escape_important(prompt)):
            return 0, len(text)  # the prompt brings its own template
        raise self.unsupported("its tokenizer puts an unknown template around this prompt")

    def group_spans(self, heard: Heard, ids: Sequence[int], inner: SDTokenizer) -> list[Span]:
        """The characters of `heard.text` that each token of its group stands for."""
        if heard.ids is None:
            return [(0, len(heard.text))] * len(ids)
        own = heard.ids[inner.tokens_start : -1 if inner.tokenizer_adds_end_token else None]
        if list(own[: len(ids)]) != ids:
            raise self.unsupported("its tokens are not the ones that its vocabulary gave")
        if inner not in self.spellers:
            self.spellers[inner] = speller(inner.inv_vocab.values())
        pieces = [self.spellers[inner](inner.inv_vocab.get(number)) for number in own]
        return align_pieces(heard.text, pieces)[: len(ids)]

    def unsupported(self, why: str) -> BoxwrightError:
        """The error that names the encoder, what is wrong with it and what is supported."""
        return BoxwrightError(
            f"The text encoder {type(self.encoder).__name__} is not supported: {why}. Load one of these instead: "
            f"{SUPPORTED}."
        )


def listening_copy(inner: SDTokenizer, heard: list[Heard], absent: list[str]) -> SDTokenizer:
    """A copy of a tokenizer that notes, in the order of the groups it makes, what each group is of."""
    listener = copy.copy(inner)
    listener.tokenizer = Listening(inner.tokenizer, heard)

    def find_embedding(rest: str) -> Any:
        found = inner._try_get_embedding(rest)
        # `rest` is the name with everything after it; the last result is what of that is left over.
        name = "".join(rest.split())
        name = name[: len(name) - len("".join(found[-1].split()))]
        if found[0] is None:
            absent.append(name)
            listener.tokenizer.behind_absent = True
        else:
            heard.append(Heard(inner.embedding_identifier + name, None))
        return found

    listener._try_get_embedding = find_embedding
    return listener


def joined(heard: Sequence[Heard]) -> tuple[str, list[int]]:
    """The texts put together again, and where each begins. The host drops the space after an embedding's name, and
    older ones that before it."""
    text, starts = "", []
    for number, own in enumerate(heard):
        beside_embedding = number and (own.behind_absent or None in (own.ids, heard[number - 1].ids))
        if beside_embedding and text[-1:].isalnum() and own.text[:1].isalnum():
            text += " "
        starts.append(len(text))
        text += own.text
    return text, starts


def chunk_roles(chunk: Sequence[tuple], inner: SDTokenizer) -> list[TokenRole]:
    """What each (token, weight, group) of a chunk is. Group 0 holds all that is not of a text."""
    roles: list[TokenRole] = []
    for token, _, group in chunk:
        if group:
            roles.append("word")
        elif token == inner.start_token and "start" not in roles:
            roles.append("start")
        elif token == inner.end_token and "end" not in roles:
            roles.append("end")
        elif token == inner.pad_token:
            roles.append("padding")
        else:
            roles.append("template")
    return roles


def speller(vocabulary: Collection[str]) -> Callable[[str | None], Piece]:
    """How to read the tokens of a vocabulary for `align_pieces`: the host's are written in one of three ways."""
    known = set(vocabulary)
    if "\u2581" in known:
        return sentencepiece
    if BYTE_OF.keys() <= known:
        return partial(bytelevel, ending="</w>" if "a</w>" in known else "")  # CLIP marks the last piece of a word
    return wordpiece


def sentencepiece(piece: str | None) -> Piece:
    """T5, Llama and Gemma: a bar below stands for a space, <0x41> for a byte."""
    if piece is None or piece == "<unk>":
        return None
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ")


def bytelevel(piece: str | None, ending: str) -> Piece:
    """CLIP, Qwen, Llama 3, Mistral: every character stands for a byte."""
    if piece is None:
        return None
    piece = piece.removesuffix(ending)
    return bytes(BYTE_OF[c] for c in piece) if BYTE_OF.keys() >= set(piece) else piece


def wordpiece(piece: str | None) -> Piece:
    """BERT (Hunyuan-DiT): ## goes on with a word."""
    return None if piece in (None, "[UNK]") else piece.removeprefix("##")
