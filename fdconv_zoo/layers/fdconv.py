"""FDConv2d and FDLinear: FDW, KSM and FBM joined into drop-ins for ``nn.Conv2d`` and ``nn.Linear``.

For an image x with pooled features g = mean(x):

    kernel = KSM(g) * sum_j pi_j(g) * FDW_j         y = conv(FBM(x), kernel) + bias
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.layers.dynamic_kernel import DynamicKernel
from fdconv_zoo.layers.fbm import BAND_EDGES, BandMask, FrequencyBandModulation
from fdconv_zoo.layers.inputs import check_input
from fdconv_zoo.layers.plain import check_plain, conv_arguments, example_size
from fdconv_zoo.layers.precision import transform_dtype
from fdconv_zoo.layers.programs import fx_leaf
from fdconv_zoo.ops import POINTWISE, Geometry, pool

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class FDConv2d(DynamicKernel):
    """Frequency Dynamic Convolution (https://arxiv.org/abs/2503.18783), a drop-in for ``nn.Conv2d``.

    Maps (B, I, H, W) to (B, O, H', W'), with a separate kernel for each image. A new layer has neutral modulators, so
    it is a plain convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in ``nn.Conv2d``.
        num_kernels: number n of FDW's kernels, from 1 to the number of Fourier coefficients of the kernel.
        temperature: divides the channel, filter and spatial logits of KSM.
        kernel_temperature: divides the kernel logits of KSM.
        ksm_global, ksm_local: whether KSM has its global and its local branch.
        fbm: whether the layer has FBM; None: for 3x3 kernels only, as in the paper.
        band_edges: the frequencies that divide FBM's bands, in cycles per sample, in descending order.
        band_mask: FBM's masks: ``"exact"``, ``"learned"`` (soft masks whose edges are parameters) or ``"reference"``
            (the authors' resized masks, for their checkpoints).
        stored_groups: make the groups of Fourier coefficients a part of the state dict, for the authors' checkpoints.

    Raises:
        ValueError: an argument out of range, or an input that is not a non-empty batch of I-channel images.
        TypeError: a dtype that is not floating, of the layer or of an input.
        RuntimeError: an input is smaller than the kernel, even with padding, as in ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_kernels: int = 64,
        temperature: float = 1.0,
        kernel_temperature: float = 1.0,
        ksm_global: bool = True,
        ksm_local: bool = True,
        fbm: bool | None = None,
        band_edges: Sequence[float] = BAND_EDGES,
        band_mask: BandMask = "exact",
        stored_groups: bool = False,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups is {groups}: it must divide in_channels ({in_channels}) and out_channels ({out_channels})."
            )
        # A plain layer on the meta device checks and completes the arguments as torch does.
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        geometry = {name: _pair(name, getattr(plain, name)) for name in ("kernel_size", "stride", "dilation")}
        super().__init__(
            in_channels,
            out_channels,
            geometry["kernel_size"],
            groups,
            bias,
            num_kernels=num_kernels,
            temperature=temperature,
            kernel_temperature=kernel_temperature,
            ksm_global=ksm_global,
            ksm_local=ksm_local,
            stored_groups=stored_groups,
            device=device,
            dtype=dtype,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = geometry["kernel_size"]
        self.stride = geometry["stride"]
        self.padding = plain.padding if isinstance(plain.padding, str) else _pair("padding", plain.padding, least=0)
        self.dilation = geometry["dilation"]
        self.padding_mode = padding_mode
        if padding_mode == "zeros" and not isinstance(self.padding, str):
            self._explicit_padding, own_padding = [0] * 4, self.padding
        else:  # the convolution itself does not support it ("same" may be asymmetric): pad the input first
            self._explicit_padding, own_padding = plain._reversed_padding_repeated_twice, (0, 0)
        self._geometry = Geometry(**geometry, padding=own_padding, groups=groups)
        if fbm or (fbm is None and self.kernel_size == (3, 3)):
            self.fbm = FrequencyBandModulation(in_channels, band_edges, band_mask, device=device, dtype=dtype)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> "FDConv2d":
        """Make an FDConv layer that computes the same function as ``conv``, ready to train.

        Args:
            conv: the plain layer; it is not changed.
            **options: the keyword-only arguments of the class.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv2d``, or is a subclass with its own ``forward``.
        """
        check_plain(conv, nn.Conv2d)
        layer = cls(**conv_arguments(conv), device=conv.weight.device, dtype=conv.weight.dtype, **options)
        layer.load_plain(conv.weight, conv.bias)
        return layer.train(conv.training)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        check_input(x, self.in_channels, channel_dim=1, ndims=(4,), layout="(B, C, H, W)")
        pooled = pool(x, transform_dtype(x), self.path)
        weights, modulators = self.predict(pooled)
        if self.fbm is not None:
            x = self.fbm(x)
        if any(self._explicit_padding):
            x = F.pad(x, self._explicit_padding, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        return self.convolve(x, weights=weights, modulators=modulators, geometry=self._geometry)

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        plain = f"{self.in_channels}, {self.out_channels}, {settings}, bias={self.bias is not None}"
        return f"{plain}, {super().extra_repr()}, fbm={None if self.fbm is None else self.fbm.band_mask}"

    def example_input(self) -> Tensor:
        """(2, I, H, W) of zeros, large enough for the kernel."""
        return self.fdw.spectrum.new_zeros(2, self.in_channels, *example_size(self.kernel_size, self.dilation))


def _pair(name: str, size: tuple[int, ...], least: int = 1) -> tuple[int, int]:
    if len(size) != 2 or min(size) < least:
        raise ValueError(f"{name} is {size}: it must be a number, or a pair of numbers, of at least {least}.")
    return size


class FDLinear(DynamicKernel):
    """Frequency Dynamic Convolution on tokens, a drop-in for ``nn.Linear``: a 1x1 :class:`FDConv2d`.

    Maps (B, N, I) or (B, H, W, I) to the same shape with O features, with a separate weight for each image.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
        num_kernels, temperature, kernel_temperature, ksm_global, ksm_local, stored_groups: as in :class:`FDConv2d`.

    Raises:
        ValueError: an argument out of range, or an input that is not a non-empty batch of I-feature tokens.
        TypeError: a dtype that is not floating, of the layer or of an input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_kernels: int = 64,
        temperature: float = 1.0,
        kernel_temperature: float = 1.0,
        ksm_global: bool = True,
        ksm_local: bool = True,
        stored_groups: bool = False,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            (1, 1),
            1,
            bias,
            num_kernels=num_kernels,
            temperature=temperature,
            kernel_temperature=kernel_temperature,
            ksm_global=ksm_global,
            ksm_local=ksm_local,
            stored_groups=stored_groups,
            device=device,
            dtype=dtype,
        )
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> "FDLinear":
        """Make an FDConv layer that computes the same function as ``linear``, ready to train.

        Args:
            linear: the plain layer; it is not changed.
            **options: the keyword-only arguments of the class.

        Raises:
            TypeError: ``linear`` is not an ``nn.Linear``, or is a subclass with its own ``forward``.
        """
        check_plain(linear, nn.Linear)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            linear.weight.device,
            linear.weight.dtype,
            **options,
        )
        layer.load_plain(linear.weight, linear.bias)
        return layer.train(linear.training)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """(B, N, I) or (B, H, W, I) to the same shape with O features."""
        check_input(x, self.in_features, channel_dim=-1, ndims=(3, 4), layout="(B, N, C) or (B, H, W, C)")
        tokens = x.flatten(1, -2)
        features = tokens.transpose(1, 2).unsqueeze(3)
        pooled = pool(features, transform_dtype(x), self.path)
        weights, modulators = self.predict(pooled)
        y = self.convolve(features, weights=weights, modulators=modulators, geometry=POINTWISE)
        return y.squeeze(3).transpose(1, 2).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{text}, {super().extra_repr()}"

    def example_input(self) -> Tensor:
        """(2, N, I) of zeros."""
        return self.fdw.spectrum.new_zeros(2, 4, self.in_features)
