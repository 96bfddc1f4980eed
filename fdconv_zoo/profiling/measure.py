"""Measures all costs of several models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.errors import MismatchError
from fdconv_zoo.profiling.checks import check_computation, plain_copy
from fdconv_zoo.profiling.graphs import capture, graphable_step
from fdconv_zoo.profiling.memory import bytes_saved_for_backward, peak_bytes_of_step
from fdconv_zoo.profiling.timing import autocast, forward_step, time_interleaved, training_step


@dataclass(frozen=True)
class Profile:
    """Costs of one model. Figures that were not measured are None.

    Attributes:
        parameters: Number of parameters.
        multiply_adds, multiply_adds_without_low_passes: For one image, with torch's own operations; see
            :func:`count_multiply_adds`.
        forward_seconds, forward_iqr_seconds: Inference of a batch, median and interquartile range.
        train_seconds, train_iqr_seconds: A training step (forward, backward, SGD update), likewise.
        saved_bytes: Memory kept for the backward pass, see :func:`bytes_saved_for_backward`.
        peak_bytes: Peak memory of a training step on a GPU, see :func:`peak_bytes_of_step`.
    """

    parameters: int
    multiply_adds: int
    multiply_adds_without_low_passes: int
    forward_seconds: float | None = None
    forward_iqr_seconds: float | None = None
    train_seconds: float | None = None
    train_iqr_seconds: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None


def profile(
    models: Mapping[str, nn.Module],
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    cuda_graphs: bool = False,
    timed: bool = True,
    training: bool = True,
    repeats: int = 10,
) -> dict[str, Profile]:
    """Measure the costs of models for comparison, with interleaved timings in one process.

    Args:
        models: By name, on x's device; their weights change slightly.
        x: (B, C, H, W), float32.
        dtype: Autocast dtype; float32 disables autocast.
        compiled: Compile the models, in place, before measuring time and memory.
        cuda_graphs: Time steps that are captured into CUDA graphs and replayed; needs a GPU.
        timed: Measure time, after checking each model with :func:`check_computation`.
        training: If ``timed``, also measure training steps and their memory.
        repeats: Number of timings of each step.

    Raises:
        MismatchError: a model computes wrong results; names the model.
    """
    costs: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        reference = plain_copy(model)
        counts = count_multiply_adds(reference, x[:1])
        costs[name] = dict(
            parameters=count_parameters(model), multiply_adds=counts[0], multiply_adds_without_low_passes=counts[1]
        )
        if compiled and timed:
            model.compile()
        if timed:
            try:
                check_computation(model, reference, x, dtype=dtype, training=training)
            except MismatchError as error:
                raise MismatchError(f"{name}: {error}") from error

    def replayed(model: nn.Module, training: bool) -> Callable[[], object]:
        return capture(graphable_step(model, x, dtype, training=training))[0]

    if timed:
        if cuda_graphs:
            forwards = [replayed(model, False) for model in models.values()]
        else:
            forwards = [forward_step(model.eval(), x, dtype) for model in models.values()]
        for cost, (median, iqr) in zip(costs.values(), time_interleaved(forwards, repeats, x.device), strict=True):
            cost.update(forward_seconds=median, forward_iqr_seconds=iqr)

    if timed and training:
        steps = [training_step(model.train(), x, dtype) for model in models.values()]
        timed_steps = [replayed(model, True) for model in models.values()] if cuda_graphs else steps
        for cost, (median, iqr) in zip(costs.values(), time_interleaved(timed_steps, repeats, x.device), strict=True):
            cost.update(train_seconds=median, train_iqr_seconds=iqr)
        for cost, model, step in zip(costs.values(), models.values(), steps, strict=True):
            with autocast(x.device, dtype):
                cost["saved_bytes"] = bytes_saved_for_backward(model, x)
            if x.device.type == "cuda":
                cost["peak_bytes"] = peak_bytes_of_step(model, x, step)
    return {name: Profile(**cost) for name, cost in costs.items()}
