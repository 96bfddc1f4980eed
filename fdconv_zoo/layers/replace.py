"""Swapping the layers of a model for FDConv layers of the same function."""

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

# The settings of an FDConv layer beyond those of the plain one it stands for.
LAYER_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(FDConv2d).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)

PLAIN_KINDS = (nn.Conv2d, nn.Linear)
DYNAMIC_KINDS = (FDConv2d, FDLinear, BandModulatedConv2d)
DynamicLayer = FDConv2d | FDLinear | BandModulatedConv2d

Layer = TypeVar("Layer", bound=nn.Module)

# What lies inside these is part of FDConv itself.
_OWN = (*DYNAMIC_KINDS, FrequencyBandModulation, KernelSpatialModulation)


def replace_layers(model: nn.Module, select: Callable[[str, PlainLayer], bool], **options: Any) -> list[str]:
    """Turn the selected ``nn.Conv2d`` and ``nn.Linear`` layers of a model into FDConv layers.

    The model computes the same function as before, to float rounding.

    Args:
        model: changed in place.
        select: called with each layer's name and the layer; true for those to replace.
        **options: of :class:`FDConv2d`; linear layers take those they know.

    Returns:
        The names of the replaced layers.

    Raises:
        TypeError: a subclass has its own forward; the message names the layer.
        ValueError: an option does not fit a layer; the message names the layer. The model is as it was.
    """
    selected = {layer: names[0] for layer, names in find_plain_layers(model).items() if select(names[0], layer)}
    swap_layers(model, make_dynamic(selected, **options))
    return list(selected.values())


def find_layers(model: nn.Module, kinds: tuple[type[Layer], ...]) -> dict[Layer, list[str]]:
    """The layers of some kinds, each with all its names, besides the parts of FDConv layers."""
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
    """The convolutions and linear layers that are not FDConv, with all their names."""
    found: dict[PlainLayer, list[str]] = find_layers(model, PLAIN_KINDS)
    return {layer: names for layer, names in found.items() if not isinstance(layer, DYNAMIC_KINDS)}


def make_dynamic(layers: Mapping[PlainLayer, str], **options: Any) -> dict[PlainLayer, FDConv2d | FDLinear]:
    """Build FDConv layers of the same function; weights that were one parameter are one parameter again.

    Args:
        layers: ``nn.Conv2d`` and ``nn.Linear`` layers with their names; they are not changed. Their biases are
            shared with the new layers.
        **options: of :class:`FDConv2d`; linear layers take those they know.

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
    """The plain layer of the same shape and settings, without memory for its parameters (on the meta device).

    Args:
        layer: plain or FDConv.
        dtype: of the twin's parameters.
    """
    factory: dict[str, Any] = {"device": "meta", "dtype": dtype}
    if isinstance(layer, nn.Linear | FDLinear):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, **factory)
    return nn.Conv2d(**conv_arguments(layer), **factory)


def swap_layers(model: nn.Module, replacements: Mapping[Any, nn.Module]) -> nn.Module:
    """Put layers in the places of others, under all their names.

    Returns:
        The model; its replacement, where it has one itself.
    """
    for module in list(model.modules()):
        # Not named_children(), which leaves out a layer's second name.
        for name, child in list(module._modules.items()):
            if child in replacements:
                module.register_module(name, replacements[child])
    return replacements.get(model, model)


def _to_dynamic(layer: PlainLayer, options: dict[str, Any]) -> FDConv2d | FDLinear:
    if isinstance(layer, nn.Conv2d):
        return FDConv2d.from_conv(layer, **options)
    known = inspect.signature(FDLinear).parameters
    return FDLinear.from_linear(layer, **{name: value for name, value in options.items() if name in known})
