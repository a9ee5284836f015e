"""A prompt encoded: its conditioning, and what each column of that stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.sd1_clip
import torch

from ...core.marks import EMPHASIS, notes_on, without_orders
from ...core.tokens import Span
from ...core.types import BoxwrightError, EncodedText, TokenMap, TokenRole
from .reader import PromptReader, Stream

MAX_PROMPT = 100_000  # characters

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
# Encoders of whose streams the model reads some beside the conditioning: its blocks see one after the other behind it.
# HiDream-I1 shows every block what the last layer of its language model says, and another layer's.
READ_BESIDE = {"HiDreamTEModel": ("llama", "llama")}
# Encoders whose conditioning the model turns into columns of another stream's tokens before image tokens read it, and
# how many columns it makes at least.
TURNED_INTO = {"AnimaTEModel": ("t5xxl", 512)}


def encode(clip: Any, text: str) -> tuple[EncodedText, list]:
    """The prompt encoded as the stock CLIPTextEncode node does, and its conditioning.

    The conditioning has one entry, or several where hooks schedule the encoder; the embedding is the first one's.
    """
    encoded, conditioning, _ = encode_with(PromptReader(clip), text)
    return encoded, conditioning


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


def column_streams(reader: PromptReader) -> list[tuple[str, ...]]:
    """The token streams along the text axis of the conditioning, in order; streams in one tuple share their columns."""
    encoder = reader.encoder
    names = [parent.__name__ for parent in type(encoder).__mro__]
    for name in names:
        if name in TURNED_INTO:
            return [TURNED_INTO[name][:1]]
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
    """What each column of text stands for that image tokens read. `tokens` are the ones that were encoded.

    These are the `columns` of the conditioning, but for models that read more (READ_BESIDE) or others (TURNED_INTO).
    """
    names = [parent.__name__ for parent in type(reader.encoder).__mro__]
    map_ = columns_of(reader, prompt, tokens, column_streams(reader))
    made = next((TURNED_INTO[name][1] for name in names if name in TURNED_INTO), None)
    if made is not None:
        map_ = followed(map_, max(0, made - len(map_)), "padding")
    else:
        dropped = len(map_) - columns
        stripped = STRIPS_TEMPLATE & {*names} and "word" not in map_.roles[: max(0, dropped)]
        if dropped and (dropped < 0 or not stripped):
            raise reader.unsupported(f"its conditioning has {columns} columns for {len(map_)} tokens")
        map_ = replace(map_, spans=map_.spans[dropped:], roles=map_.roles[dropped:])
    for key in (key for name in names for key in READ_BESIDE.get(name, ())):
        if getattr(reader.encoder, key) is None:
            map_ = followed(map_, 1, "template")  # the host puts zeros there
            continue
        more = columns_of(reader, prompt, tokens, [(key,)])
        if more.text != map_.text:
            raise reader.unsupported("its tokenizers read different texts")
        map_ = replace(map_, spans=map_.spans + more.spans, roles=map_.roles + more.roles)
    return map_


def followed(tokens: TokenMap, count: int, role: TokenRole) -> TokenMap:
    """The map with `count` columns behind it that stand for no words."""
    return replace(tokens, spans=tokens.spans + (None,) * count, roles=tokens.roles + (role,) * count)


def columns_of(
    reader: PromptReader, prompt: str, tokens: dict[str, list], groups: Sequence[tuple[str, ...]]
) -> TokenMap:
    """What token streams stand for, one group behind the other; those of a group share their columns."""
    text, filled_with_end = None, False
    spans: list[Span | None] = []
    roles: list[TokenRole] = []
    for keys in groups:
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
    return TokenMap(text or "", tuple(spans), tuple(roles), filled_with_end)


def check_same_tokens(reader: PromptReader, key: str, stream: Stream, tokens: dict[str, list]) -> None:
    """Refuses where the listening copy did not give the tokens that were encoded."""
    encoded = [token[0] for chunk in tokens[key] for token in chunk]
    same = len(encoded) == len(stream.ids) and all(
        torch.is_tensor(a) == torch.is_tensor(b) and (torch.equal(a, b) if torch.is_tensor(a) else a == b)
        for a, b in zip(encoded, stream.ids, strict=True)
    )
    if not same:
        raise reader.unsupported("its tokenizer gives other tokens the second time")


def _characters(stream: Stream, span: Span | None) -> str:
    return stream.text[slice(*span)] if span else ""


def check_embeddings(reader: PromptReader, key: str, stream: Stream) -> None:
    """Refuses textual inversions of another width: the host leaves them out and moves all later words to the left."""
    vectors: list[tuple[Any, Span | None]]
    vectors = [(token, span) for token, span in zip(stream.ids, stream.spans, strict=True) if torch.is_tensor(token)]
    if not vectors:
        return
    module = getattr(reader.encoder, key, None) or getattr(reader.encoder, f"clip_{key}", None)
    if module is None:
        name = _characters(stream, vectors[0][1])
        raise BoxwrightError(f'This text encoder reads no embeddings: remove "{name}" from the prompt.')
    width = module.transformer.get_input_embeddings().embedding_dim
    for vector, span in vectors:
        if vector.shape[-1] != width:
            raise BoxwrightError(
                f'"{_characters(stream, span)}" has {vector.shape[-1]} values per token and the text encoder "{key}" '
                f"takes {width}; remove it from the prompt, or use an embedding made for this model."
            )


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


def check_text(text: str, name: str, limit: int) -> None:
    """Refuses text that is too long or that no tokenizer can read."""
    if len(text) > limit:
        raise BoxwrightError(f"The {name} has {len(text)} characters; the limit is {limit}, so shorten it.")
    broken = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if broken or "\0" in text:
        raise BoxwrightError(f"The {name} holds {broken or chr(0)!r}, which is not a character of a text; remove it.")
