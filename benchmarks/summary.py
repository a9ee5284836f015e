"""One table of every method on every shape, written to a file as it is measured, so that nothing is lost.

A file that is there is gone on with: what is measured again takes the place of what was there, the rest stays.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluations
import torch
from measure import Job, Time, memory_of, time_of
from methods import METHODS, Method
from pack.attention_patches.core.types import BoxwrightError
from ratios import Spread, Wanted, case_of, compare, job_of
from shapes import SHAPES, SUMMARY, build

COLUMNS = {
    "toy": "toy, 256x256",
    "small": "SD1.5, 256x256",
    "sdxl-small": "SDXL, 512x512",
    "flux-small": "Flux.1, 512x512",
    "zimage-small": "Z-Image, 512x512",
    "qwen-small": "Qwen-Image, 512x512",
    "sd15-full": "SD1.5, 512x512, complete, float16",
    "sdxl-full": "SDXL, 1024x1024, complete, float16",
    "flux": "Flux.1, 1024x1024",
    "zimage": "Z-Image, 1024x1024",
    "qwen": "Qwen-Image, 1024x1024",
}


def measure(
    file: Path, names: tuple[str, ...], dtype: torch.dtype, repeats: int, wanted: Wanted, where: Callable[[], str]
) -> None:
    """Measure what is wanted of the methods on the named shapes, and count evaluations where that was not done yet.

    `where`: says what it runs on and how busy that is, for each column.
    """
    found = loaded(file)
    methods = [method for method in METHODS if method.summary and method.name.startswith(wanted.methods)]
    uncounted = [method for method in methods if "evaluations" not in found["rows"][method.name]]
    for name, count in evaluations.counted(uncounted):
        found["rows"][name]["evaluations"] = count
        _write(file, found)
    for shape in names:
        run = _Shape(shape, dtype)
        for method in methods:
            if method.patch is None or not method.measured:
                continue
            cell = found["rows"][method.name]["cells"][shape] = run.cell(method, repeats)
            found["columns"][shape] = {"title": COLUMNS[shape], "of": SHAPES[shape].title, "machine": where()}
            _write(file, found)
            print(f"{shape}, {method.name}: {cell}", flush=True)


def loaded(file: Path) -> dict[str, Any]:
    """What the file holds, with a row for every method, in the order of the table, and every column."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = before.get("rows", {})
    named = {name: {"title": COLUMNS[name], "of": SHAPES[name].title} for name in _every_column()}
    return {
        "columns": named | before.get("columns", {}),
        "rows": {
            method.name: {"nodes": method.nodes, "cells": {}, **rows.get(method.name, {})}
            | {"loop": method.patch is None or not method.measured}
            for method in METHODS
            if method.summary
        },
    }


def _every_column() -> list[str]:
    return list(dict.fromkeys([*SUMMARY["cpu"], *SUMMARY["cuda"][1:3]]))


class _Shape:
    """One model at one size: what is measured of it, the unpatched steps between the methods' included."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.shape = name, SHAPES[name]
        self.model = build(self.shape, dtype)
        self.jobs: dict[int, Job] = {}  # by the number of pictures
        self.peaks: dict[int, int] = {}  # of an unpatched step, in bytes
        self.last: dict[int, Time] = {}  # the unpatched step that was taken last

    def cell(self, method: Method, repeats: int) -> dict[str, Any]:
        """Ratios of one method, or why the model refuses it.

        The order is U P U P U ..., from method to method: each patched step is divided by the mean of the unpatched
        ones before and after it.
        """
        rows = method.rows
        (regions,) = method.in_summary()
        try:
            job = self._job(rows)
            variant = method.patch(case_of(self.shape, self.model, regions))
            peak = memory_of(job, variant).peak
            ratios, seconds = [], []
            for _ in range(repeats):
                taken, before = time_of(job, variant), self.last[rows]
                self.last[rows] = time_of(job, self.model)
                ratios.append(compare(taken, [before, self.last[rows]]))
                seconds.append(self.last[rows].busy)
        except BoxwrightError as error:
            return {"refused": str(error)}
        except Exception as error:  # one method that fails must not cost the others' numbers
            logging.exception("%s on %s", method.name, self.name)
            return {"failed": f"{type(error).__name__}: {error}"}
        step, wall, _ = (Spread.of(list(kind)) for kind in zip(*ratios))
        return {
            "step": [round(value, 3) for value in (step.median, step.lowest, step.highest)],
            "wall": round(wall.median, 3),
            "peak": round(peak / self.peaks[rows], 3),
            "peak_mib": [round(value / 2**20, 1) for value in (peak, self.peaks[rows])],
            "seconds": round(min(seconds), 2),
            "pairs": repeats,
        }

    def _job(self, rows: int) -> Job:
        if rows not in self.jobs:
            self.jobs[rows] = job_of(self.shape, self.model, rows)
            if rows == 1:
                time_of(self.jobs[rows], self.model)  # warm-up: loads the model
            self.peaks[rows] = memory_of(self.jobs[rows], self.model).peak
            self.last[rows] = time_of(self.jobs[rows], self.model)
        return self.jobs[rows]


def _write(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
