"""Who stands in front: regions as things of some opacity, one behind the other, as seen from the front.

LaRender (Zhan and Liu, arXiv 2508.07647) renders what each object reads like a volume: with a density d = -ln(1 -
opacity), a map M of where the object is, and T_i the product of e^(-d_j M_j) over all j in front of i,
    output = sum of T_i (1 - e^(-d_i)) M_i R_i / sum of T_i (1 - e^(-d_i)) M_i.
Here M is 1 in the region and 0 elsewhere. So e^(-d M) is 1 - opacity in the region, which holds for what is wholly
opaque (d infinite) as well. Later regions of the list are in front, as they are drawn, and behind all of them is the
prompt, opaque and everywhere.

Departures. The paper's M is the region times the object's attention map; on the test model that showed more of what is
behind beside the front object's outline, but hid less of it (docs/results.md). A cell that a region covers in part has
the mean over its points: with M between 0 and 1 an opaque region would hide all of a cell that it only touches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def occluded(cover: Tensor, opacity: Tensor) -> tuple[Tensor, Tensor]:
    """What of every cell each region has, [R, N], and what is left for what is behind all, [1, N]; 1 in sum.

    `cover`: how much of the cell a region covers, float [R, N] in 0..1. `opacity`: float [R] in 0..1.
    """
    own = cover * opacity[:, None]
    return transmittance(cover, opacity) * own, (1.0 - own).prod(dim=0, keepdim=True)


def transmittance(cover: Tensor, opacity: Tensor) -> Tensor:
    """T: what the regions in front of each one let through, [R, N] in 0..1; `cover` and `opacity` as in `occluded`."""
    from_front = torch.cumprod(torch.flip(1.0 - cover * opacity[:, None], [0]), dim=0)
    return torch.flip(torch.cat([torch.ones_like(from_front[:1]), from_front[:-1]]), [0])
