"""DiffEdit's decoding (arXiv 2210.11427, section 3.2 step 3): redraw inside the mask, follow the inverted path outside.

Departure from the published code: after each step the background is taken from the path at the noise level the picture
has then reached, not at the one before, so foreground and background always carry the same noise, and the last step
puts back the picture itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.masks import blurred
from ..core.types import BoxwrightError
from .inversion import Trajectory
from .noise import Callback, Denoiser, euler_step, falling, report


def sample_diff_edit(
    model: Denoiser,
    trajectory: Trajectory,
    mask: Tensor,
    sigmas: Tensor | Sequence[float],
    callback: Callback | None = None,
) -> Tensor:
    """The edited latents [B, C, ..., h, w] at the last of `sigmas` (falling; the first within the trajectory).

    mask: [B, 1, ..., h, w], 1 = redraw, 0 = keep; its device and dtype are those of the result.
    """
    values = falling(sigmas)
    x = trajectory.at(values[0]).to(mask)
    for i, (sigma, target) in enumerate(zip(values, values[1:])):
        clean = model(x, sigma)
        x = euler_step(x, clean, sigma, target)
        x = mask * x + (1.0 - mask) * trajectory.at(target).to(x)
        report(callback, i, x, sigma, clean)
    return x


def pasted(edited: Tensor, original: Tensor, mask: Tensor, feather: float) -> Tensor:
    """The edited picture inside the mask, the original's own pixels outside. Pictures [B, H, W, C], mask [B, H, W].

    `feather` = pixels of soft transition, inside the mask only; a grey mask mixes both. The original may be larger: the
    VAE drops what is no whole cell, evenly on both sides, and it comes back here. Raises BoxwrightError if it is
    smaller.
    """
    height, width = edited.shape[1:3]
    if original.shape[1] < height or original.shape[2] < width:
        raise BoxwrightError(
            f"The edited picture has {width} x {height} pixels, more than the original ({original.shape[2]} x "
            f"{original.shape[1]}), so its pixels cannot be put back. Switch paste off."
        )
    top, left = (original.shape[1] - height) // 2, (original.shape[2] - width) // 2
    # Of all that may change, however little: of a grey mask by itself, the half below 0.5 would be put back whole.
    ramp = (2.0 * blurred((mask > 0).float(), feather / 2) - 1.0).clamp_min(0.0)
    weight = torch.minimum(ramp, mask.float())[..., None].to(edited)  # in a notch the blur reaches outside
    channels = edited.shape[-1]  # a grey original becomes colour
    result = original[..., :channels].expand(-1, -1, -1, channels).to(edited).clone()
    inner = result[:, top : top + height, left : left + width]
    inner.copy_(torch.lerp(inner, edited, weight))
    return result
