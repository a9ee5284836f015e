"""What a layout covers, in words: areas, overlaps, gaps, and regions too small for the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...attention_patches.core.grids import coverage
from ...attention_patches.core.types import Box, Region
from .checks import counted, shortened

MASK_GRID = 256  # painted masks are measured on this many cells each way
MIN_OVERLAP = 0.01  # of the image
MAX_OVERLAP_LINES = 12
LABEL_LETTERS = 60
# Pixels of the picture per attention cell on the two coarsest grids of SD1.x and SD2.x (latents are 1/8 of the picture,
# halved three and two times). SDXL's grids are finer: what passes here passes there.
CELL_PIXELS = (64, 32)


def layout_report(regions: Sequence[Region], width: int, height: int) -> str:
    """Lines of plain text on a layout for a picture of `width` x `height` pixels.

    Shares are of the whole image: exact for boxes, measured on a grid of MASK_GRID x MASK_GRID cells for masks. Phrases
    are shortened to one line each, and the number of lines is bounded.
    """
    shares, areas = _cells(regions)
    uncovered = float((areas * (1.0 - shares.amax(dim=0))).sum())
    return "\n".join(
        [
            f"{counted(len(regions), 'region')} on {width} x {height} pixels. "
            f"Covered: {_percent(1.0 - uncovered)} of the image; uncovered: {_percent(uncovered)}.",
            *(
                _region_line(number, region, float((share * areas).sum()))
                for number, (region, share) in enumerate(zip(regions, shares, strict=True), 1)
            ),
            *_overlap_lines(shares, areas),
            *(line for number, region in enumerate(regions, 1) for line in _small_lines(number, region, width, height)),
        ]
    )


def _cells(regions: Sequence[Region]) -> tuple[Tensor, Tensor]:
    """How much of each cell each region covers [R, h, w] in [0, 1], and the cells' areas [h, w], which sum to 1.

    Cells are cut at every edge of a box, so that a box covers each wholly or not at all, and along the mask grid if
    there are masks.
    """
    boxes = [region.area for region in regions if isinstance(region.area, Box)]
    count = MASK_GRID if len(boxes) < len(regions) else 1
    rows = _edges(count, [(box.y, box.height) for box in boxes])
    columns = _edges(count, [(box.x, box.width) for box in boxes])
    middle_y, middle_x = (rows[1:] + rows[:-1]) / 2, (columns[1:] + columns[:-1]) / 2
    shares = [_share(region.area, middle_y, middle_x) for region in regions]
    return torch.stack(shares), (rows.diff()[:, None] * columns.diff()[None, :]).float()


def _edges(count: int, spans: Sequence[tuple[float, float]]) -> Tensor:
    """Where cells begin and end along one axis, sorted, from 0 to 1: `count` even ones and the ends of the spans."""
    cuts = [edge for start, length in spans for edge in (start, start + length)]
    grid = torch.arange(count + 1, dtype=torch.float64) / count
    return torch.cat([grid, torch.tensor(cuts, dtype=torch.float64)]).unique()


def _share(area: Box | Tensor, middle_y: Tensor, middle_x: Tensor) -> Tensor:
    if isinstance(area, Box):
        down = (middle_y > area.y) & (middle_y < area.y + area.height)
        across = (middle_x > area.x) & (middle_x < area.x + area.width)
        return (down[:, None] & across[None, :]).float()
    share = coverage(area, (MASK_GRID, MASK_GRID))
    return share[(middle_y * MASK_GRID).long()][:, (middle_x * MASK_GRID).long()]


def _region_line(number: int, region: Region, share: float) -> str:
    kind = "box" if isinstance(region.area, Box) else "mask"
    strength = "" if region.strength == 1.0 else f", strength {region.strength:g}"
    return f"{number}. {shortened(region.phrase, LABEL_LETTERS)}: {_percent(share)} ({kind}{strength})"


def _overlap_lines(shares: Tensor, areas: Tensor) -> list[str]:
    found = []
    for first in range(len(shares) - 1):
        overlaps = torch.minimum(shares[first], shares[first + 1 :]).flatten(1) @ areas.flatten()
        for second, overlap in enumerate(overlaps.tolist(), first + 1):
            if overlap > MIN_OVERLAP:
                found.append((overlap, first + 1, second + 1))
    if not found:
        return [f"No two regions overlap on more than {_percent(MIN_OVERLAP)} of the image."]
    found.sort(key=lambda entry: -entry[0])
    lines = [f"{first} and {second} overlap: {_percent(share)}" for share, first, second in found[:MAX_OVERLAP_LINES]]
    if len(found) > MAX_OVERLAP_LINES:
        lines.append(f"... and {counted(len(found) - MAX_OVERLAP_LINES, 'more overlap')} above {_percent(MIN_OVERLAP)}")
    return [*lines, "Where regions overlap, the picture shows the later one on top."]


def _small_lines(number: int, region: Region, width: int, height: int) -> list[str]:
    """One line if the region fills no cell of a coarse attention grid by half, naming those grids; else none."""
    grids = [(-(-height // cell), -(-width // cell)) for cell in CELL_PIXELS]
    unfilled = [grid for grid in grids if float(coverage(region.area, grid).max()) < 0.5]
    if not unfilled:
        return []
    names = " and ".join(f"{columns} x {rows}" for rows, columns in unfilled)
    return [
        f"{number}. {shortened(region.phrase, LABEL_LETTERS)}: too small for the coarsest attention grid of SD models "
        f"at this size (it fills no cell of {names} by half). Enlarge it, or expect it to be weak."
    ]


def _percent(share: float) -> str:
    return "under 0.1 %" if 1e-9 < share < 0.0005 else f"{100.0 * abs(share):.1f} %"
