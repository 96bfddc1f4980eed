"""Times steps on the device and on the host, interleaved."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

ROUNDS = (5, 40)  # at least and at most


class Times(NamedTuple):
    """Medians of a step, in milliseconds.

    Attributes:
        device: time between the step's begin and end on the device, including gaps.
        host: time until the host has enqueued the step. If the device takes no longer, the GPU waits for the host.
    """

    device: float
    host: float


def first_call(step: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of a step's first call, including compilation and the choice of algorithms."""
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def interleave(steps: Mapping[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, Times]:
    """Time steps in the order A B A B ..., for about ``seconds`` in all, after one call of each that is not timed."""
    for step in steps.values():
        step()
    synchronize(device)
    times: dict[str, list[Times]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.monotonic() > end:
            break
        for name, step in steps.items():
            times[name].append(_time(step, device))
    return {name: Times(*map(median, zip(*taken, strict=True))) for name, taken in times.items()}


def _time(step: Callable[[], object], device: torch.device) -> Times:
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        elapsed = 1e3 * (time.perf_counter() - start)
        return Times(elapsed, elapsed)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start = time.perf_counter()
    begin.record()
    step()
    end.record()
    host = 1e3 * (time.perf_counter() - start)
    end.synchronize()
    return Times(begin.elapsed_time(end), host)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
