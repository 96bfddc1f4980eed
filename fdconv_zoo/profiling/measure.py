"""All costs of several models at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.profiling.checks import MismatchError, check_computation, plain_copy
from fdconv_zoo.profiling.memory import bytes_saved_for_backward, peak_bytes_of_step
from fdconv_zoo.profiling.timing import autocast, forward_step, time_by_turns, training_step


@dataclass(frozen=True)
class Profile:
    """The costs of one model; None: not measured.

    Attributes:
        parameters: Their number.
        multiply_adds, multiply_adds_without_low_passes: For one image, computed with torch's ordinary operations; see
            :func:`count_multiply_adds`.
        forward_seconds, forward_iqr_seconds: A batch in inference, median and interquartile range.
        train_seconds, train_iqr_seconds: A training step: forward, backward and SGD's update.
        saved_bytes: What the forward pass of a training step keeps, see :func:`bytes_saved_for_backward`.
        peak_bytes: On a GPU, see :func:`peak_bytes_of_step`.
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
    timed: bool = True,
    training: bool = True,
    repeats: int = 10,
) -> dict[str, Profile]:
    """Measure models that are to be compared, in one process and by turns.

    Args:
        models: By name, on x's device; their weights change a little.
        x: (B, C, H, W), float32.
        dtype: Of autocast; float32: none.
        compiled: Compile the models, in place, before time and memory are measured.
        timed: Measure time; each model is checked before, see :func:`check_computation`.
        training: Measure training steps and their memory too, unless not ``timed``.
        repeats: How often each time is taken.

    Raises:
        MismatchError: a model does not compute what it should; names it.
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

    if timed:
        forwards = [forward_step(model.eval(), x, dtype) for model in models.values()]
        for cost, (median, iqr) in zip(costs.values(), time_by_turns(forwards, repeats, x.device), strict=True):
            cost.update(forward_seconds=median, forward_iqr_seconds=iqr)

    if timed and training:
        steps = [training_step(model.train(), x, dtype) for model in models.values()]
        for cost, (median, iqr) in zip(costs.values(), time_by_turns(steps, repeats, x.device), strict=True):
            cost.update(train_seconds=median, train_iqr_seconds=iqr)
        for cost, model, step in zip(costs.values(), models.values(), steps, strict=True):
            with autocast(x.device, dtype):
                cost["saved_bytes"] = bytes_saved_for_backward(model, x)
            if x.device.type == "cuda":
                cost["peak_bytes"] = peak_bytes_of_step(model, x, step)
    return {name: Profile(**cost) for name, cost in costs.items()}
