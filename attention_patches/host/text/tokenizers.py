"""A CLIP object and a prompt -> what each column of the conditioning stands for. The only place that tokenises.

No tokenizer of the host is imitated here. The host tokenises on a copy of the CLIP object whose vocabularies report
every text they are given, and what they report is what the encoder reads. Two things are checked each time: the copy
gives the tokens that the CLIP object gives, and the tokens make up exactly the columns of the conditioning. What cannot
be established is refused.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.sd1_clip
import torch
from comfy.sd1_clip import SDTokenizer, escape_important, unescape_important

from ...core.marks import EMPHASIS, escaped, is_balanced, notes_on, without_orders
from ...core.tokens import Piece, Span, align_pieces, find_occurrences, not_found, region_columns
from ...core.types import MAX_PHRASE, BoxwrightError, EncodedText, Layout, Region, TokenMap, TokenRole

LAYOUT_KEY = "boxwright_layout"  # in every entry of the conditioning: the key of the layout it was encoded with
MAX_PROMPT = 100_000  # characters
PROBE = "boxwright"  # a prompt that no template contains

# Encoders that read several token streams and put one of them into the conditioning: host class -> key of the stream.
# An SD1ClipModel names its stream itself.
ONE_STREAM = {
    "FluxClipModel": "t5xxl",
    "HiDreamTEModel": "t5xxl",
    "HunyuanVideoClipModel": "llama",
    "HyditModel": "hydit_clip",
}
# Encoders that leave the template before the prompt out of the conditioning, and nothing else.
STRIPS_TEMPLATE = {
    "HunyuanVideoClipModel",
    "JoyImageTEModel",
    "Krea2TEModel",
    "MageFlowTEModel",
    "OvisTEModel",
    "QwenImageTEModel",
}
# Encoders whose conditioning is not what the model's image tokens attend to.
REFUSED = {"AnimaTEModel": "its model attends to the tokens of a second tokenizer instead of the conditioning"}
SUPPORTED = (
    "CLIP-L, CLIP-H, CLIP-G and pairs of them, SD3, Flux, HiDream, Hunyuan-DiT and HunyuanVideo encoders, and any "
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


@dataclass(frozen=True)
class Phrase:
    """A region's phrase."""

    prompt: str  # what is encoded for it
    text: str  # what the encoder reads of that: emphasis marks and escapes removed


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

    def __call__(self, text: str, *args, **kwargs):
        out = self.vocabulary(text, *args, **kwargs)
        self.heard.append(Heard(text, tuple(out["input_ids"])))
        return out

    def __getattr__(self, name: str):
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
        for heard in (*self.heard.values(), self.absent):
            heard.clear()
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

    def find_embedding(rest: str):
        found = inner._try_get_embedding(rest)
        # `rest` is the name with everything after it; the last result is what of that is left over.
        name = "".join(rest.split())
        name = name[: len(name) - len("".join(found[-1].split()))]
        if found[0] is None:
            absent.append(name)
        else:
            heard.append(Heard(inner.embedding_identifier + name, None))
        return found

    listener._try_get_embedding = find_embedding
    return listener


def joined(heard: Sequence[Heard]) -> tuple[str, list[int]]:
    """The texts put together again, and where each begins. The host drops the space after an embedding's name."""
    text, starts = "", []
    for number, own in enumerate(heard):
        beside_embedding = number and None in (own.ids, heard[number - 1].ids)
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
    if piece is None or piece == "<unk>":
        return None
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ")


def bytelevel(piece: str | None, ending: str) -> Piece:
    if piece is None:
        return None
    piece = piece.removesuffix(ending)
    return bytes(BYTE_OF[c] for c in piece) if BYTE_OF.keys() >= set(piece) else piece


def wordpiece(piece: str | None) -> Piece:
    return None if piece in (None, "[UNK]") else piece.removeprefix("##")


# --- from streams to columns ------------------------------------------------------------------------------------------


