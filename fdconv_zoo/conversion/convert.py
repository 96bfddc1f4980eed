"""Converting any torch model, checked on an example."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.plan import make_plan
from fdconv_zoo.conversion.replace import find_plain_layers, make_dynamic, swap_layers
from fdconv_zoo.conversion.run import Example, find_floating, observe
from fdconv_zoo.conversion.select import Rules, select_layers


def convert_model(
    model: nn.Module,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    types: type[nn.Module] | Sequence[type[nn.Module]] = (nn.Conv2d, nn.Linear),
    min_channels: int = 17,
    select: Callable[[str, nn.Module], bool] | None = None,
    example: Example | None = None,
    dry_run: bool = False,
    **options: Any,
) -> nn.Module:
    """Turn layers of any torch model into FDConv layers, in place; it computes the same function, to float rounding.

    All layers of ``types`` are converted that pass ``include``, ``exclude``, ``min_channels`` and ``select``, besides
    those that cannot be (``dry_run=True`` shows the reasons) and timm's classifier. A linear layer is converted only
    where it is safe: where the example showed that it is given (B, N, C) or (B, H, W, C) with images as B, or where the
    user asks for it with ``include`` or ``select``.

    Shared layers and shared weights stay shared. A frozen weight becomes a frozen spectrum, with modulators that
    learn. The new layers' biases are the old ones'; spectrum and modulators are new parameters: make the optimizer
    afterwards.

    Args:
        model: any module, also a single layer; already converted layers are left alone.
        include: take only layers whose name matches this pattern, or one of several (``"layer4.*.conv2"``, as in
            :mod:`fnmatch`). A layer named so is taken even if it is the classifier, or looks at windows.
        exclude: leave out layers whose name matches this pattern, or one of several.
        types: ``nn.Conv2d``, ``nn.Linear``, or both.
        min_channels: leave out layers with fewer input or output channels; the paper leaves 16 and less plain.
        select: called with each layer's name and the layer; leave out those where it is false.
        example: an input of the model: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
            With it the model runs before and after, to see what each layer is given and that the outputs agree.
        dry_run: print what would be done, change nothing.
        **options: of :class:`fdconv_zoo.FDConv2d` (``num_kernels``, ``fbm``, ...); linear layers take those they know.

    Returns:
        The model; the new layer, where the model is itself a layer that was converted.

    Raises:
        TypeError: an unknown option, or a type of layer that has no FDConv counterpart.
        ValueError: nothing can be converted; or ``include`` names a layer, without wildcards, that cannot be; or an
            option does not fit; or there is nothing to compare in what the model returns for the example.
        RuntimeError: the converted model does not compute the same on the example, or does not run.

    After an error the model is as it was.
    """
    rules = Rules(include, exclude, types, min_channels, select)
    calls, expected = (None, None) if example is None else observe(model, find_plain_layers(model), example)
    if example is not None and not find_floating(expected):
        raise ValueError(f"The model's output, a {type(expected).__name__}, holds no floating tensors to compare.")
    if dry_run:
        print(make_plan(model, rules, calls, options))
        return model
    chosen, _ = select_layers(model, rules, calls, options)
    dynamic = make_dynamic({layer: names[0] for layer, names in chosen.items()}, **options)
    converted = swap_layers(model, dynamic)
    if example is not None:
        try:
            _check(converted, {dynamic[layer]: names[0] for layer, names in chosen.items()}, example, expected)
        except BaseException:
            swap_layers(converted, {new: old for old, new in dynamic.items()})
            raise
    return converted


def _check(model: nn.Module, layers: Mapping[nn.Module, str], example: Example, expected: Any) -> None:
    """Compare with what the plain model returned.

    Raises:
        RuntimeError: it is something else, or a layer has no part in it.
    """
    try:
        calls, actual = observe(model, layers, example)
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
    deviation = largest_deviation(actual, expected)
    tolerance = _tolerance(layers, actual)
    if deviation > tolerance:
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


def _tolerance(layers: Iterable[nn.Module], output: Any) -> float:
    """Half the digits of the coarsest numbers at work: deep models amplify the rounding of each layer."""
    weights = [layer.fdw.spectrum for layer in layers]
    coarsest = max(torch.finfo(tensor.dtype).eps for tensor in (*weights, *find_floating(output)))
    if torch.backends.cudnn.allow_tf32 and any(weight.is_cuda for weight in weights):
        coarsest = max(coarsest, 2**-10)
    return math.sqrt(coarsest)
