"""Regions that are not boxes: ellipses, polygons and paint, as our JSON keeps them, as masks, and back.

A shape lives in its region's box. Read from untrusted text, bounded, checked once. web/editor/model/shapes.js reads and
covers the same; tests/golden/shapes.json holds both to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attention_patches.core.grids import coverage
from ...attention_patches.core.types import Box, BoxwrightError, Region
from .checks import shown, whole

KINDS = ("ellipse", "polygon", "paint")
STEPS = 10_000  # a polygon's points are whole numbers from 0 to this: across its box and down, in turn
MIN_POINTS, MAX_POINTS = 3, 256
MAX_CELLS = 512  # of paint, each way
MAX_RUNS = 13_000  # characters of runs: MAX_REGIONS of them, with words, are still a text that can be read
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the levels 0 to FULL
LEVEL = {letter: level for level, letter in enumerate(LETTERS)}
FULL = len(LETTERS) - 1  # a cell that is wholly painted
RUN = re.compile("([a-zA-Z])([0-9]*)")
RUNS = re.compile("(?:[a-zA-Z](?:[1-9][0-9]{0,5})?)*")
LINES = 1024  # scan lines over the image, and at least MIN_LINES through a cell
MIN_LINES = 4
GRID = (512, 512)  # rows and columns of the mask that a shape becomes
BOX_KEYS = ("x", "y", "width", "height")


def checked_shape(shape: Any, where: str) -> dict[str, Any]:
    """The shape of a region from JSON, as it is. Raises BoxwrightError."""
    kind = shape.get("kind") if isinstance(shape, Mapping) else None
    if kind not in KINDS:
        raise BoxwrightError(
            f'{where}: shape must have the "kind" {", ".join(KINDS[:-1])} or {KINDS[-1]}; it is {shown(shape)}. Take '
            "it away for a box, or update the Boxwright pack."
        )
    if kind == "polygon":
        _check_points(shape.get("points"), where)
    elif kind == "paint":
        painted_cells(shape, where)
    return shape


def _check_points(points: Any, where: str) -> None:
    count = len(points) if isinstance(points, list) else 0
    if count % 2 or not 2 * MIN_POINTS <= count <= 2 * MAX_POINTS:
        given = f"it has {count} numbers" if isinstance(points, list) else f"they are {shown(points)}"
        raise BoxwrightError(
            f"{where}: the points of a polygon are {MIN_POINTS} to {MAX_POINTS} pairs of numbers in one list; {given}. "
            "Draw it with fewer corners."
        )
    for value in points:
        whole(value, f"{where}: a number of the polygon's points", 0, STEPS)


def painted_cells(shape: Mapping[str, Any], where: str) -> np.ndarray:
    """The levels of paint's cells, uint8 [height, width] from 0 to FULL. Raises BoxwrightError."""
    width, height, runs = (shape.get(key) for key in ("width", "height", "runs"))
    width = whole(width, f"{where}: the width of paint in cells", 1, MAX_CELLS)
    height = whole(height, f"{where}: the height of paint in cells", 1, MAX_CELLS)
    if not isinstance(runs, str) or len(runs) > MAX_RUNS:
        given = f"{len(runs)} characters long" if isinstance(runs, str) else shown(runs)
        raise BoxwrightError(
            f"{where}: the runs of paint are a text of at most {MAX_RUNS} characters; they are {given}. Paint it anew."
        )
    if not RUNS.fullmatch(runs):
        raise BoxwrightError(f'{where}: the runs of paint are letters with counts, as "a12Z3"; they are {shown(runs)}.')
    found = RUN.findall(runs)
    counts = np.array([int(count or 1) for _, count in found], dtype=np.int64)
    cells = width * height
    if counts.sum() != cells:
        raise BoxwrightError(f"{where}: the runs of paint fill {counts.sum()} cells of {cells}. Paint it anew.")
    levels = np.repeat(np.array([LEVEL[letter] for letter, _ in found], dtype=np.uint8), counts)
    if not levels.any():
        raise BoxwrightError(f"{where}: nothing is painted. Paint something, or remove the region.")
    return levels.reshape(height, width)


def rasterized(shape: Mapping[str, Any] | None, box: Box, grid: tuple[int, int]) -> Tensor:
    """How much of each cell of a `grid` (rows, columns) over the image a shape in its box covers, float32 in [0, 1].

    Exact for paint and for boxes (None); ellipses and polygons are looked at along LINES lines, exactly across. Where a
    polygon crosses itself, even-odd.
    """
    if shape is None:
        return coverage(box, grid)
    if shape["kind"] == "paint":
        levels = painted_cells(shape, "A painted region") / FULL
        down = _shares(levels.shape[0], box.y, box.height, grid[0])
        across = _shares(levels.shape[1], box.x, box.width, grid[1])
        return torch.from_numpy(np.clip(down.T @ levels @ across, 0.0, 1.0)).float()
    return torch.from_numpy(_scanned(shape, box, grid)).float()


def _shares(count: int, start: float, length: float, cells: int) -> np.ndarray:
    """[count, cells]: the share of each cell's length that lies in each of `count` even parts of a span."""
    edges = (start + length * np.arange(count + 1) / count) * cells
    first = np.arange(cells)
    low = np.maximum(edges[:-1, None], first[None])
    return np.clip(np.minimum(edges[1:, None], first[None] + 1) - low, 0.0, None)