def column_streams(reader: PromptReader) -> list[tuple[str, ...]]:
    """The token streams along the text axis of the conditioning, in order; streams in one tuple share their columns."""
    encoder = reader.encoder
    names = [parent.__name__ for parent in type(encoder).__mro__]
    for name in names:
        if name in REFUSED:
            raise reader.unsupported(REFUSED[name])
        if name in ONE_STREAM:
            key = ONE_STREAM[name]
            if getattr(encoder, key) is None:
                raise reader.unsupported(f'it was loaded without its "{key}" part')
            return [(key,)]
    if isinstance(encoder, comfy.sd1_clip.SD1ClipModel):
        return [(encoder.clip_name,)]
    if "SDXLClipModel" in names:
        return [("l", "g")]
    if "SD3ClipModel" in names:
        pair = tuple(key for key in ("l", "g") if getattr(encoder, f"clip_{key}") is not None)
        streams = [keys for keys in (pair, ("t5xxl",) if encoder.t5xxl is not None else ()) if keys]
        if streams:
            return streams
    raise reader.unsupported("how its tokens become conditioning is not known")


def token_map(reader: PromptReader, prompt: str, tokens: dict[str, list], columns: int) -> TokenMap:
    """What each of the `columns` of the conditioning stands for. `tokens` are the ones that were encoded."""
    text, spans, roles, filled_with_end = None, [], [], False
    for keys in column_streams(reader):
        streams = [reader.read(prompt, key) for key in keys]
        for key, stream in zip(keys, streams, strict=True):
            check_same_tokens(reader, key, stream, tokens)
            check_embeddings(reader, key, stream)
        length = min(len(stream.ids) for stream in streams)  # the host cuts a pair to the shorter
        if len({(stream.text, stream.spans[:length], stream.roles[:length]) for stream in streams}) > 1:
            raise BoxwrightError(
                "The two CLIP encoders place the prompt's words in different columns, because an embedding has another "
                "number of vectors in each or one encoder takes longer texts; remove the embedding, or shorten the "
                "prompt."
            )
        if text not in (None, streams[0].text):
            raise reader.unsupported("its tokenizers read different texts")
        text = streams[0].text
        spans += streams[0].spans[:length]
        roles += streams[0].roles[:length]
        filled_with_end |= any(stream.filled_with_end for stream in streams)
    dropped = len(spans) - columns
    names = {parent.__name__ for parent in type(reader.encoder).__mro__}
    if dropped and (dropped < 0 or not names & STRIPS_TEMPLATE or "word" in roles[:dropped]):
        raise reader.unsupported(f"its conditioning has {columns} columns for {len(spans)} tokens")
    return TokenMap(text, tuple(spans[dropped:]), tuple(roles[dropped:]), filled_with_end)


def check_same_tokens(reader: PromptReader, key: str, stream: Stream, tokens: dict[str, list]) -> None:
    """Refuses where the listening copy did not give the tokens that were encoded."""
    encoded = [token[0] for chunk in tokens[key] for token in chunk]
    same = len(encoded) == len(stream.ids) and all(
        torch.is_tensor(a) == torch.is_tensor(b) and (torch.equal(a, b) if torch.is_tensor(a) else a == b)
        for a, b in zip(encoded, stream.ids, strict=True)
    )
    if not same:
        raise reader.unsupported("its tokenizer gives other tokens the second time")


def check_embeddings(reader: PromptReader, key: str, stream: Stream) -> None:
    """Refuses textual inversions of another width: the host leaves them out and moves all later words to the left."""
    vectors = [(token, span) for token, span in zip(stream.ids, stream.spans, strict=True) if torch.is_tensor(token)]
    if not vectors:
        return
    module = getattr(reader.encoder, key, None) or getattr(reader.encoder, f"clip_{key}")
    width = module.transformer.get_input_embeddings().embedding_dim
    for vector, (a, b) in vectors:
        if vector.shape[-1] != width:
            raise BoxwrightError(
                f'"{stream.text[a:b]}" has {vector.shape[-1]} values per token and the text encoder "{key}" takes '
                f"{width}; remove it from the prompt, or use an embedding made for this model."
            )


