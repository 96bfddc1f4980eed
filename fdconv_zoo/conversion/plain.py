"""From FDConv layers whose modulators are neutral back to plain layers."""

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import BandModulatedConv2d, FDLinear, FrequencyBandModulation, KernelSpatialModulation
from fdconv_zoo.layers.replace import DYNAMIC_KINDS, bare_twin, find_layers, swap_layers


def to_plain(model: nn.Module) -> nn.Module:
    """Turn FDConv layers with neutral modulators back into ``nn.Conv2d`` and ``nn.Linear``, in place.

    The model computes the same function, to float rounding. A model of the zoo then has the parameters of timm's
    plain one. Shared layers and weights stay shared, a frozen spectrum becomes a frozen weight, biases are kept.

    Returns:
        The model; the plain layer, where the model is itself an FDConv layer.

    Raises:
        ValueError: the modulators of some layers are not neutral any more; names layers. The model is as it was.
    """
    layers = find_layers(model, DYNAMIC_KINDS)
    if moved := [names[0] for layer, names in layers.items() if not is_neutral(layer)]:
        raise ValueError(
            f"{len(moved)} of {len(layers)} FDConv layers have modulators that are not neutral, among them "
            f"{', '.join(map(repr, moved[:3]))}: no plain layer computes the same. approximate_plain finds the nearest."
        )
    weights: dict[nn.Parameter, nn.Parameter] = {}
    plain = {}
    for layer in layers:
        own = own_weight(layer)
        if own not in weights:
            weights[own] = own if isinstance(layer, BandModulatedConv2d) else make_weight(layer, neutral_kernel(layer))
        plain[layer] = make_plain(layer, weights[own])
    return swap_layers(model, plain)


def is_neutral(layer: nn.Module) -> bool:
    """Whether no modulator of an FDConv layer changes anything, whatever the image."""
    last: list[nn.Module | None] = []
    for part in layer.modules():
        if isinstance(part, KernelSpatialModulation):
            if (branch := part.global_branch) is not None:
                last += [branch.channel, branch.filter, branch.spatial, branch.kernel]
            if part.local_branch is not None:
                last.append(part.local_branch.conv)
        elif isinstance(part, FrequencyBandModulation):
            last.append(part.attention)
    return not any(parameter.any() for module in last if module is not None for parameter in module.parameters())


@torch.no_grad()
def neutral_kernel(layer: nn.Module) -> Tensor:
    """The kernel (O, I/groups, a, b) of an FDConv layer as its modulators find it."""
    return layer.weight if isinstance(layer, BandModulatedConv2d) else layer.fdw()[0]


def own_weight(layer: nn.Module) -> nn.Parameter:
    """The parameter an FDConv layer's kernel is made from."""
    return layer.weight if isinstance(layer, BandModulatedConv2d) else layer.fdw.spectrum


def make_weight(layer: nn.Module, kernel: Tensor) -> nn.Parameter:
    """The weight of the plain layer that stands for an FDConv layer.

    Args:
        kernel: (O, I/groups, a, b).
    """
    own = own_weight(layer)
    kernel = kernel.flatten(1) if isinstance(layer, FDLinear) else kernel
    return nn.Parameter(kernel.to(own.dtype, copy=True).contiguous(), own.requires_grad)


def make_plain(layer: nn.Module, weight: nn.Parameter) -> nn.Conv2d | nn.Linear:
    """The plain layer in an FDConv layer's place, with this weight and the layer's own bias."""
    plain = bare_twin(layer, weight.dtype)
    plain.weight, plain.bias = weight, layer.bias
    return plain.train(layer.training)
