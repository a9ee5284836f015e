"""Time and memory of one model evaluation (conditioned and unconditioned) inside the host's own sampler machinery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch.profiler import ProfilerActivity, profile, record_function

_LAYER = "attention layer"


@dataclass(frozen=True)
class Job:
    """What every evaluation of one shape has in common."""

    positive: list
    negative: list
    noise: torch.Tensor  # float32 [1, C, H, W]
    cfg: float
    layers: Sequence[torch.nn.Module]  # looked at on their own too
    device: torch.device


@dataclass(frozen=True)
class Time:
    """Seconds. Busy: CPU time of this process, or on a GPU the time between two events of its stream."""

    wall: float
    busy: float
    layers: float  # the part of `busy` inside the attention layers


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    peak: int  # the most that was alive at once, beyond what was alive before: weights and inputs do not count
    largest: int  # the largest single allocation inside the attention layers


def time_of(job: Job, model: Any) -> Time:
    """Time one evaluation."""
    found: list[Time] = []
    _evaluate(job, model, _timed(job, found))
    return found[0]


def memory_of(job: Job, model: Any) -> Memory:
    """Watch the allocations of one evaluation. Slows it down, so it is not timed."""
    found: list[Memory] = []
    _evaluate(job, model, _watched(job, found))
    return found[0]


def _evaluate(job: Job, model: Any, around: AbstractContextManager) -> None:
    """One evaluation, a quarter into the schedule, inside `around`; setting up and ending the run stay outside."""

    def once(evaluate: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
        with around:
            evaluate(x, sigmas[0] * x.new_ones(x.shape[0]), **extra_args)
        return x

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 20)[5:7]
    comfy.sample.sample_custom(
        model,
        job.noise,
        job.cfg,
        comfy.samplers.KSAMPLER(once),
        sigmas,
        job.positive,
        job.negative,
        torch.zeros_like(job.noise),
        disable_pbar=True,
        seed=0,
    )


@contextmanager
def _timed(job: Job, found: list[Time]) -> Iterator[None]:
    marks: list[Any] = []

    def note(*_: Any) -> None:
        marks.append(_mark(job.device))

    with _hooked(job.layers, note, note):
        _synchronize(job.device)
        start, wall = _mark(job.device), time.perf_counter()
        yield
        end = _mark(job.device)
        _synchronize(job.device)
        wall = time.perf_counter() - wall
    layers = sum(_seconds(a, b) for a, b in zip(marks[::2], marks[1::2]))
    found.append(Time(wall, _seconds(start, end), layers))


@contextmanager
def _watched(job: Job, found: list[Memory]) -> Iterator[None]:
    windows: list[Any] = []

    def enter(*_: Any) -> None:
        windows.append(record_function(_LAYER).__enter__())

    def leave(*_: Any) -> None:
        windows.pop().__exit__(None, None, None)

    on_gpu = job.device.type == "cuda"
    if on_gpu:
        _synchronize(job.device)
        torch.cuda.reset_peak_memory_stats(job.device)
        before = torch.cuda.memory_allocated(job.device)
    # The profiler hears every request to torch's allocators, temporaries inside an operator included.
    with (
        _hooked(job.layers, enter, leave),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler,
    ):
        yield
    peak, largest = _allocations(profiler.profiler.kineto_results.events(), "CUDA" if on_gpu else "CPU")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(job.device) - before
    found.append(Memory(peak, largest))


def _allocations(events: Sequence[Any], device: str) -> tuple[int, int]:
    """(peak of the live bytes, largest single allocation inside an attention layer), both in bytes."""
    windows = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == _LAYER]
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.device_type().name == device
    )
    live = peak = largest = 0
    for moment, size in changes:
        live += size
        peak = max(peak, live)
        if size > largest and any(start <= moment <= end for start, end in windows):
            largest = size
    return peak, largest


@contextmanager
def _hooked(layers: Sequence[torch.nn.Module], before: Callable, after: Callable) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return time.process_time()


def _seconds(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
