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
        with autocast(x.device, dtype):
            model(x)

    return step


def training_step(
    model: nn.Module, x: Tensor | Sequence, dtype: torch.dtype, loss: Callable[..., Tensor] | None = None
) -> Callable[[], None]:
    """Forward pass under autocast to ``dtype``, backward pass and update, for the batch x.

    Args:
        model: in the mode to train in.
        x: a batch for the model; with a loss, the tuple of its batch.
        dtype: float32 is no autocast.
        loss: (model, *x) to a scalar; by default the sum of what the model returns.
    """
    # The weights must stay finite over all repeats, whatever the gradients: the step is short.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    device = next(model.parameters()).device

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            result = model(x) if loss is None else loss(model, *x)
        result.float().sum().backward()
        optimizer.step()

    return step


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast on a device; float32: none."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
