"""Set the path that FDConv layers compute on, and whether they keep kernels for the backward pass."""

from typing import get_args

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.fdconv import FDConv2d, FDLinear
from fdconv_zoo.layers.ksm import ChannelConv1d, GlobalBranch, StarReLU
from fdconv_zoo.ops import Path

# The modules that themselves compute on a path, not only through submodules.
_COMPUTED = FDConv2d | FDLinear | FrequencyBandModulation | GlobalBranch | StarReLU | ChannelConv1d


def set_path(model: nn.Module, path: Path | None) -> None:
    """Set the path on which all FDConv layers of a model compute; ``print(model)`` shows it.

    Args:
        model: changed in place; it computes the same function on every path.
        path: one of the paths that ``fdconv_zoo.ops.choose_path`` describes. None: the layers choose.

    Raises:
        ValueError: an unknown path.
    """
    if path is not None and path not in get_args(Path):
        raise ValueError(f"path is {path!r}: it must be None or one of {get_args(Path)}.")
    for module in model.modules():
        if isinstance(module, _COMPUTED):
            module.path = path


def keep_kernels(model: nn.Module, keep: bool = True) -> None:
    """Keep the assembled kernels of all FDConv layers for the backward pass, instead of assembling them again there.

    The backward pass then launches fewer GPU kernels and reads less memory. In return, the assembled kernels of all
    images stay in memory from the forward to the backward pass, in the dtype of the convolution. This only has an
    effect on the path ``"triton"`` and while gradients are recorded. In half precision, the gradients of KSM's
    modulators are then computed from rounded kernels. ``print(model)`` shows the setting.

    Args:
        model: changed in place; it computes the same function.
        keep: False: assemble the kernels again in the backward pass, as by default.
    """
    for module in model.modules():
        if isinstance(module, FDConv2d | FDLinear):
            module.keeps_kernels = keep
