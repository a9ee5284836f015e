"""Ratios patched / unpatched of one shape, and the table that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from measure import Job, Time, memory_of, time_of
from methods import METHODS, Case, Method
from shape import Shape
from shapes import KEY, SHAPES, attention_layers, build, conditioning, prompt, random_layout

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


@dataclass(frozen=True)
class Wanted:
    """Which of the cells are measured."""

    methods: tuple[str, ...] = ("",)  # beginnings of their names
    regions: int | None = None  # None: as many as the method says

    def regions_of(self, method: Method, shape: Shape) -> tuple[int, ...]:
        found = method.regions_of(shape) if method.name.startswith(self.methods) else ()
        return tuple(number for number in found if self.regions in (None, number))


def measure_shape(name: str, dtype: torch.dtype, repeats: int | None, wanted: Wanted) -> tuple[list[Row], float]:
    """The rows of one shape, as far as they are wanted, and the median wall seconds of an unpatched step.

    The order is U P U P ... U; each patched step is divided by the mean of the unpatched ones right before and after
    it, so that a machine that grows slower or faster meanwhile moves both.
    """
    shape = SHAPES[name]
    model = build(shape, dtype)
    cells = prepare(shape, model, wanted)
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


def prepare(shape: Shape, model: Any, wanted: Wanted) -> dict[tuple[str, int], tuple[Job, Any]]:
    """(method, number of regions) -> what its evaluations are of, and the patched MODEL."""
    jobs: dict[int, Job] = {}
    cells = {}
    for method in METHODS:
        for regions in wanted.regions_of(method, shape):
            if method.rows not in jobs:
                jobs[method.rows] = job_of(shape, model, method.rows)
            cells[method.name, regions] = jobs[method.rows], method.patch(case_of(shape, model, regions))
    return cells


def case_of(shape: Shape, model: Any, regions: int) -> Case:
    """What a method is put on at this shape."""
    layout = random_layout(prompt(shape, seed=1), regions)
    return Case(model, layout, lambda number: conditioning(shape, prompt(shape, number), None), noise_of(shape))


def noise_of(shape: Shape) -> torch.Tensor:
    """Of one picture, [1, *shape.latent]."""
    return torch.randn(1, *shape.latent, generator=torch.Generator().manual_seed(0))


def job_of(shape: Shape, model: Any, rows: int) -> Job:
    """An evaluation of `rows` pictures, each conditioned and unconditioned."""
    return Job(
        positive=conditioning(shape, prompt(shape, seed=1), KEY, rows),
        negative=conditioning(shape, prompt(shape, seed=2), None),
        noise=noise_of(shape).repeat(rows, *[1] * len(shape.latent)),
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
