"""Forcing the path that FDConv layers compute on."""

from typing import get_args

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.fdconv import FDConv2d, FDLinear
from fdconv_zoo.ops import Path


def set_path(model: nn.Module, path: Path | None) -> None:
    """Force how all FDConv layers of a model compute; ``print(model)`` shows it.

    Args:
        model: changed in place, its function is not.
        path: ``"rebuild"``: kernels and bands are made image by image and again in backward: the least memory, and
            on a CPU the fastest. ``"plain"``: torch's own operations on the whole batch, all of them kept for
            backward; the only path that can be differentiated twice. None: the choice is left to the layers.

    Raises:
        ValueError: an unknown path.
    """
    if path is not None and path not in get_args(Path):
        raise ValueError(f"path is {path!r}: it must be None or one of {get_args(Path)}.")
    for module in model.modules():
        if isinstance(module, FDConv2d | FDLinear | FrequencyBandModulation):
            module.path = path
