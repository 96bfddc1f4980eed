"""Other dynamic convolutions, for comparison with FDConv.

The implementations are straightforward: each image's kernel is a weighted sum of the layer's kernels, and one grouped
convolution applies them, with one group per image; DCD needs no kernel per image. Each layer replaces an ``nn.Conv2d``
without bias and groups, as in ResNets.

In ResNet-50, in place of the same layers as FDConv (the 48 convolutions of the residual branches), they add

    CondConv, 8 experts     +144.9M parameters    the FDConv paper's table: +90.0M
    DY-Conv, 4 kernels      + 66.7M                                         +75.3M
    DCD                     +  4.0M                                         + 4.3M
    ODConv, 4 kernels       + 65.1M                                         +65.1M
    KernelWarehouse, 1x     +  1.7M                                         + 2.5M

The paper's counts belong to other layers: CondConv in the 9 layers of the last stage only, DY-Conv also in the 4
convolutions of the downsample paths, DCD also in the classifier and with normalization inside the layer,
KernelWarehouse also in 3 downsample paths, and with each stage's warehouse shared by the first layers of the next.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import CondConv2d
from torch import Tensor, nn

from fdconv_zoo.profiling.kernel_warehouse import KernelWarehouse
from fdconv_zoo.profiling.peer_parts import check_replaceable, convolve_each, pool


class CondConv(nn.Module):
    """timm's CondConv with its routing, ``sigmoid(linear(mean(x)))`` (https://arxiv.org/abs/1904.04971)."""

    def __init__(self, conv: nn.Conv2d, num_experts: int = 8) -> None:
        super().__init__()
        check_replaceable(conv)
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
        return self.conv(x, self.routing(pool(x)).sigmoid())


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
        weights = (self.attention(pool(x)) / self.temperature).softmax(1)
        return self.kernels.convolve(x, self.kernels.mix(weights))


