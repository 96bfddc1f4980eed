"""Reasons why a layer cannot be converted to FDConv, with remedies."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fdconv_zoo.layers.plain import PlainLayer, own_forward

# Children of torch's modules whose weights are read without calling the child.
_READ_DIRECTLY = {nn.MultiheadAttention: ("out_proj",), nn.TransformerEncoderLayer: ("linear1", "linear2")}


def obstacle_in_layer(layer: PlainLayer, min_channels: int, num_kernels: int) -> str | None:
    """Return why FDConv cannot replace this layer in any model; None if it can."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    parameters = dict(layer.named_parameters(recurse=False))
    if any(is_lazy(parameter) for parameter in parameters.values()):
        return "lazy and not initialised yet: run the model once"
    if getattr(layer, "weight", None) is None:
        return "no weight"
    if "weight" not in parameters or parameters.keys() - {"weight", "bias"} or layer._buffers or layer._modules:
        return (
            "its weight is a buffer or computed from other tensors (weight norm, pruning, an adapter): make it a "
            "parameter first"
        )
    if own := own_forward(layer, kind):
        return f"a {own}, whose forward differs from nn.{kind.__name__}'s"
    weight = layer.weight
    is_float = weight.is_floating_point() and weight.dtype.itemsize > 1  # torch cannot compute with float8
    if type(weight) is not nn.Parameter or not is_float:
        return f"its weight, a {type(weight).__name__} of {weight.dtype}, is not a float parameter (quantised?)"
    if any(hooks for name, hooks in vars(layer).items() if name.endswith("_hooks")):
        return "has hooks, which would be lost: remove them, and register them on the new layer"
    channels = (layer.in_channels, layer.out_channels) if isinstance(layer, nn.Conv2d) else weight.shape
    if min(channels) < min_channels:
        return f"fewer than min_channels={min_channels} input or output channels"
    out_channels, in_channels, height, width = (*weight.shape, 1, 1)[:4]
    if num_kernels > out_channels * height * (in_channels * width // 2 + 1):
        return f"fewer Fourier coefficients than num_kernels={num_kernels}"
    return None


def obstacles_in_parents(model: nn.Module) -> dict[nn.Module, str]:
    """Find the layers that their parents, modules of torch, do not call."""
    return {
        getattr(parent, child): f"nn.{kind.__name__} reads its weight without calling it"
        for parent in model.modules()
        for kind, children in _READ_DIRECTLY.items()
        if isinstance(parent, kind)
        for child in children
        if child in parent._modules
    }


def obstacle_in_calls(layer: PlainLayer, shapes: list[torch.Size] | None) -> str | None:
    """Return why FDConv does not support the layer's inputs, from their shapes in an example; None if it does."""
    if shapes is None:
        return "not called by the example: unused, or its parent reads its weight directly"
    layout, ndims = ("(B, C, H, W)", {4}) if isinstance(layer, nn.Conv2d) else ("(B, N, C) or (B, H, W, C)", {3, 4})
    other = {len(shape) for shape in shapes} - ndims
    return f"its input has {min(other)} axes: FDConv needs {layout}" if other else None


def obstacles_in_ties(
    model: nn.Module, chosen: Collection[PlainLayer], name_of: dict[nn.Module, str]
) -> dict[PlainLayer, str]:
    """Find the chosen layers that share their weight with a module that is not chosen."""
    users: dict[Tensor, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    found = {}
    for layer in chosen:
        others = [name_of[module] for module in users[layer.weight] if module not in chosen]
        if others:
            found[layer] = f"shares its weight with {others[0]!r}, which stays plain"
    return found


def classifier_layers(model: nn.Module) -> set[nn.Module]:
    """Return the modules of a timm model's classifier; empty for other models."""
    get_classifier = getattr(model, "get_classifier", None)
    parts = get_classifier() if callable(get_classifier) else ()
    parts = parts if isinstance(parts, list | tuple) else (parts,)
    return {layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()}
