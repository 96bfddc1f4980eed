"""Makes steps of inference and training, and times them interleaved."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 2  # untimed rounds, for caches, the allocator, the choice of algorithms and compilation


def time_interleaved(
    steps: Sequence[Callable[[], None]], repeats: int, device: torch.device
) -> list[tuple[float, float]]:
    """Time steps in the order A B A B ..., so that a slowdown of the machine affects all of them.

    Args:
        steps: functions to time.
        repeats: number of timings of each step.
        device: the device to synchronize with after each step.

    Returns:
        Median and interquartile range of each step, in seconds.
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
    """Make a step of inference on the batch x, under autocast to ``dtype`` (float32 disables autocast)."""

    @torch.inference_mode()
    def step() -> None:
        with autocast(x.device, dtype):
            model(x)

    return step


def training_step(
    model: nn.Module, x: Tensor | Sequence, dtype: torch.dtype, loss: Callable[..., Tensor] | None = None
) -> Callable[[], None]:
    """Make a training step: forward pass under autocast, backward pass and SGD update.

    Args:
        model: in the mode to train in.
        x: input of the model; with ``loss``, the sequence of its further arguments.
        dtype: autocast dtype; float32 disables autocast.
        loss: called with the model and ``*x``; returns a scalar. Default: the sum of the model's output.
    """
    # A tiny learning rate keeps the weights finite over all repeats, whatever the gradients.
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
    """Return autocast to ``dtype`` on a device; disabled for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
