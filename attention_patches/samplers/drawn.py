"""Whether an edit drew something, or only took away: a look at the pixels, without a model.

What stands out of its surroundings is measured by colour: the mean square distance of the pixels inside the mask from
the mean colour of a ring around it, less that of the ring's own pixels. Where the old picture had something and hardly
anything of that is left, what was there was erased and nothing came in its place. The opposite error is possible: a
small or pale thing on a busy ground may count as nothing, and a smear as something. It is a hint, no verdict.
"""

from __future__ import annotations

from torch import Tensor

from ..core.masks import dilated

RING = 1 / 16  # width of the ring, as a share of the shorter side
LEFT = 0.02  # share of the old contrast (mean square) below which nothing is there
THERE = 1e-3  # contrast, mean square of colours from 0 to 1, from which something was there before


def nothing_drawn(before: Tensor, after: Tensor, masks: Tensor) -> list[bool]:
    """For each picture whether the edit seems to have erased what was inside its mask and drawn nothing.

    Pictures [B, H, W, C] of one size, masks [B, H, W]. False where the mask has no inside or no surroundings, and where
    there was nothing before.
    """
    return [_erased(*row) for row in zip(before.float(), after.float(), masks.float(), strict=True)]


def _erased(before: Tensor, after: Tensor, mask: Tensor) -> bool:
    inside = mask > 0.5
    reach = max(1, round(RING * min(mask.shape)))
    ring = (dilated(inside.float()[None], reach)[0] > 0.5) & (mask <= 0.0)
    if not bool(inside.any()) or not bool(ring.any()):
        return False
    old = _contrast(before, inside, ring)
    return old > THERE and _contrast(after, inside, ring) < LEFT * old


def _contrast(picture: Tensor, inside: Tensor, ring: Tensor) -> float:
    """How much the inside stands out of the ring."""
    ground = picture[ring].mean(0)
    spread, own = ((picture[part] - ground).pow(2).mean() for part in (ring, inside))
    return float((own - spread).clamp_min(0.0))
