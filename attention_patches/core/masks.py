"""Masks on a grid of latent cells: blur, dilate, close, keep the largest patch; and masks from maps, by a threshold.

Masks are float [B, h, w] in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .grids import coverage
from .types import BoxwrightError, counted

MAX_RADIUS = 64  # cells
ROUNDING = 1e-3  # by which resizing may take a mask past 0 and 1


def blurred(maps: Tensor, radius: float) -> Tensor:
    """Gaussian blur with a standard deviation of `radius` cells; edges repeat. 0 = unchanged."""
    if radius <= 0:
        return maps
    reach = max(1, math.ceil(3 * radius))
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype) ** 2) / (2 * radius**2))
    weights = weights / weights.sum()
    out = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(out, weights[None, None, None, :]), weights[None, None, :, None])[:, 0]


def dilated(masks: Tensor, radius: float) -> Tensor:
    """Grown by `radius` cells in every direction (a disc); soft masks take the greatest value within reach."""
    if radius <= 0:
        return masks
    reach = math.floor(radius)
    offsets = [
        (dy, dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if 0 < dy * dy + dx * dx <= radius * radius
    ]
    height, width = masks.shape[-2:]
    padded = F.pad(masks, (reach,) * 4)
    out = masks
    for dy, dx in offsets:
        out = torch.maximum(out, padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width])
    return out


def closed(masks: Tensor, radius: float) -> Tensor:
    """Gaps and notches up to twice `radius` cells wide are filled; the outline elsewhere stays, at the edges too."""
    if radius <= 0:
        return masks
    margin = math.ceil(radius)  # what lies outside the image is no mask
    grown = dilated(F.pad(masks, (margin,) * 4), radius)
    return (1.0 - dilated(1.0 - grown, radius))[..., margin:-margin, margin:-margin]


def largest_patch(masks: Tensor) -> Tensor:
    """Only the largest connected patch of each mask (cells above 0.5; corners connect)."""
    return torch.stack([_largest(mask) for mask in masks])


def _largest(mask: Tensor) -> Tensor:
    inside = mask > 0.5
    if not bool(inside.any()):
        return mask
    number = torch.arange(1, mask.numel() + 1, device=mask.device, dtype=torch.float64).view(mask.shape)
    labels = torch.where(inside, number, 0.0)
    while True:  # the highest number of a patch spreads over it
        spread = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0]
        spread = torch.where(inside, spread, 0.0)
        if torch.equal(spread, labels):
            break
        labels = spread
    names, counts = labels[inside].unique(return_counts=True)
    return torch.where(labels == names[counts.argmax()], mask, 0.0)


def on_latent(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """MASK [H, W] or [M, H, W] of any size -> float32 [B, 1, (1,) h, w] on the grid of latents of `shape`.

    Exact area averages. M must be 1 or the batch. Raises BoxwrightError for another count, for values outside 0 to 1,
    and where all of it is black: nothing would come of the run.
    """
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.ndim != 3 or masks.shape[0] not in (1, shape[0]) or 0 in masks.shape:
        raise BoxwrightError(
            f"The mask has the shape {tuple(mask.shape)} for {counted(shape[0], 'picture')}; wire one mask, or one for "
            "each."
        )
    check_white(masks)
    cells = torch.stack([coverage(one, (shape[-2], shape[-1])) for one in masks])
    return cells.expand(shape[0], -1, -1).reshape(shape[0], *([1] * (len(shape) - 3)), *shape[-2:])


def check_mask(mask: Tensor) -> None:
    """Raises BoxwrightError unless all values lie between 0 and 1."""
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):
        raise BoxwrightError(
            f"The mask has values from {low:g} to {high:g}; those of a mask are numbers from 0 to 1. Look at the node "
            "that made it."
        )


def check_white(mask: Tensor, name: str = "mask") -> None:
    """`check_mask`, and raises BoxwrightError where nothing is chosen; `name` is how the mask's user knows it."""
    if mask.numel():
        check_mask(mask)
    if not bool((mask > 0.0).any()):
        raise BoxwrightError(
            f"The {name} is empty: nothing in it is white, and nothing changes where it is black. Paint something, or "
            "leave it out."
        )


def otsu_threshold(values: Tensor) -> float:
    """The value that best parts `values` (any shape) in two: the greatest variance between the classes (Otsu, 1979).

    Exact: every value is tried as the border, and the middle between it and the next one returned. Equal values: that
    value.
    """
    ordered = values.flatten().double().sort().values
    count = len(ordered)
    below = torch.arange(1, count, dtype=torch.float64)
    sums = ordered.cumsum(0)
    mean_below, mean_above = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (mean_above - mean_below) ** 2
    if count < 2 or float(between.max()) <= 0:
        return float(ordered[0])
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def stretched(image: Tensor) -> Tensor:
    """Each picture of [..., h, w] scaled to the range 0 to 1; a flat one is 0."""
    low, high = image.amin(dim=(-2, -1), keepdim=True), image.amax(dim=(-2, -1), keepdim=True)
    return (image - low) / (high - low).clamp_min(1e-12)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] at another size."""
    return F.interpolate(image.unsqueeze(1), size=size, mode="bilinear", align_corners=False)[:, 0]


def mask_of(image: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] -> float32 masks [B, *size]: 1 where the stretched map exceeds the threshold; 0 = Otsu's."""
    image = stretched(image)
    limits = [threshold or otsu_threshold(single) for single in image]
    return (resized(image, size) > image.new_tensor(limits)[:, None, None]).float()
