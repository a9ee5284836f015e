"""Which shape a found object has: the icon that covers the same pixels best."""

import numpy as np
import torch

from .scenes import SHAPES
from .scorer import box_of

SIDE = 48  # pixels of the square in which shapes are compared
EXTENT = 1.3  # icons reach to about 1 in (u, v)


def shape_of(mask):
    """The name in `scenes.SHAPES` whose icon, stretched to the box of the bool [height, width] mask, fits it best."""
    own = _in_box(np.asarray(mask))
    return max(_ICONS, key=lambda name: _overlap(own, _ICONS[name]))


def _in_box(mask):
    """The content of the mask's tight box at SIDE x SIDE, bool."""
    x, y, width, height = box_of(mask)
    rows = ((y + height * (np.arange(SIDE) + 0.5) / SIDE) * mask.shape[0]).astype(int)
    columns = ((x + width * (np.arange(SIDE) + 0.5) / SIDE) * mask.shape[1]).astype(int)
    return mask[rows[:, None], columns[None, :]]


def _overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def _icon(field):
    axis = (torch.arange(8 * SIDE) + 0.5) / (4 * SIDE) * EXTENT - EXTENT
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    return _in_box((field(u, v) < 0).numpy())


_ICONS = {name: _icon(field) for name, field in SHAPES.items()}
