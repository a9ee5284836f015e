"""Draws the icon and the banner of the pack's page: boxes with phrases, as the box editor shows them.

    python tools/pack_pictures.py           writes docs/icon.png and docs/banner.png

Needs Pillow, which is in the environment of the tests.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
ICON, BANNER = ROOT / "docs" / "icon.png", ROOT / "docs" / "banner.png"
ICON_SIZE, BANNER_SIZE = (400, 400), (1260, 540)  # the registry: at most 400 each way; 21 : 9
FINER = 4  # drawn larger and made smaller, or the slanted and round edges would have steps
PAPER, INK, GRID = (24, 26, 31), (236, 238, 242), (38, 41, 49)
# The first colours of the box editor.
AMBER, SKY, GREEN = (230, 159, 0), (86, 180, 233), (0, 158, 115)
TITLE, LINE = "Boxwright", "boxes that text-to-image models obey"
# (colour, x, y, width, height, phrase), in fractions of the picture.
ICON_BOXES = (
    (SKY, 0.10, 0.12, 0.46, 0.40, ""),
    (AMBER, 0.40, 0.40, 0.50, 0.48, ""),
    (GREEN, 0.10, 0.60, 0.22, 0.28, ""),
)
BANNER_BOXES = (
    (SKY, 0.55, 0.12, 0.21, 0.36, "a star"),
    (AMBER, 0.68, 0.36, 0.27, 0.50, "a red lantern"),
    (GREEN, 0.53, 0.64, 0.12, 0.24, "moss"),
)


def drawn(size: tuple[int, int], boxes: tuple, words: bool) -> Image.Image:
    """A picture of boxes, RGB, of `size` pixels; with the pack's name on the left where `words` says so."""
    width, height = (side * FINER for side in size)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture, "RGBA")
    cell = height // 9
    for place in range(cell, max(width, height), cell):
        draw.line([(place, 0), (place, height)], fill=GRID, width=FINER)
        draw.line([(0, place), (width, place)], fill=GRID, width=FINER)
    for colour, x, y, across, down, phrase in boxes:
        box = [round(x * width), round(y * height), round((x + across) * width), round((y + down) * height)]
        _box(draw, box, colour, phrase, size[1] * FINER)
    if words:
        draw.text((0.06 * width, 0.36 * height), TITLE, INK, _font(0.17 * height), anchor="lm")
        draw.text((0.063 * width, 0.53 * height), LINE, SKY, _font(0.055 * height), anchor="lm")
    return picture.resize(size, Image.Resampling.LANCZOS)


def _box(draw: ImageDraw.ImageDraw, box: list[int], colour: tuple, phrase: str, height: int) -> None:
    """One box with its handles, and its phrase on a label at its foot."""
    edge = max(height // 90, 1)
    draw.rounded_rectangle(box, edge * 2, fill=(*colour, 70), outline=colour, width=edge)
    for x in (box[0], box[2]):
        for y in (box[1], box[3]):
            handle = [x - 2 * edge, y - 2 * edge, x + 2 * edge, y + 2 * edge]
            draw.rectangle(handle, fill=INK, outline=colour, width=edge // 2)
    if phrase:
        font = _font(0.05 * height)
        left, foot = box[0] + 4 * edge, box[3] - 4 * edge
        right = left + draw.textlength(phrase, font) + 6 * edge
        draw.rounded_rectangle([left, foot - 0.085 * height, right, foot], edge * 2, fill=(*PAPER, 200))
        draw.text((left + 3 * edge, foot - 0.0425 * height), phrase, INK, font, anchor="lm")


def _font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own, so that the pictures are the same everywhere."""
    return ImageFont.load_default(round(size))


def icon() -> Image.Image:
    return drawn(ICON_SIZE, ICON_BOXES, words=False)


def banner() -> Image.Image:
    return drawn(BANNER_SIZE, BANNER_BOXES, words=True)


def main() -> int:
    for picture, path in ((icon(), ICON), (banner(), BANNER)):
        picture.save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
