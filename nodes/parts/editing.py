"""What the editing nodes share: pictures in and out of the VAE, masks, reports. Their inputs: editing_inputs.py."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...attention_patches.core.masks import check_white, on_latent
from ...attention_patches.core.types import BoxwrightError
from ...attention_patches.samplers.diff_edit import pasted
from ...attention_patches.samplers.drawn import nothing_drawn
from .checks import rgb

CELL = 8  # pixels, where the model does not say


def one_mask(mask: Tensor) -> Tensor:
    """The one mask of a MASK [H, W] or [1, H, W], float32 [H, W]. Raises BoxwrightError for several, and for none."""
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.shape[0] != 1:
        raise BoxwrightError(f"There are {masks.shape[0]} masks; wire one, for all pictures.")
    check_white(masks)
    return masks[0].float().cpu().clamp(0.0, 1.0)


def encoded(vae: Any, image: Tensor) -> Tensor:
    """Pictures [B, H, W, C] -> latents. The VAE crops sides that are no multiple of its cell, as in VAE Encode.

    Grey pictures become colour, an alpha channel is left out. Raises BoxwrightError for pictures smaller than a cell,
    or with values that are no numbers.
    """
    cell, (height, width) = int(vae.spacial_compression_encode()), image.shape[1:3]
    if min(height, width) < cell:
        raise BoxwrightError(
            f"The image has {width} x {height} pixels; this VAE reads cells of {cell} x {cell}, and it needs at least "
            "one. Wire a larger picture."
        )
    if not bool(image.isfinite().all()):
        raise BoxwrightError("The image holds NaN or infinite values. Look at the node that made it.")
    return vae.encode(rgb(image, "image"))


def decoded(vae: Any, samples: Tensor) -> Tensor:
    """Latents -> pictures [B, H, W, 3]."""
    images = vae.decode(samples)
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def one_source(latent: dict | None, image: Tensor | None, vae: Any) -> dict[str, Any]:
    """The LATENT to work on: the one given, or the encoded image. Raises BoxwrightError unless it is one of the two."""
    if (latent is None) == (image is None):
        raise BoxwrightError(
            "Wire either latent, or image and vae: the picture to edit has to come from one of them, not "
            + ("both." if latent is not None else "from nowhere.")
        )
    if latent is not None:
        return latent
    if vae is None:
        raise BoxwrightError("The image has to be encoded: wire the vae that belongs to the model, too.")
    return {"samples": encoded(vae, image)}


def cell_of(model: Any) -> int:
    """Pixels under one latent cell, down and across."""
    return int(getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", CELL))


def in_pixels(cells: Tensor, cell: int, image: Tensor | None = None, smooth: bool = False) -> Tensor:
    """Maps [B, h, w] of latent cells -> [B, H, W] of pixels; inside `image`'s size, where the VAE has cropped it."""
    grid = cells[:, None]
    size = (cells.shape[1] * cell, cells.shape[2] * cell)
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    pixels = torch.nn.functional.interpolate(grid, size=size, **mode)[:, 0]
    return pixels if image is None else framed(pixels, image.shape[1], image.shape[2])


