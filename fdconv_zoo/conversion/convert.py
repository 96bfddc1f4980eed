"""Converting any torch model, checked on an example."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fdconv_zoo.conversion.check import check_rounding, deviation_on_example, tolerance_of
from fdconv_zoo.conversion.plan import make_plan
from fdconv_zoo.conversion.run import Example, find_floating, observe
from fdconv_zoo.conversion.select import Rules, select_layers
from fdconv_zoo.layers.replace import find_plain_layers, make_dynamic, swap_layers


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


def _swap_back(converted: nn.Module, dynamic: Mapping[nn.Module, nn.Module]) -> None:
    swap_layers(converted, {new: old for old, new in dynamic.items()})
