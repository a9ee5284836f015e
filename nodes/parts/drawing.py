"""The picture of a layout: numbered, coloured, labelled areas. Phrases are untrusted and become pixels only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import shortened

MIN_SIDE, MAX_SIDE = 64, 4096  # pixels of the picture
FILL = 0.45  # opacity of an area
PAPER = (38, 38, 38)  # where no background is given
LABEL_LETTERS = 60

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom lie outside

# Okabe & Ito, "Color Universal Design" (2008), without black: told apart with every common colour blindness.
OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Further rounds through the palette: towards white (positive) or black (negative), by this share.
TINTS = (0.0, 0.45, -0.3, 0.7, -0.5, 0.6, -0.2, -0.4, -0.1, -0.6)


def draw_layout(regions: Sequence[Region], width: int, height: int, background: Tensor | None = None) -> Tensor:
    """The regions drawn over `background`, float32 [1, height, width, 3] in [0, 1].

    `background`: images [B, H, W, C] in [0, 1]; the first is stretched to `width` x `height` pixels. None = dark grey.
    Later regions lie on top of earlier ones; every label lies on top of every region. Raises BoxwrightError.
    """
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise BoxwrightError(
            f"The preview cannot be {width} x {height} pixels; choose a width and height from {MIN_SIDE} to {MAX_SIDE}."
        )
    picture = _paper(width, height, background)
    frames = [_draw_area(picture, region.area, _own_color(region, index)) for index, region in enumerate(regions)]
    _draw_labels(picture, regions, frames)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def preview_size(width: int, height: int) -> tuple[int, int]:
    """The picture's size, made smaller in proportion where it is more than a preview may have."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def region_color(index: int) -> Color:
    """RGB of region `index` (from 0); 64 and more distinct colours, the first seven told apart by everyone."""
    tint = TINTS[index // len(OKABE_ITO) % len(TINTS)]
    goal = 255 if tint > 0 else 0
    red, green, blue = (
        math.floor(part + (goal - part) * abs(tint) + 0.5)  # the editor rounds halves up
        for part in OKABE_ITO[index % len(OKABE_ITO)]
    )
    return red, green, blue


def _own_color(region: Region, index: int) -> Color:
    """The colour that the region asks for, else that of its index."""
    if not region.color:
        return region_color(index)
    red, green, blue = bytes.fromhex(region.color[1:])
    return red, green, blue


def _paper(width: int, height: int, background: Tensor | None) -> Image.Image:
    if background is None:
        return Image.new("RGB", (width, height), PAPER)
    pixels = background[0, ..., :3].detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(0.0, 1.0)
    pixels = pixels.expand(-1, -1, 3)  # grey images have one channel
    image = Image.fromarray((pixels * 255.0).round().to(torch.uint8).numpy())
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _draw_area(picture: Image.Image, area: Box | Tensor, color: Color) -> Rectangle:
    """Fill one area; returns the rectangle in which its label belongs."""
    if isinstance(area, Box):
        return _draw_box(picture, area, color)
    return _draw_mask(picture, area, color)


def _draw_box(picture: Image.Image, box: Box, color: Color) -> Rectangle:
    left, top = round(box.x * picture.width), round(box.y * picture.height)
    right = max(left + 1, round((box.x + box.width) * picture.width))
    bottom = max(top + 1, round((box.y + box.height) * picture.height))
    frame = (left, top, right, bottom)
    picture.paste(color, frame, Image.new("L", (right - left, bottom - top), round(255 * FILL)))
    line = max(2, min(picture.size) // 200)
    draw = ImageDraw.Draw(picture)
    # A dark line around the coloured one: the outline must show on a background of its own colour too.
    draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=line + 1)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=line)
    return frame


def _draw_mask(picture: Image.Image, mask: Tensor, color: Color) -> Rectangle:
    opacity = Image.fromarray((mask.cpu() * 255.0).round().to(torch.uint8).numpy())
    opacity = opacity.resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste(color, (0, 0), opacity.point(lambda value: round(value * FILL)))
    solid = opacity.point(lambda value: 255 * (value >= 128))
    picture.paste(color, (0, 0), solid.filter(ImageFilter.FIND_EDGES))  # the soft edge is half faded here
    left, top, right, bottom = solid.getbbox() or (0, 0, *picture.size)
    # The middle of the painted shape: its bounding rectangle's corners often lie outside it.
    return (3 * left + right) // 4, (3 * top + bottom) // 4, (left + 3 * right) // 4, (top + 3 * bottom) // 4


def _draw_labels(picture: Image.Image, regions: Sequence[Region], frames: Sequence[Rectangle]) -> None:
    font = ImageFont.load_default(max(11, min(picture.size) // 32))
    padding = max(3, round(font.size / 4))
    line_height = sum(font.getmetrics()) + padding
    draw = ImageDraw.Draw(picture)
    taken: list[Rectangle] = []
    for index, (region, frame) in enumerate(zip(regions, frames, strict=True)):
        color = _own_color(region, index)
        room = max(frame[2] - frame[0], picture.width // 3) - 2 * padding
        label = _fitted_label(index + 1, shortened(region.phrase, LABEL_LETTERS), font, room)
        tag = _free_place((round(font.getlength(label)) + 2 * padding, line_height), frame, picture.size, taken)
        taken.append(tag)
        draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=color, outline=(0, 0, 0))
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(middle, label, fill=_ink(color), font=font, anchor="mm")


def _fitted_label(number: int, phrase: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """Number and phrase, "3 red heart", the phrase cut to fit into `room` pixels; the number always stays."""
    label = f"{number} {phrase}"
    while phrase and font.getlength(label) > room:
        phrase = phrase[:-1].rstrip(" .")
        label = f"{number} {phrase}..." if phrase else f"{number}"
    return label


def _free_place(
    size: tuple[int, int], frame: Rectangle, picture: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a tag of `size` covers the least of the `taken` ones: in a corner of `frame`, else along its rows, else
    along the picture's."""
    width, height = size
    left, top, right, bottom = frame
    rows = [top, bottom - height, *range(top, bottom - height, height), *range(0, picture[1] - height, height)]
    columns = (left, right - width, (left + right - width) // 2)
    places = []
    for y in rows:
        for x in columns:
            inside_x = max(0, min(x, picture[0] - width))
            inside_y = max(0, min(y, picture[1] - height))
            places.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return min(places, key=lambda place: sum(_shared_pixels(place, other) for other in taken))


def _shared_pixels(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _ink(color: Color) -> Color:
    """Black or white, whichever contrasts more with `color` (WCAG 2.1: relative luminance and contrast)."""
    parts = [part / 255.0 for part in color]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 >= 1.05 * 0.05 else (255, 255, 255)
