"""Forcing the path that FDConv layers compute on, and what they keep on it."""

from typing import get_args

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.fdconv import FDConv2d, FDLinear
from fdconv_zoo.layers.ksm import ChannelConv1d, GlobalBranch, StarReLU
from fdconv_zoo.ops import Path

# The modules that compute on a path, and not only through others.
_COMPUTED = FDConv2d | FDLinear | FrequencyBandModulation | GlobalBranch | StarReLU | ChannelConv1d


def set_path(model: nn.Module, path: Path | None) -> None:
    """Force how all FDConv layers of a model compute; ``print(model)`` shows it.

    Args:
        model: changed in place, its function is not.
        path: one of those that ``fdconv_zoo.ops.choose_path`` describes. None: the choice is left to the layers.

    Raises:
        ValueError: an unknown path.
    """
    if path is not None and path not in get_args(Path):
        raise ValueError(f"path is {path!r}: it must be None or one of {get_args(Path)}.")
    for module in model.modules():
        if isinstance(module, _COMPUTED):
            module.path = path


def keep_kernels(model: nn.Module, keep: bool = True) -> None:
    """Keep the assembled kernels of all FDConv layers for backward, instead of assembling them again there.

    A backward pass then launches and reads less. In return, the kernels of all images stay in memory from forward to
    backward, in the type that the convolution is computed in. This acts on the path ``"triton"`` alone, where gradients
    are recorded; other paths ignore it. In half precision, the gradients of KSM's modulators are made from rounded
    kernels. ``print(model)`` shows it.

    Args:
        model: changed in place, its function is not.
        keep: False: assemble them again, as by default.
    """
    for module in model.modules():
        if isinstance(module, FDConv2d | FDLinear):
            module.keeps_kernels = keep
