"""Kernel assembly: from Fourier coefficients and modulators to one convolution kernel per image.

This module implements the paper's equations (https://arxiv.org/abs/2503.18783, sections 3.1 and 3.2) in the notation

    B images, O output channels, I input channels per group, G groups, a x b kernel taps, n kernels,
    spectrum D of the plane that lays the kernel out as O*a rows by I*b columns.

This is the plain path, differentiated by autograd; :mod:`fdconv_zoo.ops.kernels_rebuild` computes the same with less
memory and time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry, convolve
from fdconv_zoo.ops.dft_by_products import inverse_transform_by_products


class DisjointWeights(NamedTuple):
    """The weights of FDW, before mixing.

    Attributes:
        spectrum: (O*a, I*b//2 + 1, 2), real and imaginary parts; float32 or float64.
        group_index: (O*a, I*b//2 + 1), the group of each coefficient, in any integer dtype.
        attention: (B, n), the weight of each kernel, or (1, n) for all images; in the dtype of ``spectrum``.
        kernel_shape: (O, I, a, b).
    """

    spectrum: Tensor
    group_index: Tensor
    attention: Tensor
    kernel_shape: tuple[int, int, int, int]


class LocalFactors(NamedTuple):
    """The tensors to assemble KSM's local factors from: a 1-D convolution along the channels, and its input.

    Attributes:
        taps: (O*a*b, 1, T), the weight of the convolution.
        windows: (B, G, I, T), the T channels around each channel.
    """

    taps: Tensor
    windows: Tensor


class KernelModulators(NamedTuple):
    """KSM's predictions for B images; a modulator that is switched off is None.

    Attributes:
        kernel: (B, n), the weight of each of FDW's kernels, neutral at 1/n.
        channel: (B, G*I), one factor per input channel.
        filter: (B, O), one factor per output channel.
        spatial: (B, a, b), one factor per tap.
        local: (B, O, I, a, b), one factor per kernel element; or the :class:`LocalFactors` to assemble them from.
    """

    kernel: Tensor | None = None
    channel: Tensor | None = None
    filter: Tensor | None = None
    spatial: Tensor | None = None
    local: Tensor | LocalFactors | None = None

    def to(self, dtype: torch.dtype) -> "KernelModulators":
        """Convert all tensors to a dtype."""
        *tensors, local = self
        if isinstance(local, LocalFactors):
            local = LocalFactors(*(tensor.to(dtype) for tensor in local))
        elif local is not None:
            local = local.to(dtype)
        return KernelModulators(*(None if tensor is None else tensor.to(dtype) for tensor in tensors), local)


def mix_spectrum(weights: DisjointWeights) -> Tensor:
    """Fourier Disjoint Weight: ``sum_j attention_j * IDFT(D restricted to group j)``, for every image.

    The groups are disjoint and the DFT is linear, so the n inverse transforms are one transform of
    ``D * attention[group]`` (section 3.1).

    Returns:
        (B, O, I, a, b), a permuted view of the (B, O, a, I, b) planes; B is 1 if all images share their attention.
    """
    spectrum, group_index, attention, (out_channels, in_channels, height, width) = weights
    rows, cols = out_channels * height, in_channels * width
    attention = attention.gather(1, group_index.flatten().long().expand(attention.shape[0], -1))
    # Scaling the real and imaginary parts takes half the arithmetic of promoting the weights to complex numbers.
    coefficients = spectrum * attention.view(-1, rows, cols // 2 + 1, 1)
    if torch.onnx.is_in_onnx_export():
        plane = inverse_transform_by_products(coefficients, rows, cols)
        return plane.view(-1, in_channels, width, out_channels, height).permute(0, 3, 1, 4, 2)
    coefficients = torch.view_as_complex(coefficients)
    # irfft2 written as its two passes: faster over a batch, and the same on every device for coefficients
    # that training has made non-Hermitian (a fused 2-D transform may read them differently).
    columns = torch.fft.ifft(coefficients, dim=1)
    plane = torch.fft.irfft(columns, n=cols, dim=2)
    return plane.view(-1, out_channels, height, in_channels, width).transpose(2, 3)


def local_factors(parts: LocalFactors, kernel_size: tuple[int, int]) -> Tensor:
    """KSM's local branch: ``2 * sigmoid(taps * neighbourhood)``, one factor for every single kernel element.

    The 1-D convolution along the channels is computed as a product of taps and windows, so that a grouped layer
    computes only the (output, input) pairs that it has.

    Args:
        parts: taps and windows.
        kernel_size: (a, b).

    Returns:
        (B, O, I, a, b), with I innermost in memory.
    """
    taps, windows = parts
    _, groups, in_channels, width = windows.shape
    logits = taps.view(groups, -1, width) @ windows.transpose(-2, -1)  # (B, G, O/G*a*b, I)
    factors = 2 * torch.sigmoid(logits)
    out_channels = taps.shape[0] // (kernel_size[0] * kernel_size[1])
    return factors.view(-1, out_channels, *kernel_size, in_channels).permute(0, 1, 4, 2, 3)


def assemble_kernels(weights: DisjointWeights, modulators: KernelModulators, groups: int) -> Tensor:
    """Mix FDW's kernels and scale every element by the product of KSM's modulators (section 3.2).

    Args:
        weights: the weights of FDW, before mixing.
        modulators: the predictions of KSM.
        groups: the number of groups G; output channels of group q read only the input channels of group q.

    Returns:
        (B, O, I, a, b); B is 1 if all images share one kernel.
    """
    out_channels, in_channels, *kernel_size = weights.kernel_shape
    kernels = mix_spectrum(weights)
    local = modulators.local
    if local is not None:
        # The local factors have I innermost in memory. As the first operand, they determine the layout of the
        # product, whose inner loops then run over I instead of the few taps.
        kernels = (local_factors(local, kernel_size) if isinstance(local, LocalFactors) else local) * kernels
    if modulators.spatial is not None:
        kernels = kernels * modulators.spatial[:, None, None]
    if modulators.channel is not None:
        channel = modulators.channel.view(-1, groups, 1, in_channels)
        channel = channel.expand(-1, -1, out_channels // groups, -1)
        kernels = kernels * channel.reshape(-1, out_channels, in_channels, 1, 1)
    if modulators.filter is not None:
        kernels = kernels * modulators.filter[:, :, None, None, None]
    return kernels


def convolve_plain(x: Tensor, weights: DisjointWeights, modulators: KernelModulators, geometry: Geometry) -> Tensor:
    """The plain path of :func:`fdconv_zoo.ops.dynamic_convolution`."""
    return convolve(x, assemble_kernels(weights, modulators, geometry.groups).to(x.dtype), geometry)
