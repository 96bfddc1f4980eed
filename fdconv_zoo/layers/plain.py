"""The plain layers that FDConv stands for."""

from typing import Any

from torch import nn

_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def conv_arguments(conv: nn.Module) -> dict[str, Any]:
    """What builds an ``nn.Conv2d`` of the shape and settings of this one, or of the one this layer stands for."""
    return {name: getattr(conv, name) for name in _CONV_ARGUMENTS} | {"bias": conv.bias is not None}
