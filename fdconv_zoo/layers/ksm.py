"""KSM: Kernel Spatial Modulation (FDConv, section 3.2, https://arxiv.org/abs/2503.18783).

Two small branches predict, from the pooled features g (B, I) of each image, how to scale the image's kernel. All
modulators are ``2 * sigmoid(logit)``, those of FDW's n kernels divided by n. A zero logit gives exactly 1, so a new
module changes nothing.
"""

import math
from contextlib import suppress
from typing import Any, Literal, overload

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.layers.precision import no_autocast, parameter_dtype
from fdconv_zoo.layers.sharding import hand_on, hand_through
from fdconv_zoo.layers.untouched import TouchedError, check_calls, check_ordinary, untouched
from fdconv_zoo.ops import (
    KernelModulators,
    LocalFactors,
    Path,
    choose_path,
    local_factors,
    modulate,
    neighbors,
    predict_modulators,
    star_relu,
)


class StarReLU(nn.Module):
    """``scale * relu(x)^2 + bias`` with two learned scalars (https://arxiv.org/abs/2210.13452)."""

    path: Path | None = None

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reset to ``relu(x)^2``."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return star_relu(x, self.scale, self.bias, self.path)


class GlobalBranch(nn.Module):
    """Predict one factor per input channel, output channel, tap and kernel of FDW, from all channels together.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: (a, b); without a spatial head if the kernel has a single tap.
        num_kernels: n; without a kernel head if n is 1.
        temperature: divides the channel, filter and spatial logits.
        kernel_temperature: divides the kernel logits.
    """

    path: Path | None = None

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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(in_channels // 16, 16)
        num_taps = kernel_size[0] * kernel_size[1]
        self.kernel_size = kernel_size
        self.num_kernels = num_kernels
        self.temperature = temperature
        self.kernel_temperature = kernel_temperature
        self.reduce = nn.Linear(in_channels, hidden, bias=False, **factory)
        self.norm = FeatureNorm(hidden, **factory)
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

    def forward(self, pooled: Tensor) -> KernelModulators:
        """(B, I) to the modulators kernel (B, n), channel (B, I), filter (B, O) and spatial (B, a, b)."""
        hidden = self.act(self._normalize(self.reduce(pooled)[..., None, None]).flatten(1))
        heads = {"channel": self.channel, "filter": self.filter, "spatial": self.spatial, "kernel": self.kernel}
        logits = {name: head(hidden) for name, head in heads.items() if head is not None}
        temperatures = [self.kernel_temperature if name == "kernel" else self.temperature for name in logits]
        counts = [self.num_kernels if name == "kernel" else 1 for name in logits]
        found = modulate(list(logits.values()), temperatures, counts, hidden.dtype, self.path)
        modulators = dict(zip(logits, found, strict=True))
        if self.spatial is not None:
            modulators["spatial"] = modulators["spatial"].unflatten(1, self.kernel_size)
        return KernelModulators(**modulators)

    def tensors(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return the tensors and statistics for :func:`predict_modulators`, if it computes the same as the branch.

        Raises:
            TouchedError: the branch has to be called.
        """
        untouched(self, GlobalBranch, 0)
        reduce, bias = untouched(self.reduce, nn.Linear, 2)
        norm, statistics = self.norm, list(self.norm._buffers.values())
        tensors = [reduce, *untouched(norm, FeatureNorm, 2), *untouched(self.act, StarReLU, 2)]
        # Without momentum, running statistics are averages over all batches, which the operation does not compute.
        missing = any(tensor is None for tensor in (*tensors, *statistics))
        if reduce is None or bias is not None or missing or norm.momentum is None:
            raise TouchedError
        hidden = reduce.shape[0]
        for head in (self.kernel, self.channel, self.filter, self.spatial):
            weight, bias = (None, None) if head is None else untouched(head, nn.Linear, 2)
            if head is not None and (weight is None or bias is None or weight.shape[1] != hidden):
                raise TouchedError
            tensors += (weight, bias)
        return tensors, statistics

    def _normalize(self, hidden: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.SyncBatchNorm) and not (dist.is_available() and dist.is_initialized()):
            return FeatureNorm.forward(norm, hidden) if len(hidden) == 1 else norm(hidden)
        return norm(hidden)


class FeatureNorm(nn.BatchNorm2d):
    """BatchNorm over B feature vectors. A single vector is normalized with the running statistics, also in training.

    It is a BatchNorm2d, on (B, C, 1, 1), so that tools which freeze or synchronize a network's BatchNorm2d find it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1) to the same shape."""
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return nn.BatchNorm2d.forward(self, x)


class ChannelConv1d(nn.Conv1d):
    """A 1-D convolution along the channels that is not computed here: it returns its taps and the windows of features.

    A layer with groups needs only some of the results, and a fast path never stores all of them.

    Args:
        num_channels: G*I.
        num_features: number of results per channel.
        width: number of taps T, odd; both ends are padded with zeros.
        groups: G, of the FDConv layer.
    """

    path: Path | None = None

    def __init__(
        self,
        num_channels: int,
        num_features: int,
        width: int,
        groups: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, num_features, width, padding=width // 2, bias=False, device=device, dtype=dtype)
        self.num_channels = num_channels
        self.groups_of_layer = groups

    def forward(self, features: Tensor) -> LocalFactors:  # type: ignore[override]  # not what nn.Conv1d returns
        """(B, G*I) to taps (num_features, 1, T) and windows (B, G, I, T)."""
        windows = neighbors(features, self.kernel_size[0], self.path).unflatten(1, (self.groups_of_layer, -1))
        return LocalFactors(taps=hand_on(self, self.weight), windows=windows)


class LocalBranch(nn.Module):
    """Predict one factor for each kernel element, from each input channel and its neighbours.

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
        num_features = out_channels * kernel_size[0] * kernel_size[1]
        width = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1
        self.norm = nn.LayerNorm(in_channels, device=device, dtype=dtype)
        self.conv = ChannelConv1d(in_channels, num_features, width, groups, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the logits: every factor starts at 1."""
        nn.init.zeros_(self.conv.weight)

    def tensors(self) -> list[Tensor]:
        """See :meth:`GlobalBranch.tensors`."""
        untouched(self, LocalBranch, 0)
        untouched(self.conv, ChannelConv1d, 2)
        weight, bias = untouched(self.norm, nn.LayerNorm, 2)
        if weight is None or bias is None:
            raise TouchedError
        return [weight, bias]

    @overload
    def forward(self, pooled: Tensor, *, assemble: Literal[True] = True) -> Tensor: ...

    @overload
    def forward(self, pooled: Tensor, *, assemble: Literal[False]) -> LocalFactors: ...

    def forward(self, pooled: Tensor, *, assemble: bool = True) -> Tensor | LocalFactors:
        """(B, I) to factors (B, O, I/groups, a, b); with ``assemble=False``, to their taps and windows."""
        factors = self.conv(self.norm(pooled))
        if assemble:
            return local_factors(factors, self.kernel_size)
        return LocalFactors(hand_through(self, factors.taps), factors.windows)


class KernelSpatialModulation(nn.Module):
    """Predict the modulators of an image's kernel from its pooled features, by a global and a local branch.

    Args:
        in_channels: I, of the whole layer (all groups).
        out_channels: O.
        kernel_size: (a, b).
        num_kernels: number n of FDW's kernels.
        groups: of the convolution.
        temperature: divides the channel, filter and spatial logits.
        kernel_temperature: divides the kernel logits.
        global_branch: predict kernel, channel, filter and spatial modulators.
        local_branch: predict a modulator for each kernel element.

    Raises:
        ValueError: a temperature that is not a finite number above 0.
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
        for name, value in (("temperature", temperature), ("kernel_temperature", kernel_temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: it must be a finite number above 0.")
        shape = (in_channels, out_channels, kernel_size)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.global_branch = (
            GlobalBranch(*shape, num_kernels, temperature, kernel_temperature, **factory) if global_branch else None
        )
        self.local_branch = LocalBranch(*shape, groups, **factory) if local_branch else None

    def reset_parameters(self) -> None:
        """Make every modulator neutral."""
        for branch in (self.global_branch, self.local_branch):
            if branch is not None:
                branch.reset_parameters()

    def forward(self, pooled: Tensor, *, assemble: bool = True) -> KernelModulators:
        """Predict the modulators of B kernels, in the parameters' dtype, also under autocast.

        Args:
            pooled: (B, I).
            assemble: False: return the local branch's taps and windows, for operations that assemble the factors.
        """
        # torch.compile traces the modules instead; in torch 2.6, it does not support the exception.
        if not assemble and not torch.compiler.is_compiling():
            with suppress(TouchedError):
                return self._predict_at_once(pooled)
        modulators = KernelModulators()
        with no_autocast(pooled.device.type):
            if self.global_branch is not None:
                modulators = self.global_branch(pooled.to(parameter_dtype(self.global_branch.reduce)))
            if self.local_branch is not None:
                pooled = pooled.to(parameter_dtype(self.local_branch.norm))
                local = self.local_branch(pooled, assemble=assemble)
                if not assemble:
                    local = LocalFactors(hand_through(self, local.taps), local.windows)
                kernel, channel, outputs, spatial, _ = modulators
                modulators = KernelModulators(kernel, channel, outputs, spatial, local)
        return modulators

    def _predict_at_once(self, pooled: Tensor) -> KernelModulators:
        """Predict what the branches predict, by one operation instead of calls of their modules.

        Raises:
            TouchedError: the modules have to be called.
        """
        check_calls()
        branch, local = self.global_branch, self.local_branch
        part = branch if branch is not None or local is None else local.conv
        if part is None or pooled.dim() != 2 or not len(pooled):
            raise TouchedError
        path = choose_path(pooled.device, pooled.dtype, part.path)
        batch_statistics = branch is not None and branch.norm.training and len(pooled) > 1
        is_differentiated = torch.is_grad_enabled()
        if path != "triton" and (path != "native" or is_differentiated or batch_statistics):
            raise TouchedError
        tensors: list[Tensor | None] = [None] * 13
        statistics: list[Tensor | None] = [None] * 3
        numbers, sizes = [1.0, 1.0, 0.0, 0.0, 0.0], [0, 1, 1, 1]
        if branch is not None:
            tensors, statistics = branch.tensors()
            norm, sizes[2:] = branch.norm, branch.kernel_size
            numbers[:3] = branch.kernel_temperature, branch.temperature, norm.eps
            if norm.momentum is not None:
                numbers[4] = norm.momentum
        if local is not None:
            tensors += local.tensors()
            numbers[3], sizes[:2] = local.norm.eps, (local.conv.kernel_size[0], local.conv.groups_of_layer)
        else:
            tensors += (None, None)
        channels = [at.shape[-1] for at in (tensors[0], tensors[-1]) if at is not None]
        if any(count != pooled.shape[1] for count in channels):
            raise TouchedError
        check_ordinary(pooled, *tensors, *statistics[:2], fake=path == "triton")
        kernel, channel, filter_, spatial, windows = predict_modulators(
            pooled, tensors, statistics, numbers, sizes, batch_statistics=batch_statistics, path=path
        )
        if local is None or windows is None:
            return KernelModulators(kernel, channel, filter_, spatial)
        taps = hand_through(self, hand_on(local.conv, local.conv.weight))
        return KernelModulators(kernel, channel, filter_, spatial, LocalFactors(taps, windows))
