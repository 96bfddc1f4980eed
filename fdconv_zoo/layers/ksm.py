"""KSM: Kernel Spatial Modulation (FDConv, section 3.2, https://arxiv.org/abs/2503.18783).

Two small branches read the image's pooled features g (B, I) and say how to scale the kernel of that image. All
modulators are ``2 * sigmoid(logit)``: a zero logit is an exact 1, so a fresh module changes nothing.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fdconv_zoo.layers.precision import no_autocast
from fdconv_zoo.ops import local_factors


class KernelModulators(NamedTuple):
    """What KSM predicts for a batch; a part that is switched off is None. Shapes: see the fields."""

    kernel: Tensor | None  # (B, n), neutral at 1/n
    channel: Tensor | None  # (B, I)
    filter: Tensor | None  # (B, O)
    spatial: Tensor | None  # (B, a, b)
    local: Tensor | None  # (B, O, I/groups, a, b)


def _modulator(logit: Tensor, temperature: float) -> Tensor:
    return 2 * torch.sigmoid(logit if temperature == 1 else logit / temperature)


class StarReLU(nn.Module):
    """``scale * relu(x)^2 + bias`` with two learned scalars (https://arxiv.org/abs/2210.13452)."""

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        x = F.relu(x)
        return torch.addcmul(self.bias, x * self.scale, x)


class GlobalBranch(nn.Module):
    """From all channels together: one factor an input channel, output channel, tap, and kernel of FDW.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: (a, b); no spatial head for a single tap.
        num_kernels: n; no kernel head for a single kernel.
        temperature: divides the channel, filter and spatial logits.
        kernel_temperature: divides the kernel logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        num_kernels: int,
        temperature: float = 1.0,
        kernel_temperature: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        hidden = max(in_channels // 16, 16)
        num_taps = kernel_size[0] * kernel_size[1]
        self.kernel_size = kernel_size
        self.num_kernels = num_kernels
        self.temperature = temperature
        self.kernel_temperature = kernel_temperature
        self.reduce = nn.Linear(in_channels, hidden, bias=False, **factory)
        # 2-D on (B, hidden, 1, 1), so that tools which freeze or synchronise a network's BatchNorm2d see this one.
        self.norm = nn.BatchNorm2d(hidden, **factory)
        self.act = StarReLU(**factory)
        self.channel = nn.Linear(hidden, in_channels, **factory)
        self.filter = nn.Linear(hidden, out_channels, **factory)
        self.spatial = nn.Linear(hidden, num_taps, **factory) if num_taps > 1 else None
        self.kernel = nn.Linear(hidden, num_kernels, **factory) if num_kernels > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the heads: every modulator starts neutral."""
        for head in (self.channel, self.filter, self.spatial, self.kernel):
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        """(B, I) to the modulators kernel (B, n), channel (B, I), filter (B, O) and spatial (B, a, b)."""
        hidden = self.act(self._normalize(self.reduce(pooled)))
        kernel = spatial = None
        if self.kernel is not None:
            kernel = _modulator(self.kernel(hidden), self.kernel_temperature) / self.num_kernels
        if self.spatial is not None:
            spatial = _modulator(self.spatial(hidden), self.temperature).unflatten(1, self.kernel_size)
        channel = _modulator(self.channel(hidden), self.temperature)
        filter = _modulator(self.filter(hidden), self.temperature)
        return kernel, channel, filter, spatial

    def _normalize(self, hidden: Tensor) -> Tensor:
        norm = self.norm
        # One image has no batch statistics (its variance over the batch is zero): it takes the running ones too.
        is_fixed = not norm.training or (hidden.shape[0] == 1 and not _synchronizes(norm))
        if is_fixed and isinstance(norm, _BatchNorm):
            return F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(hidden[..., None, None])[..., 0, 0]


def _synchronizes(norm: nn.Module) -> bool:
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()


class LocalBranch(nn.Module):
    """From each channel and its neighbours: one factor for every single kernel element.

    A 1-D convolution along the channel axis gives, at input channel i, a logit for each output channel and tap.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: (a, b).
        groups: of the convolution; each output channel gets logits for the I/groups channels it sees.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        groups: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.groups = groups
        num_features = out_channels * kernel_size[0] * kernel_size[1]
        width = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1
        self.norm = nn.LayerNorm(in_channels, device=device, dtype=dtype)
        self.conv = nn.Conv1d(1, num_features, width, padding=width // 2, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the logits: every factor starts at 1."""
        nn.init.zeros_(self.conv.weight)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, I) to (B, O, I/groups, a, b)."""
        return local_factors(self.conv.weight, self.windows(pooled), self.kernel_size)

    def windows(self, pooled: Tensor) -> Tensor:
        """(B, I) to each channel's normalized neighbourhood (B, G, I/G, T), which the convolution is applied to."""
        padding = self.conv.padding[0]
        windows = F.pad(self.norm(pooled), (padding, padding)).unfold(1, self.conv.kernel_size[0], 1)
        return windows.unflatten(1, (self.groups, -1))


class KernelSpatialModulation(nn.Module):
    """The global and the local branch on an image's pooled features; either can be switched off.

    Args:
        in_channels: I, of the whole layer (all groups).
        out_channels: O.
        kernel_size: (a, b).
        num_kernels: n kernels of FDW to weigh.
        groups: of the convolution.
        temperature: divides the channel, filter and spatial logits.
        kernel_temperature: divides the kernel logits.
        global_branch: predict kernel, channel, filter and spatial modulators.
        local_branch: predict the dense modulator.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        num_kernels: int = 64,
        *,
        groups: int = 1,
        temperature: float = 1.0,
        kernel_temperature: float = 1.0,
        global_branch: bool = True,
        local_branch: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size)
        factory = {"device": device, "dtype": dtype}
        self.global_branch = (
            GlobalBranch(*shape, num_kernels, temperature, kernel_temperature, **factory) if global_branch else None
        )
        self.local_branch = LocalBranch(*shape, groups, **factory) if local_branch else None

    def reset_parameters(self) -> None:
        """Make every modulator neutral."""
        for branch in (self.global_branch, self.local_branch):
            if branch is not None:
                branch.reset_parameters()

    def forward(self, pooled: Tensor) -> KernelModulators:
        """(B, I) to the modulators of B kernels. Computed in the dtype of the parameters, autocast or not."""
        *modulators, windows = self.predict(pooled)
        local = None
        if self.local_branch is not None:
            with no_autocast(pooled.device.type):
                local = local_factors(self.local_branch.conv.weight, windows, self.local_branch.kernel_size)
        return KernelModulators(*modulators, local)

    def predict(self, pooled: Tensor) -> tuple[Tensor | None, ...]:
        """:meth:`forward` with the local branch's windows (B, G, I/G, T) in the place of its B kernel-sized factors."""
        with no_autocast(pooled.device.type):
            kernel = channel = filter = spatial = windows = None
            if self.global_branch is not None:
                dtype = self.global_branch.reduce.weight.dtype
                kernel, channel, filter, spatial = self.global_branch(pooled.to(dtype))
            if self.local_branch is not None:
                windows = self.local_branch.windows(pooled.to(self.local_branch.norm.weight.dtype))
        return kernel, channel, filter, spatial, windows
