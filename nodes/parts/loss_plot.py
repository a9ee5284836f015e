"""A curve of losses as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = (640, 320)
FRAME = (64, 16, 624, 288)  # left, top, right, bottom of the axes
INK, FAINT, LINE = (40, 40, 40), (185, 200, 220), (30, 90, 200)


def plotted(losses: Sequence[float], smooth: int = 20) -> Tensor:
    """IMAGE [1, 320, 640, 3]: every loss in a faint line, the mean of the last `smooth` in a strong one."""
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = FRAME
    most = max(losses) or 1.0
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    pen.text((8, top - 6), f"{most:.4g}", fill=INK)
    pen.text((8, bottom - 6), "0", fill=INK)
    pen.text((left, bottom + 8), "loss by step", fill=INK)
    pen.text((right - 24, bottom + 8), str(len(losses)), fill=INK)
    means = [sum(part) / len(part) for part in (losses[max(0, i + 1 - smooth) : i + 1] for i in range(len(losses)))]
    for values, color, width in ((losses, FAINT, 1), (means, LINE, 3)):
        places = [
            (left + (right - left) * i / max(1, len(values) - 1), bottom - (bottom - top) * value / most)
            for i, value in enumerate(values)
        ]
        pen.line(places if len(places) > 1 else places * 2, fill=color, width=width)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]
