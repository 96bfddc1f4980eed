"""Functions that the layers of :mod:`fdconv_zoo.profiling.peers` share."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def check_replaceable(conv: nn.Conv2d) -> None:
    """Check that a peer can replace a convolution.

    Raises:
        ValueError: it has a bias or groups, or does not pad with zeros.
    """
    if conv.bias is not None or conv.groups != 1 or conv.padding_mode != "zeros":
        raise ValueError(f"{conv}: the peers support only convolutions without bias and groups, padded with zeros")


def pool(x: Tensor) -> Tensor:
    """Average over positions: (B, I, H, W) to (B, I)."""
    return x.mean((2, 3))


def convolve_each(x: Tensor, kernels: Tensor, geometry: tuple[Any, Any, Any]) -> Tensor:
    """Convolve each image with its kernel.

    Args:
        x: images (B, I, H, W).
        kernels: (B, O, I, a, b).
        geometry: stride, padding and dilation, as in ``nn.Conv2d``.

    Returns:
        (B, O, H', W').
    """
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, *geometry, groups=len(x))
    return y.view(len(x), -1, *y.shape[2:])