# --- what nodes call --------------------------------------------------------------------------------------------------


def encode(clip: Any, text: str) -> tuple[EncodedText, list]:
    """The prompt encoded as the stock CLIPTextEncode node does, and its conditioning.

    The conditioning has one entry, or several where hooks schedule the encoder; the embedding is the first one's.
    """
    encoded, conditioning, _ = encode_with(PromptReader(clip), text)
    return encoded, conditioning


def layout(clip: Any, prompt: str, regions: Sequence[Region], append_missing: bool) -> tuple[list, Layout]:
    """The conditioning of the prompt and the layout that belongs to it, tied together by the layout's key.

    Phrases are read as prompts of their own, emphasis and all, and found in the prompt without it. A phrase that the
    prompt lacks is appended to it, or raises PhraseNotFoundError if `append_missing` is false.
    """
    regions = tuple(regions)
    reader = PromptReader(clip)
    plain, phrases, missing = compare(reader, prompt, [region.phrase for region in regions])
    if missing and not append_missing:
        raise not_found(plain, missing[0].text, "change the region's phrase, or switch append_missing on")
    encoded, conditioning, key = encode_with(reader, with_phrases(prompt, missing))
    columns = region_columns(encoded.tokens, [phrase.text for phrase in phrases])
    alone = {phrase: encode_with(reader, phrase.prompt)[0] for phrase in dict.fromkeys(phrases)}
    texts = tuple(alone[phrase] for phrase in phrases)
    negatives = [without_orders(region.extra.get("negative") or "")[0] for region in regions]
    opposed = {text: encode_with(reader, text)[0] for text in dict.fromkeys(negatives) if text}
    against = tuple(opposed.get(negative) for negative in negatives)
    key = hashlib.sha256(f"{key}{regions_digest(regions)}".encode()).hexdigest()
    positive = [[c, {**d, LAYOUT_KEY: key}] for c, d in conditioning]
    return positive, Layout(encoded, regions, columns, texts, key, against if any(against) else ())


def regions_digest(regions: Sequence[Region]) -> str:
    """SHA-256 of the regions: with the same prompt, other boxes make another layout."""
    digest = hashlib.sha256()
    for region in regions:
        painted = torch.is_tensor(region.area)
        area = region.area.detach().float().cpu().numpy().tobytes() if painted else repr(region.area).encode()
        own = [region.extra.get(name) for name in ("start", "end", "feather", "negative")]
        digest.update(f"{region.phrase}\0{region.strength!r}\0{own!r}\0".encode() + area)
    return digest.hexdigest()


def encode_with(reader: PromptReader, text: str) -> tuple[EncodedText, list, str]:
    """As `encode`, with the key of the tokens."""
    check_text(text, "prompt", MAX_PROMPT)
    tokens = reader.clip.tokenize(text)
    conditioning = reader.clip.encode_from_tokens_scheduled(tokens)
    shapes = {tuple(entry[0].shape) for entry in conditioning}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise reader.unsupported(f"its conditioning has the shapes {sorted(shapes)}, not one [1, tokens, channels]")
    embedding = conditioning[0][0]
    read = token_map(reader, text, tokens, embedding.shape[1])
    return EncodedText(read, embedding), conditioning, tokens_key(tokens, read.text)


def missing_phrases(clip: Any, prompt: str, regions: Sequence[Region]) -> list[str]:
    """The phrases that `layout` appends to the prompt: those that it lacks, in order, each once."""
    return [phrase.prompt for phrase in compare(PromptReader(clip), prompt, [region.phrase for region in regions])[2]]


