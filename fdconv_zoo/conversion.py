"""From plain layers to FDConv layers, in place and with the same function."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fdconv_zoo.layers import FDConv2d, FDLinear

# The settings of an FDConv layer beyond those of the plain one it stands for.
LAYER_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(FDConv2d).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)


def replace_layers(model: nn.Module, select: Callable[[str, nn.Module], bool], **options: Any) -> list[str]:
    """Turn the selected ``nn.Conv2d`` and ``nn.Linear`` layers of a model into FDConv layers.

    The model computes the same function as before, to float rounding.

    Args:
        model: changed in place.
        select: called with each layer's name and the layer; true for those to replace.
        **options: of :class:`FDConv2d`; linear layers take those they know.

    Returns:
        The names of the replaced layers.

    Raises:
        ValueError: an option does not fit a layer; the message names the layer.
    """
    selected = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and select(name, layer)
    ]
    for name, layer in selected:
        try:
            dynamic = _to_dynamic(layer, options)
        except ValueError as error:
            raise ValueError(f"{name} cannot become an FDConv layer: {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, dynamic)
    return [name for name, _ in selected]


def _to_dynamic(layer: nn.Conv2d | nn.Linear, options: dict[str, Any]) -> FDConv2d | FDLinear:
    if isinstance(layer, nn.Conv2d):
        return FDConv2d.from_conv(layer, **options)
    known = inspect.signature(FDLinear).parameters
    return FDLinear.from_linear(layer, **{name: value for name, value in options.items() if name in known})