class ODConv(nn.Module):
    """Omni-dimensional Dynamic Convolution (https://arxiv.org/abs/2209.07947).

    The kernel ``sum_k a_k * W_k`` is scaled by one factor per output channel, input channel and tap. All four
    attentions share a squeeze to a sixteenth of the channels, at least 16; a uses softmax, the others sigmoid.

    After loading the state dict of an ``nn.Conv2d``, the layer computes the same function. The attentions with a
    sigmoid then have zero weights, so each of their factors is 1/2. All kernels are equal, and multiples of the
    convolution's that compensate for these factors. They diverge in training, because a starts at random.
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
        hidden = self.squeeze(pool(x))
        kernels = self.kernels.mix(self.kernel(hidden).softmax(1))
        kernels = kernels * self.filter(hidden).sigmoid()[:, :, None, None, None]
        kernels = kernels * self.channel(hidden).sigmoid()[:, None, :, None, None]
        if self.spatial is not None:
            kernels = kernels * self.spatial(hidden).sigmoid().view(-1, 1, 1, *kernels.shape[3:])
        return self.kernels.convolve(x, kernels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict:  # of a plain layer
            heads = {"filter": self.filter, "channel": self.channel, "spatial": self.spatial}
            heads = {name: head for name, head in heads.items() if head is not None}
            own = self.state_dict(prefix=prefix)
            for name, head in heads.items():
                own |= {f"{prefix}{name}.{part}": torch.zeros_like(p) for part, p in head.named_parameters()}
            kernel = 2 ** len(heads) * state_dict.pop(prefix + "weight")
            own[prefix + "kernels.weight"] = kernel.expand_as(self.kernels.weight)
            state_dict.update(own)
        super()._load_from_state_dict(state_dict, prefix, *args)


class DCD(nn.Module):
    """Dynamic Convolution Decomposition (https://arxiv.org/abs/2103.08756), equation 6: ``Λ W_0 + P Φ Q^T``.

    Λ is one factor per output channel, and Φ an L x L matrix that fuses channels in a latent space. Both depend on the
    image, through a branch of two linear layers, which squeezes to a sixteenth of the channels. Four things are as in
    the authors' ResNets (https://github.com/liyunsheng13/dcd): L is sqrt(I), rounded down; Λ lies in [0, 2], by a hard
    sigmoid; no linear layer has a bias; and in a kernel of several taps, the second term is part of the central tap
    only. Their code also adds an identity to Φ, two batch normalizations and a gate in the branch, which are neither in
    the equation nor here.

    The layer starts as the convolution that it replaces: the branch's last weights are zero, so that Λ = 1 and Φ = 0.
    It starts in the same way after loading the state dict of an ``nn.Conv2d``.
    """

    def __init__(self, conv: nn.Conv2d, reduction: int = 16) -> None:
        super().__init__()
        check_replaceable(conv)
        self.latent = math.isqrt(conv.in_channels)
        hidden = max(conv.in_channels // reduction, 4)
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.q = nn.Parameter(torch.empty(self.latent, conv.in_channels))
        self.p = nn.Parameter(torch.empty(conv.out_channels, self.latent))
        for matrix in (self.q, self.p):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        self.squeeze = nn.Linear(conv.in_channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, conv.out_channels + self.latent**2, bias=False)
        nn.init.zeros_(self.excite.weight)
        self.geometry = (conv.stride, conv.padding, conv.dilation)
        rows, columns = conv.kernel_size
        self.around = (columns // 2, (columns - 1) // 2, rows // 2, (rows - 1) // 2)  # the taps beside the central one

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        channels = len(self.weight)
        excited = self.excite(self.squeeze(pool(x)).relu())
        scale, fusion = excited.split((channels, self.latent**2), 1)
        # One convolution for W_0 and Q: the taps of zeros beside Q cost little, and suit every stride and padding.
        kernels = torch.cat((self.weight, F.pad(self.q[:, :, None, None], self.around)))
        y, latent = F.conv2d(x, kernels, None, *self.geometry).split((channels, self.latent), 1)
        fused = self.p @ fusion.unflatten(1, (self.latent, self.latent)) @ latent.flatten(2)
        return 2 * F.hardsigmoid(scale)[:, :, None, None] * y + fused.view_as(y)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict and prefix + "q" not in state_dict:  # of a plain layer
            own = self.state_dict(prefix=prefix)
            own[prefix + "excite.weight"] = torch.zeros_like(self.excite.weight)
            state_dict.update(own | {prefix + "weight": state_dict[prefix + "weight"]})
        super()._load_from_state_dict(state_dict, prefix, *args)


class _KernelBank(nn.Module):
    """n kernels (n, O, I, a, b) of a convolution, each initialised as the convolution would be."""

    def __init__(self, conv: nn.Conv2d, num_kernels: int) -> None:
        super().__init__()
        check_replaceable(conv)
        self.weight = nn.Parameter(torch.empty(num_kernels, *conv.weight.shape))
        for kernel in self.weight:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        self.geometry = (conv.stride, conv.padding, conv.dilation)

    def mix(self, weights: Tensor) -> Tensor:
        """Mix the kernels with weights (B, n) to (B, O, I, a, b)."""
        return (weights @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each image with its kernel: (B, I, H, W) to (B, O, H', W')."""
        return convolve_each(x, kernels, self.geometry)


PEERS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "CondConv, 8 experts": CondConv,
    "DY-Conv, 4 kernels": DYConv,
    "DCD": DCD,
    "ODConv, 4 kernels": ODConv,
    "KernelWarehouse, 1x": KernelWarehouse,
}


def replace_layers(model: nn.Module, names: Iterable[str], peer: Callable[[nn.Conv2d], nn.Module]) -> None:
    """Replace the named ``nn.Conv2d`` layers by a peer.

    DCD and KernelWarehouse start as the layers that they replace, the others with random weights; ODConv and DCD can
    also load the weights of a plain network. KernelWarehouse shares a warehouse among the layers of a stage: those
    whose names agree up to the first number, such as ``layer1`` in ``layer1.0.conv1``, or ``stages.1`` in
    ``stages.1.blocks.0.conv``.

    Args:
        model: the model, which is changed in place.
        names: names of the layers.
        peer: class of the new layers.

    Raises:
        ValueError: a layer has a bias or groups, or does not pad with zeros.
    """
    stages: dict[str, list[KernelWarehouse]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = peer(model.get_submodule(name))
        setattr(model.get_submodule(parent), child, layer)
        if isinstance(layer, KernelWarehouse):
            stage = re.match(r"\D*\d*", name).group()
            stages.setdefault(stage, []).append(layer)
    for layers in stages.values():
        KernelWarehouse.share(layers)
