"""How far a run has come in its noise schedule."""

from __future__ import annotations

import contextlib
import copy
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from ...core.types import Moment, StepWindow


def progress_of(model_sampling: Any, sigmas: Sequence[float] = ()) -> Callable[[float], float]:
    """How far the schedule has come at a sigma: the inverse of the host's `percent_to_sigma`, in [0, 1].

    For one run, and if its `sigmas` are given with the place of its next step (see Moment). Found by bisection on a
    twin of the schedule in main memory, each sigma once: on a GPU every look-up in the host's own table waits for the
    device.
    """
    twin = copy.copy(model_sampling)
    twin._buffers = {name: None if table is None else table.cpu() for name, table in model_sampling._buffers.items()}

    @cache
    def at(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if twin.percent_to_sigma(middle) > sigma:
                low = middle
            else:
                high = middle
        # Rounded, so that a step exactly on the edge of a window falls on the same side every time.
        return round(high, 6)

    steps = sorted(map(at, sigmas))

    @cache
    def moment(sigma: float) -> Moment:
        now = at(sigma)
        after = bisect_right(steps, now)
        return Moment(now, steps[after] if after < len(steps) else now)

    return moment if steps else at


def comes_to(windows: Sequence[StepWindow], points: Sequence[float]) -> bool:
    """Whether a run comes to any of the windows; `points` as in no_step_line.

    Not the steps alone: some samplers evaluate on the way of a step, and at its end.
    """
    return any(window.start < points[-1] and points[0] < window.end for window in windows)


@contextlib.contextmanager
def told_if_idle(
    report: Callable[[str], None] | None, windows: Sequence[StepWindow], points: Sequence[float]
) -> Iterator[list[float]]:
    """Around a run: `report` is told if nothing is evaluated in the windows; `points` as in no_step_line.

    Before it where the run never comes to them; else after it, if nothing was added to the list that is yielded: what a
    sampler evaluates on the way of a step only the run knows.
    """
    acted: list[float] = []
    comes = comes_to(windows, points)
    if report is not None and not comes:
        report(no_step_line(windows, points))
    yield acted
    if report is not None and comes and not acted:
        report(no_step_line(windows, points))


def no_step_line(windows: Sequence[StepWindow], points: Sequence[float]) -> str:
    """What a user is told of edits in whose windows no step of a run lies.

    `points`: the progress at each of its sigmas, from that of the first step to where the last one ends.
    """
    spans: list[tuple[float, float]] = []
    for window in sorted(windows, key=lambda each: each.start):
        if spans and window.start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], window.end))
        else:
            spans.append((window.start, window.end))
    first, last = (f"{round(float(point), 2):g}" for point in (points[0], points[-1]))
    return (
        f"no effect from {first} to {last} of the noise schedule: no step of this run lies between "
        f"{' or '.join(f'{start:g} and {end:g}' for start, end in spans)}; move start and end, or change denoise"
    )
