"""Checks that a converted model computes the same function as the plain one, up to rounding."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.run import Example, failing_module, find_floating, observe, run
from fdconv_zoo.layers.plain import PlainLayer

# Allowed multiple of the deviation that rounding each layer's output once causes in a single random draw.
_MARGIN = 4


def deviation_on_example(
    converted: nn.Module, layers: Mapping[nn.Module, str], example: Example, expected: Any
) -> float:
    """Compute the largest deviation from the plain model's output.

    Args:
        converted: the model with its new layers.
        layers: the new layers, with their names.
        example: an input of the model.
        expected: the plain model's output.

    Raises:
        RuntimeError: the model does not run, or does not call a new layer; the message names the layer.
    """
    try:
        calls, actual = observe(converted, layers, example)
    except Exception as error:
        raise RuntimeError(
            f"After conversion the model does not run on the example: {failing_module(converted, error)} raises "
            f"{type(error).__name__} ({error}). The conversion was undone; exclude the layer that fails."
        ) from error
    if unused := [name for layer, name in layers.items() if layer not in calls.shapes]:
        raise RuntimeError(
            f"After conversion the model still uses the plain layer {unused[0]!r}, which it must hold outside its "
            "submodules. The conversion was undone; exclude this layer."
        )
    return largest_deviation(actual, expected)


def check_rounding(
    model: nn.Module, layers: Collection[PlainLayer], example: Example, expected: Any, deviation: float
) -> None:
    """Check that rounding explains a deviation: measure how far rounding changes the plain model's output.

    Deep models amplify rounding errors, some of them without bound, so no fixed tolerance fits all models.

    Args:
        model: the plain model.
        layers: its layers that were converted.
        example: an input of the model.
        expected: the plain model's output.
        deviation: deviation of the converted model, from :func:`deviation_on_example`.

    Raises:
        RuntimeError: the deviation is larger than rounding explains.
    """
    eps = _coarsest_eps(layers, expected)

    def disturb(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        # A separate generator leaves the model's own random numbers unchanged.
        generator = torch.Generator(y.device).manual_seed(0)
        noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        return y + eps * y.abs().mean() * noise

    disturbed = run(model, example, layers, disturb)
    tolerance = max(tolerance_of(layers, expected), _MARGIN * largest_deviation(disturbed, expected))
    if deviation > tolerance or math.isinf(deviation):
        raise RuntimeError(
            f"After conversion the model deviates on the example by {deviation:.1e} of its largest output; rounding "
            f"explains only {tolerance:.1e}. The conversion was undone. If the model sorts or samples its "
            "predictions, as detectors do, convert only the part before that."
        )


def largest_deviation(actual: Any, expected: Any) -> float:
    """Compute the largest deviation between the floating-point tensors of two outputs.

    Returns:
        The largest difference in any tensor, as a fraction of the tensor's largest finite value. Infinite if shapes
        or non-finite values differ.
    """
    actual, expected = find_floating(actual), find_floating(expected)
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return math.inf
    return max(_deviation(a.cpu().double(), b.cpu().double()) for a, b in zip(actual, expected, strict=True))


def _deviation(actual: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    if not actual[finite].isfinite().all() or not torch.allclose(actual[~finite], expected[~finite], equal_nan=True):
        return math.inf
    difference = (actual - expected)[finite].abs()
    return (difference.max() / expected[finite].abs().max()).item() if difference.any() else 0.0


def tolerance_of(layers: Iterable[PlainLayer], output: Any) -> float:
    """Return the deviation that is accepted as rounding in any model: half of the digits."""
    return math.sqrt(_coarsest_eps(layers, output))


def _coarsest_eps(layers: Iterable[PlainLayer], output: Any) -> float:
    """Return the machine epsilon of the coarsest dtype among the plain layers' weights and the output."""
    weights = [layer.weight for layer in layers]
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (*weights, *find_floating(output)))
    uses_tf32 = torch.backends.cudnn.allow_tf32 and any(weight.is_cuda for weight in weights)
    return max(eps, 2**-10) if uses_tf32 else eps
