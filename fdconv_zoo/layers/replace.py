"""Replace layers of a model by FDConv layers that compute the same function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import (
    BandModulatedConv2d,
    FDConv2d,
    FDLinear,
    FrequencyBandModulation,
    KernelSpatialModulation,
)
from fdconv_zoo.layers.plain import PlainLayer, conv_arguments

# The settings of an FDConv layer that the plain layer does not have.
LAYER_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(FDConv2d).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)

PLAIN_KINDS = (nn.Conv2d, nn.Linear)
DYNAMIC_KINDS = (FDConv2d, FDLinear, BandModulatedConv2d)
DynamicLayer = FDConv2d | FDLinear | BandModulatedConv2d

Layer = TypeVar("Layer", bound=nn.Module)

# The submodules of these are parts of FDConv itself.
_OWN = (*DYNAMIC_KINDS, FrequencyBandModulation, KernelSpatialModulation)


def replace_layers(model: nn.Module, select: Callable[[str, PlainLayer], bool], **options: Any) -> list[str]:
    """Replace the selected ``nn.Conv2d`` and ``nn.Linear`` layers of a model by FDConv layers.

    The model computes the same function as before, up to float rounding.

    Args:
        model: changed in place.
        select: called with the name of each layer and the layer; returns True for layers to replace.
        **options: keyword-only arguments of :class:`FDConv2d`; linear layers ignore those that :class:`FDLinear` does
            not have.

    Returns:
        The names of the replaced layers.

    Raises:
        TypeError: a subclass has its own forward; the message names the layer.
        ValueError: an option does not fit a layer; the message names the layer. The model is not changed.
    """
    selected = {layer: names[0] for layer, names in find_plain_layers(model).items() if select(names[0], layer)}
    swap_layers(model, make_dynamic(selected, **options))
    return list(selected.values())


def find_layers(model: nn.Module, kinds: tuple[type[Layer], ...]) -> dict[Layer, list[str]]:
    """Find the layers of some kinds, each with all its names; parts of FDConv layers are left out."""
    found: dict[Layer, list[str]] = {}
    inside = None
    for name, module in model.named_modules(remove_duplicate=False):
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(module, kinds):
            found.setdefault(module, []).append(name)
        inside = None
        if isinstance(module, _OWN):
            inside = f"{name}." if name else ""
    return found


def find_plain_layers(model: nn.Module) -> dict[PlainLayer, list[str]]:
    """Find the convolutions and linear layers that are not FDConv layers, each with all its names."""
    found: dict[PlainLayer, list[str]] = find_layers(model, PLAIN_KINDS)
    return {layer: names for layer, names in found.items() if not isinstance(layer, DYNAMIC_KINDS)}


def make_dynamic(layers: Mapping[PlainLayer, str], **options: Any) -> dict[PlainLayer, FDConv2d | FDLinear]:
    """Build FDConv layers that compute the same function; layers that share a weight will share a spectrum.

    Args:
        layers: ``nn.Conv2d`` and ``nn.Linear`` layers with their names; they are not changed. Their biases are
            shared with the new layers.
        **options: as in :func:`replace_layers`.

    Raises:
        TypeError: a subclass has its own forward; the message names the layer.
        ValueError: an option does not fit a layer; the message names the layer.
    """
    dynamic: dict[PlainLayer, FDConv2d | FDLinear] = {}
    spectra: dict[Tensor, nn.Parameter] = {}
    for layer, name in layers.items():
        try:
            new = _to_dynamic(layer, options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} cannot become an FDConv layer: {error}") from error
        new.fdw.spectrum.requires_grad_(layer.weight.requires_grad)
        new.fdw.spectrum = spectra.setdefault(layer.weight, new.fdw.spectrum)
        new.bias = layer.bias
        dynamic[layer] = new
    return dynamic


def bare_twin(layer: nn.Module, dtype: torch.dtype) -> PlainLayer:
    """Make a plain layer of the same shape and settings on the meta device, without memory for its parameters.

    Args:
        layer: a plain or FDConv layer.
        dtype: dtype of the parameters.
    """
    factory: dict[str, Any] = {"device": "meta", "dtype": dtype}
    if isinstance(layer, nn.Linear | FDLinear):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, **factory)
    return nn.Conv2d(**conv_arguments(layer), **factory)


def swap_layers(model: nn.Module, replacements: Mapping[Any, nn.Module]) -> nn.Module:
    """Replace layers of a model in place, under all their names.

    Returns:
        The model, or its replacement if the model itself is replaced.
    """
    for module in list(model.modules()):
        # Not named_children(), which skips a layer's second name.
        for name, child in list(module._modules.items()):
            if child in replacements:
                module.register_module(name, replacements[child])
    return replacements.get(model, model)


def _to_dynamic(layer: PlainLayer, options: dict[str, Any]) -> FDConv2d | FDLinear:
    if isinstance(layer, nn.Conv2d):
        return FDConv2d.from_conv(layer, **options)
    known = inspect.signature(FDLinear).parameters
    return FDLinear.from_linear(layer, **{name: value for name, value in options.items() if name in known})
