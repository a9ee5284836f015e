"""Who stands in front: regions as things of some opacity, one behind the other, as seen from the front.

LaRender (Zhan and Liu, arXiv 2508.07647) renders what each object reads like a volume: with a density d = -ln(1 -
opacity), a map M of where the object is, and T_i the product of e^(-d_j M_j) over all j in front of i,
    output = sum of T_i (1 - e^(-d_i)) M_i R_i / sum of T_i (1 - e^(-d_i)) M_i.
Here e^(-d M) is written (1 - opacity)^M, with 0^0 = 1, so that what is wholly opaque (d infinite) hides all where it
is, and nothing where it is not. Later regions of the list are in front, as they are drawn.

Departures. M is a map on the part of a cell that the region covers, and the formula is averaged over the cell: by
itself it would let an opaque region hide all of a cell that it only touches, and make feathers hard. The prompt is what
is behind everything, opaque and everywhere, but seen where no region is, and not where a region's map is low.
"""

from __future__ import annotations

import torch
from torch import Tensor


def occluded(cover: Tensor, opacity: Tensor, maps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What of every cell each region has, [..., R, N], and what is left for what lies behind all, [..., 1, N].

    `cover`: how much of the cell a region covers, float [R, N] in 0..1. `opacity`: float [R] in 0..1. `maps`: how much
    the object of a region is there, float [..., R, N] in 0..1; None = wherever its region is. The two sum to 1.
    """
    opacity = opacity[:, None]
    maps = torch.ones_like(cover) if maps is None else maps
    rest = (1.0 - cover * opacity).prod(dim=-2, keepdim=True)
    weights = unhidden(cover, opacity, maps) * cover * opacity * maps
    total = weights.sum(dim=-2, keepdim=True)
    nobody = total <= 0  # where all maps are 0: as without maps
    if bool(nobody.any()):
        plain = unhidden(cover, opacity, torch.ones_like(cover)) * cover * opacity
        weights = torch.where(nobody, plain, weights)
        total = torch.where(nobody, plain.sum(dim=-2, keepdim=True), total)
    return (1.0 - rest) * weights / total.clamp_min(torch.finfo(total.dtype).tiny), rest


def unhidden(cover: Tensor, opacity: Tensor, maps: Tensor) -> Tensor:
    """T: what the regions in front of each one let through, [..., R, N]; shapes as in `occluded`, opacity [R, 1]."""
    through = 1.0 - cover * (1.0 - (1.0 - opacity) ** maps)
    from_front = torch.cumprod(torch.flip(through, [-2]), dim=-2)
    return torch.flip(torch.cat([torch.ones_like(from_front[..., :1, :]), from_front[..., :-1, :]], dim=-2), [-2])