def compare(reader: PromptReader, prompt: str, phrases: Sequence[str]) -> tuple[str, list[Phrase], list[Phrase]]:
    """The prompt as the encoder reads it, the phrases, and those it lacks; none of these is part of one before it."""
    check_phrases(phrases)
    check_text(prompt, "prompt", MAX_PROMPT)
    key = column_streams(reader)[0][0]
    so_far = reader.read(prompt, key).text
    plain, read, missing = so_far, [], []
    for number, phrase in enumerate(phrases, 1):
        found = read_phrase(reader, key, so_far, phrase, number)
        read.append(found)
        if not find_occurrences(so_far, found.text):
            missing.append(found)
            so_far = f"{so_far}, {found.text}"
    return plain, read, missing


def read_phrase(reader: PromptReader, key: str, prompt: str, phrase: str, number: int) -> Phrase:
    """The phrase of region `number` as the encoder reads it; literally where that stands in the prompt as it was read.

    Raises BoxwrightError for a phrase of which the encoder reads nothing, or with an embedding that does not exist.
    """
    asked = without_orders(phrase.strip())[0]
    if find_occurrences(prompt, asked):
        return Phrase(escaped(asked), asked)
    text = reader.read(asked, key).text.strip()
    if reader.absent:
        raise BoxwrightError(
            f'The phrase of region {number}, "{phrase}", names the embedding "{reader.absent[0]}", and there is none, '
            "so that the text encoder would leave it out. Put its file into models/embeddings, or change the phrase."
        )
    if not text:
        raise BoxwrightError(
            f'The text encoder finds no words in the phrase of region {number}, "{phrase}"; say what belongs there.'
        )
    return Phrase(asked, text)


def with_phrases(prompt: str, phrases: Sequence[Phrase]) -> str:
    """The prompt with the phrases appended after commas; emphasis as written, where no parenthesis stands alone."""
    start = prompt.rstrip().removesuffix(",") if phrases else prompt
    whole = all(is_balanced(text) for text in (prompt, *(phrase.prompt for phrase in phrases)))
    added = [phrase.prompt if whole else escaped(phrase.text) for phrase in phrases]
    return ", ".join([*([start] if start or not phrases else []), *added])


def text_notes(clip: Any, texts: Sequence[tuple[str, str]]) -> list[str]:
    """What of these (name, text) is not drawn, or not as it may be meant, a sentence each."""
    reader = PromptReader(clip)
    key = column_streams(reader)[0][0]
    notes = []
    for name, text in texts:
        notes += notes_on(name, text)
        kept = without_orders(text)[0]
        read = reader.read(kept, key).text
        notes += [
            f'{name}: there is no embedding "{absent}", so that it is left out. Put its file into models/embeddings.'
            for absent in dict.fromkeys(reader.absent)
        ]
        notes += [
            f"{name}: this text encoder knows no emphasis and reads {mark} as text."
            for mark in dict.fromkeys(EMPHASIS.findall(kept))
            if mark in read
        ]
    return notes


def tokens_key(tokens: dict[str, list], text: str) -> str:
    """SHA-256 of the text and of the ids and weights of every token stream: same tokens, same key."""
    digest = hashlib.sha256(text.encode("utf-8"))
    for key in sorted(tokens):
        for chunk in tokens[key]:
            digest.update(f"\0{key}\0".encode())
            for token, weight, *_ in chunk:
                name = token.detach().float().cpu().numpy().tobytes() if torch.is_tensor(token) else str(token).encode()
                digest.update(name + f" {weight!r}\0".encode())
    return digest.hexdigest()


def check_phrases(phrases: Sequence[str]) -> None:
    """Refuses a region without a phrase, naming its number."""
    for number, phrase in enumerate(phrases, 1):
        if not without_orders(phrase)[0].strip():
            raise BoxwrightError(f"Region {number} has no phrase; say what belongs there.")
        check_text(phrase, f"phrase of region {number}", MAX_PHRASE)


def check_text(text: str, name: str, limit: int) -> None:
    """Refuses text that is too long or that no tokenizer can read."""
    if len(text) > limit:
        raise BoxwrightError(f"The {name} has {len(text)} characters; the limit is {limit}, so shorten it.")
    broken = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if broken or "\0" in text:
        raise BoxwrightError(f"The {name} holds {broken or chr(0)!r}, which is not a character of a text; remove it.")