def _scanned(shape: Mapping[str, Any], box: Box, grid: tuple[int, int]) -> np.ndarray:
    """Along a line the shape begins at every other crossing and ends at the next: sums of ramps, from left to right."""
    rows, columns = grid
    each = max(MIN_LINES, -(-LINES // rows))
    lines = (np.arange(rows * each) + 0.5) / each / rows
    crossings = _crossings(shape, box, lines)  # [lines, n], from left to right, NaN where there are fewer
    line, number = np.nonzero(~np.isnan(crossings))
    at = np.clip(crossings[line, number] * columns, 0.0, columns)
    cell = np.floor(at).astype(np.int64)
    weight = np.where(number % 2, -1.0, 1.0) / each
    change = np.zeros((rows, columns + 2))
    np.add.at(change, (line // each, cell), weight * (cell + 1 - at))
    np.add.at(change, (line // each, cell + 1), weight * (at - cell))
    return np.clip(np.cumsum(change, axis=1)[:, :columns], 0.0, 1.0)


def _crossings(shape: Mapping[str, Any], box: Box, lines: np.ndarray) -> np.ndarray:
    down = (lines - box.y) / box.height
    if shape["kind"] == "ellipse":
        t = 2.0 * down - 1.0
        half = np.sqrt(np.where(np.abs(t) < 1.0, 1.0 - t * t, np.nan)) / 2.0
        return np.stack([box.x + (0.5 - half) * box.width, box.x + (0.5 + half) * box.width], axis=1)
    points = np.array(shape["points"], dtype=np.float64).reshape(-1, 2) / STEPS
    (ax, ay), (bx, by) = points.T, np.roll(points, -1, axis=0).T
    level = np.where(by == ay, 1.0, by - ay)  # an edge along the line is never crossed
    found = box.x + (ax + (down[:, None] - ay) / level * (bx - ax)) * box.width
    crossed = (ay[None] <= down[:, None]) != (by[None] <= down[:, None])
    return np.sort(np.where(crossed, found, np.nan), axis=1)  # NaN goes last


# --- regions ----------------------------------------------------------------------------------------------------------


def area_of(shape: Mapping[str, Any], box: Box, where: str) -> Tensor:
    """The mask that a shape becomes, float32 on GRID. Raises BoxwrightError where it covers nothing."""
    area = rasterized(shape, box, GRID)
    if not bool(area.any()):
        raise BoxwrightError(f"{where}: its shape covers nothing. Draw it larger, or take the shape away.")
    return area


def outline_of(region: Region) -> tuple[Mapping[str, Any] | None, Box]:
    """The shape and box that the region's JSON keeps beside its mask; of any other mask, paint; None for boxes.

    What is kept counts only while it makes the region's mask: whoever gives it another mask need not know of this.
    """
    return _kept(region) or paint_of(region.area)


def _kept(region: Region) -> tuple[Mapping[str, Any] | None, Box] | None:
    """What outline_of says of a region that is no mask from elsewhere, else None."""
    if isinstance(region.area, Box):
        return None, region.area
    kept: dict[str, Any] = {key: region.extra.get(key) for key in ("shape", *BOX_KEYS)}
    if isinstance(kept["shape"], Mapping) and tuple(region.area.shape) == GRID:
        box = Box(*(kept[key] for key in BOX_KEYS))
        if torch.equal(rasterized(kept["shape"], box, GRID), region.area.to("cpu", torch.float32)):
            return kept["shape"], box
    return None


def as_drawn(region: Region) -> Region:
    """The region as its drawing: a mask that is a full rectangle is a box."""
    shape, box = outline_of(region)
    whole = shape is not None and shape["kind"] == "paint" and shape["runs"] == f"Z{shape['width'] * shape['height']}"
    return replace(region, area=box) if whole else region


def bounding_box(region: Region) -> Box:
    """The smallest box around the region, of a mask around all that is above 0."""
    kept = _kept(region)
    return kept[1] if kept else _box_around(_levels(region.area))[0]


def covered_pixels(region: Region, height: int, width: int) -> Tensor:
    """How much of each pixel of a picture the region covers, float32 [height, width]; as sharp as the picture."""
    kept = _kept(region)
    if kept is None or kept[0] is None or kept[0]["kind"] == "paint":
        return coverage(region.area, (height, width))
    return rasterized(*kept, (height, width))


def paint_of(mask: Tensor) -> tuple[dict[str, Any], Box]:
    """A mask [H, W] in [0, 1] that is not all 0 as paint in the box around it; too intricate, it becomes coarser."""
    box, part = _box_around(_levels(mask))
    height, width = part.shape
    sides = min(height, MAX_CELLS), min(width, MAX_CELLS)
    while True:
        cells = (coverage(part / FULL, sides) * FULL).round().to(torch.uint8).clamp_(max=FULL).numpy()
        if not cells.any():
            cells.reshape(-1)[int(coverage(part / FULL, sides).argmax())] = 1  # something stays
        runs = runs_of(cells)
        if len(runs) <= MAX_RUNS:
            return {"kind": "paint", "width": sides[1], "height": sides[0], "runs": runs}, box
        sides = -(-3 * sides[0] // 4), -(-3 * sides[1] // 4)


def _levels(mask: Tensor) -> Tensor:
    """The levels of a mask's pixels, 0 to FULL."""
    return (mask.detach().to("cpu", torch.float64) * FULL).round()


def _box_around(levels: Tensor) -> tuple[Box, Tensor]:
    """The smallest box around what is above 0, in fractions, and the levels in it."""
    rows, columns = (levels.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise BoxwrightError("A mask is empty: every pixel is 0. Paint it, or disconnect it.")
    part = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    (height, width), (down, across) = part.shape, levels.shape
    return Box(columns[0] / across, rows[0] / down, width / across, height / down), part


def runs_of(cells: np.ndarray) -> str:
    """The runs of levels: a letter for the level, then how many cells where there is more than one."""
    flat = cells.reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    counts = np.diff(np.append(starts, flat.size))
    return "".join(
        LETTERS[level] + (str(count) if count > 1 else "")
        for level, count in zip(flat[starts].tolist(), counts.tolist(), strict=True)
    )
