"""Attention by the book, and sites made by hand, for the tests of the methods."""

import torch
from pack.attention_patches.core.seam import AttentionSite
from pack.attention_patches.core.types import Box, EncodedText, Layout, Region, TokenMap, View


def attention(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return scores.double().softmax(-1) @ values.double()


def encoded(words: list[str], length: int = 16) -> EncodedText:
    spans, start = [None], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    rest = length - len(words) - 1
    roles = ("start", *["word"] * len(words), "end", *["padding"] * (rest - 1))
    tokens = TokenMap(" ".join(words), (*spans, *[None] * rest), roles)
    embedding = torch.arange(length * 4.0).view(1, length, 4) + 1000 * len(words)
    return EncodedText(tokens, embedding)


def layout(areas: list, owned: list[list[int]], words: list[str], length: int = 16, strengths=None) -> Layout:
    prompt = encoded(words, length)
    columns = torch.zeros(len(areas), length, dtype=torch.bool)
    for row, own in enumerate(owned):
        columns[row, own] = True
    strengths = strengths or [1.0] * len(areas)
    phrases = [" ".join(words[i - 1] for i in own) for own in owned]
    regions = tuple(Region(p, a, s) for p, a, s in zip(phrases, areas, strengths, strict=True))
    texts = tuple(encoded(phrase.split(), length) for phrase in phrases)
    return Layout(prompt, regions, columns, texts, "key")


def site(layout: Layout, grid=(4, 4), view=View(), level=0, levels=1, queries=None) -> AttentionSite:
    queries = queries or slice(0, grid[0] * grid[1])
    return AttentionSite("image_text", "input.1.0", grid, view, level, levels, queries, 0.0, layout)


LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 1.0)
