"""Converts a torch model's layers to FDConv, checked on an example."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fdconv_zoo.conversion.deviation import check_rounding, deviation_on_example, tolerance_of
from fdconv_zoo.conversion.plan import make_plan
from fdconv_zoo.conversion.run import Example, find_floating, observe_plain_layers
from fdconv_zoo.conversion.select import Rules, select_layers
from fdconv_zoo.layers.plain import PlainLayer
from fdconv_zoo.layers.replace import make_dynamic, swap_layers


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
    """Convert layers of any torch model to FDConv layers, in place, without changing what it computes.

    The converted model computes the same function up to float rounding. All layers of ``types`` that pass ``include``,
    ``exclude``, ``min_channels`` and ``select`` are converted, except timm's classifier and layers that FDConv does not
    support (``dry_run=True`` lists the reasons). Linear layers are converted only if this is safe: if the example shows
    that their input is (B, N, C) or (B, H, W, C) with B images, or if ``include`` or ``select`` asks for them.

    Shared layers and shared weights stay shared. A frozen weight becomes a frozen spectrum, with trainable modulators.
    Biases are kept; spectra and modulators are new parameters, so create the optimizer after the conversion.

    Args:
        model: any module, or a single layer; FDConv layers in it are left alone.
        include: convert only layers whose names match this pattern, or one of several (``"layer4.*.conv2"``, as in
            :mod:`fnmatch`), even if they belong to the classifier or process windows of an image.
        exclude: skip layers whose names match this pattern, or one of several.
        types: ``nn.Conv2d``, ``nn.Linear``, or both.
        min_channels: skip layers with fewer input or output channels. The paper converts layers with more than 16.
        select: called with each layer's name and the layer; layers for which it returns false are skipped.
        example: an input of the model: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
            The model runs on it before and after the conversion, to observe the layers' inputs and compare the outputs.
        dry_run: only print the plan; change nothing.
        **options: keyword-only arguments of :class:`fdconv_zoo.FDConv2d` (``num_kernels``, ``fbm``, ...). Linear layers
            ignore those of FBM.

    Returns:
        The model; if the model itself is a converted layer, the new layer.

    Raises:
        TypeError: an option is unknown, or a type of layer has no FDConv counterpart.
        ValueError: nothing can be converted, ``include`` names a layer (without wildcards) that cannot be converted,
            an option does not fit a layer, or the model's output has no floating-point tensors to compare.
        RuntimeError: the model does not run on the example, or computes something else after the conversion.

    After an error the model is unchanged.
    """
    rules = Rules(include, exclude, types, min_channels, select)
    calls, expected = (None, None) if example is None else observe_plain_layers(model, example)
    if example is not None and not find_floating(expected):
        raise ValueError(f"The model's output, a {type(expected).__name__}, has no floating-point tensors to compare.")
    if dry_run:
        print(make_plan(model, rules, calls, options))
        return model
    chosen, _ = select_layers(model, rules, calls, options)
    dynamic = make_dynamic({layer: names[0] for layer, names in chosen.items()}, **options)
    converted = swap_layers(model, dynamic)
    if example is not None:
        try:
            deviation = deviation_on_example(
                converted, {dynamic[layer]: names[0] for layer, names in chosen.items()}, example, expected
            )
        except BaseException:
            _swap_back(converted, dynamic)
            raise
        if deviation > tolerance_of(dynamic, expected):
            _swap_back(converted, dynamic)
            check_rounding(model, dynamic, example, expected, deviation)
            swap_layers(model, dynamic)
    return converted


def _swap_back(converted: nn.Module, dynamic: Mapping[PlainLayer, nn.Module]) -> None:
    swap_layers(converted, {new: old for old, new in dynamic.items()})
