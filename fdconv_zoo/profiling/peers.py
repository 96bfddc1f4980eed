"""Other dynamic convolutions, for comparison with FDConv.

The implementations are straightforward: each image's kernel is a weighted sum of the layer's kernels, and one grouped
convolution applies them, with one group per image. Each layer replaces an ``nn.Conv2d`` without bias and groups, as in
ResNets.

In ResNet-50, in place of the same layers as FDConv (the 48 convolutions of the residual branches), they add

    CondConv, 8 experts    +144.9M parameters    the FDConv paper's table: +90.0M
    DY-Conv, 4 kernels     + 66.7M                                         +75.3M
    ODConv, 4 kernels      + 65.1M                                         +65.1M

The paper's counts belong to other layers: CondConv in the 9 layers of the last stage only, DY-Conv also in the 4
convolutions of the downsample paths.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from timm.layers import CondConv2d
from torch import Tensor, nn


class CondConv(nn.Module):
    """timm's CondConv with its routing, ``sigmoid(linear(mean(x)))`` (https://arxiv.org/abs/1904.04971)."""

    def __init__(self, conv: nn.Conv2d, num_experts: int = 8) -> None:
        super().__init__()
        _check(conv)
        self.routing = nn.Linear(conv.in_channels, num_experts)
        self.conv = CondConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            num_experts=num_experts,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        return self.conv(x, self.routing(_pool(x)).sigmoid())


class DYConv(nn.Module):
    """Dynamic Convolution (https://arxiv.org/abs/1912.03458): ``sum_k pi_k * W_k``.

    The attention pi squeezes to a quarter of the channels, followed by ReLU and a softmax with a high temperature, so
    that all kernels are trained from the start.
    """

    def __init__(self, conv: nn.Conv2d, num_kernels: int = 4, reduction: int = 4, temperature: float = 30) -> None:
        super().__init__()
        hidden = conv.in_channels // reduction
        self.kernels = _KernelBank(conv, num_kernels)
        self.attention = nn.Sequential(nn.Linear(conv.in_channels, hidden), nn.ReLU(), nn.Linear(hidden, num_kernels))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        weights = (self.attention(_pool(x)) / self.temperature).softmax(1)
        return self.kernels.convolve(x, self.kernels.mix(weights))


class ODConv(nn.Module):
    """Omni-dimensional Dynamic Convolution (https://arxiv.org/abs/2209.07947).

    The kernel ``sum_k a_k * W_k`` is scaled by one factor per output channel, input channel and tap. All four
    attentions share a squeeze to a sixteenth of the channels, at least 16; a uses softmax, the others sigmoid.
    """

    def __init__(self, conv: nn.Conv2d, num_kernels: int = 4, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(conv.in_channels // reduction, 16)
        self.kernels = _KernelBank(conv, num_kernels)
        self.squeeze = nn.Sequential(nn.Linear(conv.in_channels, hidden), nn.ReLU())
        self.kernel = nn.Linear(hidden, num_kernels)
        self.filter = nn.Linear(hidden, conv.out_channels)
        self.channel = nn.Linear(hidden, conv.in_channels)
        num_taps = math.prod(conv.kernel_size)
        self.spatial = nn.Linear(hidden, num_taps) if num_taps > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        hidden = self.squeeze(_pool(x))
        kernels = self.kernels.mix(self.kernel(hidden).softmax(1))
        kernels = kernels * self.filter(hidden).sigmoid()[:, :, None, None, None]
        kernels = kernels * self.channel(hidden).sigmoid()[:, None, :, None, None]
        if self.spatial is not None:
            kernels = kernels * self.spatial(hidden).sigmoid().view(-1, 1, 1, *kernels.shape[3:])
        return self.kernels.convolve(x, kernels)


class _KernelBank(nn.Module):
    """n kernels (n, O, I, a, b) of a convolution, each initialised as the convolution would be."""

    def __init__(self, conv: nn.Conv2d, num_kernels: int) -> None:
        super().__init__()
        _check(conv)
        self.weight = nn.Parameter(torch.empty(num_kernels, *conv.weight.shape))
        for kernel in self.weight:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        self.geometry = (conv.stride, conv.padding, conv.dilation)

    def mix(self, weights: Tensor) -> Tensor:
        """Mix the kernels with weights (B, n) to (B, O, I, a, b)."""
        return (weights @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each image with its kernel: (B, I, H, W) to (B, O, H', W')."""
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, *self.geometry, groups=len(x))
        return y.view(len(x), -1, *y.shape[2:])


PEERS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "CondConv, 8 experts": CondConv,
    "DY-Conv, 4 kernels": DYConv,
    "ODConv, 4 kernels": ODConv,
}


def replace_layers(model: nn.Module, names: Iterable[str], peer: Callable[[nn.Conv2d], nn.Module]) -> None:
    """Replace the named ``nn.Conv2d`` layers by a peer with random weights.

    Args:
        model: changed in place.
        names: of the layers.
        peer: class of the new layers.

    Raises:
        ValueError: a layer has a bias or groups, or does not pad with zeros.
    """
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, peer(model.get_submodule(name)))


def _check(conv: nn.Conv2d) -> None:
    if conv.bias is not None or conv.groups != 1 or conv.padding_mode != "zeros":
        raise ValueError(f"{conv}: the peers support only convolutions without bias and groups, padded with zeros")


def _pool(x: Tensor) -> Tensor:
    return x.mean((2, 3))
