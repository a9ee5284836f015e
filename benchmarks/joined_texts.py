"""Texts of several regions: an attention for each, over its own queries, or one over all keys under a mask.

    python benchmarks/joined_texts.py

Attention alone, no host: random numbers in the shapes of SD1.5 at 512x512, boxes of a fifth to half of the image's
sides, later ones on top. CPU milliseconds, the least of three.
"""

import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

GRIDS = ((64, 320), (32, 640), (16, 1280), (8, 1280))  # side, channels
HEADS, TEXT = 8, 77


def owners(side: int, regions: int, random: torch.Generator) -> torch.Tensor:
    """Which region each cell reads, -1 for none, [side * side]."""
    cells = torch.full((side, side), -1)
    for region in range(regions):
        width, height, x, y = torch.rand(4, generator=random).tolist()
        width, height = 0.2 + 0.3 * width, 0.2 + 0.3 * height
        left, top = int(x * (1 - width) * side), int(y * (1 - height) * side)
        cells[top : top + max(1, round(height * side)), left : left + max(1, round(width * side))] = region
    return cells.flatten()


def apart(q: torch.Tensor, texts: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Each text read by its own queries; [1, N, C]."""
    out = torch.zeros(1, q.shape[2], q.shape[1] * q.shape[3])
    for region in range(texts.shape[2] // TEXT):
        where = (own == region).nonzero()[:, 0]
        if len(where):
            text = texts[:, :, region * TEXT : (region + 1) * TEXT]
            part = attention(q.index_select(2, where), text, text)
            out.index_add_(1, where, part.transpose(1, 2).flatten(2))
    return out


def joined(q: torch.Tensor, texts: torch.Tensor, own: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All texts read at once by the queries of any region, under a mask."""
    out = torch.zeros(1, q.shape[2], q.shape[1] * q.shape[3])
    where = (own >= 0).nonzero()[:, 0]
    part = attention(q.index_select(2, where), texts, texts, attn_mask=mask)
    return out.index_add_(1, where, part.transpose(1, 2).flatten(2))


def mask_of(own: torch.Tensor, regions: int) -> torch.Tensor:
    """0 where a query reads its region's text, else -10000; [1, 1, queries of any region, regions * TEXT]."""
    covered = own[own >= 0]
    return torch.where(covered[:, None] == torch.arange(regions * TEXT) // TEXT, 0.0, -1e4)[None, None]


def milliseconds(run) -> float:
    run()
    times = []
    for _ in range(3):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    random = torch.Generator().manual_seed(0)
    print("| grid | regions | covered | the prompt's own attention | apart | joined |\n|---|---|---|---|---|---|")
    for side, channels in GRIDS:
        q = torch.randn(1, HEADS, side * side, channels // HEADS, generator=random)
        text = torch.randn(1, HEADS, TEXT, channels // HEADS, generator=random)
        plain = milliseconds(lambda q=q, text=text: attention(q, text, text))
        for regions in (2, 8, 16):
            own = owners(side, regions, random)
            texts = torch.randn(1, HEADS, TEXT * regions, channels // HEADS, generator=random)
            mask = mask_of(own, regions)
            torch.testing.assert_close(apart(q, texts, own), joined(q, texts, own, mask), atol=1e-4, rtol=1e-4)
            one = milliseconds(lambda q=q, texts=texts, own=own: apart(q, texts, own))
            all_at_once = milliseconds(lambda q=q, texts=texts, own=own, mask=mask: joined(q, texts, own, mask))
            share = (own >= 0).float().mean().item()
            numbers = " | ".join(f"{number:.2f}" for number in (share, plain, one, all_at_once))
            print(f"| {side}x{side} | {regions} | {numbers} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
