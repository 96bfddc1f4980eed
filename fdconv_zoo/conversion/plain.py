"""Converts FDConv layers with neutral modulators back to plain layers."""

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import BandModulatedConv2d, FDLinear, FrequencyBandModulation, KernelSpatialModulation
from fdconv_zoo.layers.plain import PlainLayer
from fdconv_zoo.layers.replace import DYNAMIC_KINDS, DynamicLayer, bare_twin, find_layers, swap_layers


def to_plain(model: nn.Module) -> nn.Module:
    """Convert FDConv layers with neutral modulators back to ``nn.Conv2d`` and ``nn.Linear``, in place.

    The model computes the same function up to float rounding. A model of the zoo then has the same parameters as timm's
    plain model. Shared layers and weights stay shared, a frozen spectrum becomes a frozen weight, and biases are kept.

    Returns:
        The model; if the model itself is an FDConv layer, the plain layer.

    Raises:
        ValueError: the modulators of some layers are not neutral; the message names the first ones. The model is
            unchanged.
    """
    layers: dict[DynamicLayer, list[str]] = find_layers(model, DYNAMIC_KINDS)
    if moved := [names[0] for layer, names in layers.items() if not is_neutral(layer)]:
        raise ValueError(
            f"{len(moved)} of {len(layers)} FDConv layers have modulators that are not neutral, among them "
            f"{', '.join(map(repr, moved[:3]))}: no plain layer computes the same function. approximate_plain finds "
            "the nearest one."
        )
    weights: dict[Tensor, Tensor] = {}
    plain = {}
    for layer in layers:
        source = source_parameter(layer)
        if source not in weights:
            is_plain = isinstance(layer, BandModulatedConv2d)
            weights[source] = source if is_plain else make_weight(layer, neutral_kernel(layer))
        plain[layer] = make_plain(layer, weights[source])
    return swap_layers(model, plain)


def is_neutral(layer: nn.Module) -> bool:
    """Whether the modulators of an FDConv layer have no effect for any image."""
    heads: list[nn.Module | None] = []  # the last layers of the modulators
    for part in layer.modules():
        if isinstance(part, KernelSpatialModulation):
            if (branch := part.global_branch) is not None:
                heads += [branch.channel, branch.filter, branch.spatial, branch.kernel]
            if part.local_branch is not None:
                heads.append(part.local_branch.conv)
        elif isinstance(part, FrequencyBandModulation):
            heads.append(part.attention)
    return not any(parameter.any() for head in heads if head is not None for parameter in head.parameters())


@torch.no_grad()
def neutral_kernel(layer: DynamicLayer) -> Tensor:
    """Return the kernel (O, I/groups, a, b) of an FDConv layer before modulation."""
    return layer.weight if isinstance(layer, BandModulatedConv2d) else layer.fdw()[0]


def source_parameter(layer: DynamicLayer) -> Tensor:
    """Return the parameter from which an FDConv layer computes its kernel."""
    return layer.weight if isinstance(layer, BandModulatedConv2d) else layer.fdw.spectrum


def make_weight(layer: DynamicLayer, kernel: Tensor) -> nn.Parameter:
    """Make the weight of the plain layer that replaces an FDConv layer.

    Args:
        layer: an FDConv layer.
        kernel: (O, I/groups, a, b).
    """
    source = source_parameter(layer)
    kernel = kernel.flatten(1) if isinstance(layer, FDLinear) else kernel
    return nn.Parameter(kernel.to(source.dtype, copy=True).contiguous(), source.requires_grad)


def make_plain(layer: DynamicLayer, weight: Tensor) -> PlainLayer:
    """Make the plain layer that replaces an FDConv layer, with this weight and the layer's bias."""
    plain = bare_twin(layer, weight.dtype)
    plain.weight, plain.bias = weight, layer.bias
    return plain.train(layer.training)
