"""Pictures of attention maps: colours over the picture, in a labelled grid. Text from users becomes pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...attention_patches.core.masks import resized, stretched
from ...attention_patches.core.types import BoxwrightError
from .checks import counted, shortened

MAX_PIXELS = 2**26  # of one grid: 64 megapixels
LABEL_LETTERS = 60
PAPER, INK = (24, 24, 24), (235, 235, 235)
MARGIN = 6  # pixels between tiles

# From cold to hot, equally spaced; lightness rises all the way, so that it reads without colours too.
HEAT = ((10, 8, 40), (62, 20, 110), (150, 35, 105), (215, 75, 55), (245, 155, 30), (252, 240, 150))


@dataclass(frozen=True)
class Tile:
    """One map of every picture, and its name."""

    label: str
    maps: Tensor  # float32 [B, h, w], any range


def heat_colors(values: Tensor) -> Tensor:
    """[..., h, w] in [0, 1] -> RGB [..., h, w, 3] in [0, 1]."""
    scale = torch.tensor(HEAT, dtype=torch.float32) / 255.0
    place = values.clamp(0.0, 1.0) * (len(HEAT) - 1)
    below = place.floor().long().clamp_max(len(HEAT) - 2)
    return torch.lerp(scale[below], scale[below + 1], (place - below)[..., None])


def overlaid(pictures: Tensor, maps: Tensor, opacity: float) -> Tensor:
    """Maps [B, h, w], each stretched to its own range, in colours over the pictures [B, H, W, 3]."""
    heat = heat_colors(stretched(resized(maps, tuple(pictures.shape[1:3]))).clamp(0.0, 1.0))
    return torch.lerp(pictures, heat, opacity)


def draw_grid(pictures: Tensor, rows: Sequence[Sequence[Tile]], opacity: float) -> Tensor:
    """One grid of labelled tiles for every picture, float32 [B, H, W, 3] in [0, 1].

    `pictures`: [B, h, w, 3] in [0, 1]; every tile has their size. Raises BoxwrightError for a grid of more than
    MAX_PIXELS pixels.
    """
    count, height, width = pictures.shape[:3]
    font = ImageFont.load_default(max(11, min(height, width) // 20))
    line = sum(font.getmetrics()) + 4
    columns = max(len(row) for row in rows)
    size = (columns * (width + MARGIN) + MARGIN, len(rows) * (height + line + MARGIN) + MARGIN)
    if size[0] * size[1] > MAX_PIXELS:
        raise BoxwrightError(
            f"The heatmaps would be {size[0]} x {size[1]} pixels ({len(rows)} rows, {columns} columns); at most "
            f"{MAX_PIXELS // 2**20} megapixels are drawn. Choose fewer phrases, or scale the pictures down."
        )
    sheets = [Image.new("RGB", size, PAPER) for _ in range(count)]
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, top = MARGIN + x * (width + MARGIN), MARGIN + y * (height + line + MARGIN)
            label = _fitted(tile.label, font, width)
            for sheet, pixels in zip(sheets, overlaid(pictures, tile.maps, opacity), strict=True):
                ImageDraw.Draw(sheet).text((left, top), label, fill=INK, font=font)
                sheet.paste(Image.fromarray((pixels * 255.0).round().to(torch.uint8).numpy()), (left, top + line))
    return torch.from_numpy(np.stack([np.asarray(sheet) for sheet in sheets]).astype(np.float32) / 255.0)


def _fitted(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    text = shortened(text, LABEL_LETTERS)
    while text and font.getlength(text) > room:
        text = text[:-1]
    return text


def pictures_of(images: Tensor, rows: int) -> Tensor:
    """IMAGE [B, H, W, C] as RGB float32 in [0, 1] on the CPU. Raises BoxwrightError where B is not `rows`."""
    if images.shape[0] != rows:
        raise BoxwrightError(
            f"images holds {counted(images.shape[0], 'picture')}, and the record is of a run with {rows}. Wire the "
            "pictures that were decoded from that run, all of them."
        )
    pixels = images[..., :3].detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(0.0, 1.0)
    return pixels.expand(-1, -1, -1, 3)
