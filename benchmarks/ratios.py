"""Ratios patched / unpatched of one shape, and the table that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from measure import Job, Time, memory_of, time_of
from shapes import (
    KEY,
    METHODS,
    ROWS,
    SHAPES,
    Shape,
    attention_layers,
    build,
    conditioning,
    prompt,
    random_layout,
    regions_of,
)

MIB = 2**20


@dataclass(frozen=True)
class Spread:
    """Ratios patched / unpatched."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, ratios: list[float]) -> Spread:
        return cls(median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Row:
    """One line of a table: times as ratios, memory in bytes."""

    shape: str
    method: str
    regions: int
    step: Spread  # busy time of the whole evaluation
    wall: Spread  # the same by the clock on the wall
    layers: Spread  # busy time inside the attention layers alone
    peak: tuple[int, int]  # (patched, unpatched)
    largest: tuple[int, int]  # (patched, unpatched)
    allowed: int  # largest must not exceed it: unpatched's largest, or one float32 per head, image and text token


def measure_shape(name: str, dtype: torch.dtype, repeats: int | None, methods: str) -> tuple[list[Row], float]:
    """The rows of one shape and the methods whose name starts so, and the median wall seconds of an unpatched step.

    The order is U P U P ... U; each patched step is divided by the mean of the unpatched ones right before and after
    it, so that a machine that grows slower or faster meanwhile moves both.
    """
    shape = SHAPES[name]
    model = build(shape, dtype)
    cells = prepare(shape, model, methods)
    if not cells:
        return [], 0.0
    first = next(iter(cells.values()))[0]
    time_of(first, model)  # warm-up: loads the model
    # In pairs: the host's attention takes larger pieces the more memory is free, and that changes meanwhile.
    memory = {cell: (memory_of(job, variant), memory_of(job, model)) for cell, (job, variant) in cells.items()}
    unpatched: dict[int, list[Time]] = {}  # by the job's number of pictures
    ratios: dict[tuple[str, int], list[tuple[float, ...]]] = {cell: [] for cell in cells}
    last = None
    for _ in range(repeats or shape.repeats):
        for cell, (job, variant) in cells.items():
            times = unpatched.setdefault(len(job.noise), [])
            if job is not last:
                times.append(time_of(job, model))
                last = job
            taken = time_of(job, variant)
            times.append(time_of(job, model))
            ratios[cell].append(compare(taken, times[-2:]))
    one_per_score = shape.heads * shape.tokens * shape.text * 4
    rows = [
        Row(
            name,
            *cell,
            *(Spread.of(list(kind)) for kind in zip(*ratios[cell])),
            (with_edits.peak, without.peak),
            (with_edits.largest, without.largest),
            max(without.largest, one_per_score * len(cells[cell][0].noise)),
        )
        for cell, (with_edits, without) in memory.items()
    ]
    return rows, median(time.wall for time in unpatched[len(first.noise)])


def prepare(shape: Shape, model: Any, methods: str) -> dict[tuple[str, int], tuple[Job, Any]]:
    """(method, number of regions) -> what its evaluations are of, and the patched MODEL."""
    encoded, jobs = prompt(shape, seed=1), {}
    cells = {}
    for method, patch in METHODS.items():
        rows = ROWS.get(method, 1)
        for regions in regions_of(method, shape) if method.startswith(methods) else ():
            if rows not in jobs:
                jobs[rows] = job_of(shape, model, rows)
            cells[method, regions] = jobs[rows], patch(model, random_layout(encoded, regions))
    return cells


def job_of(shape: Shape, model: Any, rows: int) -> Job:
    """An evaluation of `rows` pictures, each conditioned and unconditioned."""
    noise = torch.randn(1, *shape.latent, generator=torch.Generator().manual_seed(0))
    return Job(
        positive=conditioning(shape, prompt(shape, seed=1), KEY, rows),
        negative=conditioning(shape, prompt(shape, seed=2), None),
        noise=noise.repeat(rows, *[1] * len(shape.latent)),
        cfg=shape.cfg,
        layers=attention_layers(model),
        device=model.load_device,
    )


def compare(patched: Time, unpatched: list[Time]) -> tuple[float, float, float]:
    """The ratios of the whole step's busy time, its wall time, and the attention layers' busy time."""
    return (
        patched.busy / mean(time.busy for time in unpatched),
        patched.wall / mean(time.wall for time in unpatched),
        patched.layers / mean(time.layers for time in unpatched),
    )


def table(title: str, rows: list[Row], unpatched: float) -> str:
    """The rows of one shape in markdown."""
    lines = [
        f"### {title}",
        "",
        f"An unpatched step takes {unpatched:.2g} s and {rows[0].peak[1] / MIB:.1f} MiB beyond the weights; "
        f"the largest tensor in its attention layers has {rows[0].largest[1] / MIB:.1f} MiB.",
        "",
        "| method | regions | step, busy | step, wall | attention layers, busy | peak memory | largest tensor, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        # Guides leave the layers before they end, or go through them once more.
        layers = "–" if row.method.startswith(("box constraint", "loss guidance")) else ratio(row.layers)
        mark = "" if row.largest[0] <= row.allowed else f" (**above {row.allowed / MIB:.1f}**)"
        lines.append(
            f"| {row.method} | {row.regions} | {ratio(row.step)} | {ratio(row.wall)} | {layers} "
            f"| {row.peak[0] / row.peak[1]:.2f} | {row.largest[0] / MIB:.1f}{mark} |"
        )
    return "\n".join(lines)


def ratio(spread: Spread) -> str:
    """A ratio with its extremes, if there are several."""
    if spread.lowest == spread.highest:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} ({spread.lowest:.2f}–{spread.highest:.2f})"
