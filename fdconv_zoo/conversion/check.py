"""Whether a converted model computes what the plain one did."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.run import Example, find_floating, observe, run

# Against what rounding each layer's output once does; luck plays a part.
_MARGIN = 4


def deviation_on_example(
    converted: nn.Module, layers: Mapping[nn.Module, str], example: Example, expected: Any
) -> float:
    """The largest deviation from what the plain model returned.

    Raises:
        RuntimeError: the model does not run, or not with the new layers.
    """
    try:
        calls, actual = observe(converted, layers, example)
    except Exception as error:
        raise RuntimeError(
            f"Once converted the model does not run on the example ({type(error).__name__}: {error}). "
            "It is plain again: exclude the layer that fails."
        ) from error
    if unused := [name for layer, name in layers.items() if layer not in calls.shapes]:
        raise RuntimeError(
            f"Once converted the model still computes with the plain {unused[0]!r}, which it must hold in a place of "
            "its own. It is plain again: exclude this layer."
        )
    return largest_deviation(actual, expected)


def check_rounding(
    model: nn.Module, layers: Collection[nn.Module], example: Example, expected: Any, deviation: float
) -> None:
    """Deep models amplify rounding, some beyond all measure: see what it does to the plain model.

    Raises:
        RuntimeError: the deviation is more than rounding.
    """
    eps = _coarsest_eps(layers, expected)

    def disturb(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        # A generator of its own: what the model itself draws stays the same.
        generator = torch.Generator(y.device).manual_seed(0)
        noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        return y + eps * y.abs().mean() * noise

    disturbed = run(model, example, layers, disturb)
    tolerance = max(tolerance_of(layers, expected), _MARGIN * largest_deviation(disturbed, expected))
    if deviation > tolerance or math.isinf(deviation):
        raise RuntimeError(
            f"Once converted the model deviates on the example by {deviation:.1e} of its largest output, where "
            f"rounding explains {tolerance:.1e}. It is plain again. If it sorts or samples what it computed, as "
            "detectors do, convert the part before that."
        )


def largest_deviation(actual: Any, expected: Any) -> float:
    """Between the floating tensors of two outputs, as a fraction of the largest finite number in each of them.

    Infinite where shapes differ, or the places that are not finite.
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


def tolerance_of(layers: Iterable[nn.Module], output: Any) -> float:
    """What rounding explains in any model: half of the digits."""
    return math.sqrt(_coarsest_eps(layers, output))


def _coarsest_eps(layers: Iterable[nn.Module], output: Any) -> float:
    """The relative distance of neighbouring numbers, of the coarsest at work in plain layers and the output."""
    weights = [layer.weight for layer in layers]
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (*weights, *find_floating(output)))
    uses_tf32 = torch.backends.cudnn.allow_tf32 and any(weight.is_cuda for weight in weights)
    return max(eps, 2**-10) if uses_tf32 else eps
