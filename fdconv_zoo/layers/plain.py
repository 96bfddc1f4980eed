"""The plain layers that FDConv layers replace."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

PlainLayer = nn.Conv2d | nn.Linear

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
    """Return the arguments for an ``nn.Conv2d`` with the settings of a plain or FDConv layer."""
    return {name: getattr(conv, name) for name in _CONV_ARGUMENTS} | {"bias": conv.bias is not None}


def example_size(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """Return a height and a width that are large enough for a convolution's kernel."""
    height, width = (9 + rate * (taps - 1) for rate, taps in zip(dilation, kernel_size, strict=True))
    return height, width


def check_plain(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Check that a layer computes what ``kind`` computes.

    Raises:
        TypeError: the layer is of another type, of a subclass with its own ``forward``, or lazy and not initialized.
    """
    if not isinstance(layer, kind):
        raise TypeError(f"Expected an nn.{kind.__name__}, got {_qualified_name(layer)}: FDConv cannot replace it.")
    if any(map(is_lazy, layer.parameters(recurse=False))):
        raise TypeError(
            f"The {_qualified_name(layer)} is not initialized yet: run it once, or give its input channels."
        )
    own = own_forward(layer, kind)
    if own is not None:
        raise TypeError(f"{own} has its own forward, unlike nn.{kind.__name__}: FDConv cannot replace it.")


def own_forward(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Return the qualified class name of a layer that does not compute what ``kind`` computes; None if it does.

    Args:
        layer: an instance of ``kind``.
        kind: ``nn.Conv2d`` or ``nn.Linear``.
    """
    methods = ("forward", "_conv_forward") if kind is nn.Conv2d else ("forward",)
    if "forward" in vars(layer) or any(getattr(type(layer), name) is not getattr(kind, name) for name in methods):
        return _qualified_name(layer)
    return None


def _qualified_name(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