def framed(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [B, H, W] in the middle of `height` x `width` pixels, zeros around; larger ones are stretched to it."""
    if maps.shape[1] > height or maps.shape[2] > width:
        return torch.nn.functional.interpolate(maps[:, None], size=(height, width), mode="nearest")[:, 0]
    top, left = (height - maps.shape[1]) // 2, (width - maps.shape[2]) // 2
    out = maps.new_zeros(maps.shape[0], height, width)
    out[:, top : top + maps.shape[1], left : left + maps.shape[2]] = maps
    return out


def unframed(mask: Tensor, frame: tuple[int, int], height: int, width: int) -> Tensor:
    """The part of a MASK [H, W] or [M, H, W] under the middle `height` x `width` pixels of `frame`.

    That is what the VAE sees of a picture of size `frame`. Masks of another size than the picture are left alone.
    """
    if tuple(mask.shape[-2:]) != frame:
        return mask
    top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
    return mask[..., top : top + height, left : left + width]


def fitted(mask: Tensor, pictures: Tensor) -> Tensor:
    """A MASK of any size -> float32 [B, H, W], one of their size for each picture [B, H, W, C]."""
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.shape[1:] != pictures.shape[1:3]:
        masks = torch.nn.functional.interpolate(masks[:, None].float(), size=pictures.shape[1:3], mode="bilinear")[:, 0]
    return masks.float().to(pictures.device).expand(pictures.shape[0], -1, -1)


def edited_output(
    vae: Any,
    latent: Tensor,
    image: Tensor,
    area: Tensor | None,
    spent: list[tuple[str, int]],
    feather: int | None,
    more: str = "",
) -> io.NodeOutput:
    """The outputs of an edit of `image` [B, H, W, C] that ended in `latent`, which could change in `area` (None = all).

    `spent`: (what for, model evaluations). `feather`: pixels of transition to the picture's own; None = not pasted.
    `more` goes into the report, with a space before it.
    """
    edited = decoded(vae, latent)
    shown = torch.ones_like(edited[..., 0]) if area is None else fitted(area, edited)
    hint = hint_of_nothing(image, edited, shown)
    if feather is not None:
        edited = pasted(edited, image, shown, feather)
    total, each = sum(count for _, count in spent), ", ".join(f"{name} {count}" for name, count in spent)
    report = f"The mask covers {shares(shown)} of the picture. {cost(total, len(latent))}: {each}."
    report += f"{hint_of_black(shown)}{more}{hint}"
    return io.NodeOutput(
        edited, framed(shown, *edited.shape[1:3]), {"samples": latent}, report, ui=ui.PreviewText(report)
    )


def mask_output(
    node: type[io.ComfyNode], model: Any, found: Any, image: Tensor | None, more: str = ""
) -> io.NodeOutput:
    """Mask, heat and report of a mask that was found: `found` has heat and mask [B, h, w] and its evaluations."""
    cell = cell_of(model)
    heat = in_pixels(found.heat, cell, image, smooth=True)[..., None].expand(-1, -1, -1, 3)
    report = f"The mask covers {shares(found.mask)} of the picture. {cost(found.evaluations, len(found.mask))}{more}."
    shown = ui.PreviewImage(heat, cls=node).as_dict() | ui.PreviewText(report).as_dict()
    return io.NodeOutput(in_pixels(found.mask, cell, image), heat, report, ui=shown)


def covered_cells(mask: Tensor, image: Tensor, samples: Tensor, cell: int) -> Tensor:
    """A MASK for pictures [B, H, W, C] as the VAE sees them, whose latents are `samples`. Raises BoxwrightError."""
    height, width = (side * cell for side in samples.shape[-2:])
    area = unframed(mask, tuple(image.shape[1:3]), height, width)
    on_latent(area, samples.shape)  # refused now, not when the model has worked
    return area


def check_threshold(threshold: float) -> None:
    """Raises BoxwrightError for an edit that would look for its mask and find nothing."""
    if threshold >= 1.0:
        raise BoxwrightError(
            f"threshold is {threshold:g}: the mask is where the heat is above it, which is 1 at most, so that nothing "
            "would change. Choose less, or wire a mask."
        )


def cost(evaluations: int, pictures: int) -> str:
    """What a run costs in words, "520 model evaluations (130 for each of 4 pictures)"."""
    each = f" ({evaluations / pictures:g} for each of {pictures} pictures)" if pictures > 1 else ""
    return f"{evaluations} model evaluation{'s' if evaluations != 1 else ''}{each}"


def fewer_steps(taken: int, wanted: int) -> str:
    """A sentence, with a space before it, where an edit took fewer steps than it was asked for; "" elsewhere."""
    if taken >= wanted:
        return ""
    return (
        f" The model has {taken} noise levels for these settings, so that the edit took as many steps instead of "
        f"{wanted}."
    )


def hint_of_nothing(before: Tensor, after: Tensor, masks: Tensor) -> str:
    """A sentence, with a space before it, where an edit seems to have erased what was there and drawn nothing.

    Pictures [B, H, W, C] as the VAE makes them, `before` of any larger size; masks [B, H, W]. "" where all seems well.
    """
    height, width = after.shape[1:3]
    top, left = (before.shape[1] - height) // 2, (before.shape[2] - width) // 2
    shown = before[:, top : top + height, left : left + width]
    if shown.shape[1:3] != after.shape[1:3]:
        return ""
    empty = [number for number, none in enumerate(nothing_drawn(shown, after, masks), 1) if none]
    if not empty:
        return ""
    which = "" if len(after) == 1 else f" of picture {named(empty)}"
    return (
        f" Nothing seems to have been drawn in the mask{which}: what was there is gone, and the surroundings go on. "
        "Try another seed, more dilate, another strength or cfg, or a target prompt that names fewer things."
    )


def hint_of_black(masks: Tensor) -> str:
    """A sentence, with a space before it, that says which of several pictures stay as they are: their masks
    [M, H, W] are black. "" where none is, or all are, which is refused."""
    if masks.ndim < 3:
        return ""
    black = [number for number, mask in enumerate(masks, 1) if float(mask.max()) <= 0.0]
    if not black:
        return ""
    return f" Nothing changes in picture {named(black)}, where the mask is black."


def named(numbers: list[int]) -> str:
    """The numbers of some pictures in words, "2, 5"; at most eight are named."""
    return ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)


def shares(masks: Tensor) -> str:
    """In words, "12.5 %, 8.1 %": how much of each picture its mask covers; at most eight are named."""
    values = [f"{100 * float(mask.mean()):.1f} %" for mask in masks[:8]]
    return ", ".join(values) + (", ..." if len(masks) > 8 else "")
