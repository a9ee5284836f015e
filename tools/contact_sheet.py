"""Scores the demo's pictures and sets them side by side: unpatched | patched, boxes drawn on both.

Runs in the environment's Python (it needs Pillow, numpy and the toy world's scorer).
Usage: contact_sheet.py OUTPUT.png, with JSON on standard input:
{"regions": [...], "pictures": {"unpatched": [files], "patched": [files]}}
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TOYWORLD = Path(__file__).resolve().parent.parent / "tests" / "toyworld"
COLUMNS = ("unpatched", "patched")
MARGIN, CAPTION = 16, 26  # pixels
INK, PAPER = (40, 40, 40), (255, 255, 255)
BOX_INKS = ((230, 0, 120), (0, 150, 60), (120, 60, 220), (200, 110, 0))


def import_scorer():
    """tests/toyworld/scorer.py, as part of a package that is not on the path."""
    package = types.ModuleType("toyworld")
    package.__path__ = [str(TOYWORLD)]
    sys.modules["toyworld"] = package
    from toyworld import scorer

    return scorer


def score(scorer, regions: list[dict], pictures: dict) -> dict:
    """Column name -> one ImageScore per picture."""
    expected = [scorer.expected_object(region["phrase"], box_of(region)) for region in regions]
    return {name: [scorer.score_image(read(file), expected) for file in pictures[name]] for name in COLUMNS}


def read(file: str) -> np.ndarray:
    """A picture as float32 [height, width, 3] in 0..1."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def box_of(region: dict) -> tuple:
    """(x, y, width, height) of a region, in fractions of the image."""
    return tuple(region[key] for key in ("x", "y", "width", "height"))


def table(regions: list[dict], scores: dict) -> str:
    """One line per object and one of means: presence, IoU with the box and share of the colour inside, per column."""
    width = max([len(region["phrase"]) for region in regions] + [6])
    rows = [
        f"{'':{width}}   " + "   ".join(f"{name:^24}" for name in COLUMNS),
        f"{'object':{width}}   " + "   ".join(f"{'present':>7} {'IoU':>7} {'inside':>8}" for _ in COLUMNS),
    ]
    for index, region in enumerate(regions):
        objects = {name: [picture.objects[index] for picture in scores[name]] for name in COLUMNS}
        rows.append(f"{region['phrase']:{width}}   " + "   ".join(_measures(objects[name]) for name in COLUMNS))
    everything = {name: [item for picture in scores[name] for item in picture.objects] for name in COLUMNS}
    rows.append(f"{'mean':{width}}   " + "   ".join(_measures(everything[name]) for name in COLUMNS))
    return "\n".join(rows)


def _measures(objects: list) -> str:
    present = np.mean([item.present for item in objects])
    iou = np.mean([item.iou for item in objects])
    inside = np.mean([item.inside_mass for item in objects])
    return f"{present:7.2f} {iou:7.2f} {inside:8.2f}"


def sheet(regions: list[dict], pictures: dict, scores: dict) -> Image.Image:
    """The contact sheet: one row per seed, one column per model, captions with the mean IoU."""
    columns = {name: [Image.open(file).convert("RGB") for file in pictures[name]] for name in COLUMNS}
    width, height = columns[COLUMNS[0]][0].size
    step_x, step_y = width + MARGIN, height + CAPTION + MARGIN
    rows = max(len(images) for images in columns.values())
    paper = Image.new("RGB", (MARGIN + step_x * len(COLUMNS), MARGIN + CAPTION + rows * step_y), PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    for column, name in enumerate(COLUMNS):
        x = MARGIN + column * step_x
        draw.text((x, MARGIN // 2), name, INK, ImageFont.load_default(18))
        for row, image in enumerate(columns[name]):
            y = MARGIN + CAPTION + row * step_y
            draw_boxes(image, regions)
            paper.paste(image, (x, y))
            iou = np.mean([item.iou for item in scores[name][row].objects])
            draw.text((x, y + height + 4), f"picture {row + 1}, mean IoU {iou:.2f}", INK, font)
    return paper


def draw_boxes(image: Image.Image, regions: list[dict]) -> None:
    """Outline each region on the picture, with its phrase."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for index, region in enumerate(regions):
        ink = BOX_INKS[index % len(BOX_INKS)]
        left, top = region["x"] * image.width, region["y"] * image.height
        right, bottom = left + region["width"] * image.width, top + region["height"] * image.height
        draw.rectangle((left, top, right - 1, bottom - 1), outline=ink, width=2)
        text = draw.textbbox((left + 3, top + 2), region["phrase"], font=font)
        draw.rectangle((text[0] - 2, text[1] - 2, text[2] + 2, text[3] + 2), fill=ink)
        draw.text((left + 3, top + 2), region["phrase"], PAPER, font)


def main(output: str) -> None:
    """Print the table and write the contact sheet."""
    scene = json.load(sys.stdin)
    regions, pictures = scene["regions"], scene["pictures"]
    missing = [name for name in COLUMNS if not pictures.get(name)]
    if missing:
        sys.exit(f'the workflow saved no "{missing[0]}" picture; its SaveImage prefixes must end in /{missing[0]}')
    scores = score(import_scorer(), regions, pictures)
    sheet(regions, pictures, scores).save(output)
    count = len(pictures[COLUMNS[0]])
    print(
        f"\n{table(regions, scores)}\n"
        f"means over {count} pictures; inside = share of the object's colour that lies in its box"
    )


if __name__ == "__main__":
    main(sys.argv[1])
