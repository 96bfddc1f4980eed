"""Steps to time, and timing them by turns."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 2  # rounds that are not timed: caches, the allocator, the choice of algorithms, compilation


def time_by_turns(steps: Sequence[Callable[[], None]], repeats: int, device: torch.device) -> list[tuple[float, float]]:
    """Time steps in the order A B A B ..., so that a machine that slows down slows all of them.

    Returns:
        Median and interquartile range of each step, in seconds, the device's work included.
    """

    def seconds(step: Callable[[], None]) -> float:
        start = time.perf_counter()
        step()
        _synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        for step in steps:
            seconds(step)
    times = torch.tensor([[seconds(step) for step in steps] for _ in range(repeats)], dtype=torch.float64)
    lower, median, upper = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    return list(zip(median.tolist(), (upper - lower).tolist(), strict=True))


def forward_step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Inference of the batch x under autocast to ``dtype``."""

    @torch.inference_mode()
    def step() -> None:
        with autocast(x, dtype):
            model(x)

    return step


def training_step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Forward pass under autocast to ``dtype``, backward pass and update, for the batch x."""
    # The weights must stay finite over all repeats, whatever the gradients: the step is short.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(x, dtype):
            logits = model(x)
        logits.float().sum().backward()
        optimizer.step()

    return step


def autocast(x: Tensor, dtype: torch.dtype) -> torch.autocast:
    """Autocast for x's device; float32: none."""
    enabled = dtype != torch.float32
    return torch.autocast(x.device.type, dtype=dtype if enabled else None, enabled=enabled)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
