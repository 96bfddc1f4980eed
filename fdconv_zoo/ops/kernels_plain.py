"""Kernel assembly: from Fourier coefficients and modulators to one convolution kernel an image.

The paper's equations (https://arxiv.org/abs/2503.18783, sections 3.1 and 3.2) in the notation

    B images, O output channels, I input channels a group, G groups, a x b kernel taps, n kernels,
    spectrum D of the plane that lays the kernel out as O*a rows by I*b columns.

This is the plain path, differentiated by autograd; :mod:`fdconv_zoo.ops.kernels_rebuild` computes the same with less
memory and time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdconv_zoo.ops.dft_by_products import inverse_transform_by_products


class KernelParts(NamedTuple):
    """What the kernels of B images are assembled from; a part that is switched off is None.

    All are float32 or float64, besides ``group_index``.
    """

    spectrum: Tensor  # (O*a, I*b//2 + 1, 2), real and imaginary parts
    group_index: Tensor  # (O*a, I*b//2 + 1), the group each coefficient belongs to, any integer type
    attention: Tensor  # (B, n), the weight of each kernel of FDW; or (1, n): the same for all images
    taps: Tensor | None  # (O*a*b, 1, T), the local branch's 1-D convolution, and
    windows: Tensor | None  # (B, G, I, T), each channel's neighbourhood, that it is applied to
    channel: Tensor | None  # (B, G*I), one factor an input channel
    filter: Tensor | None  # (B, O), one factor an output channel
    spatial: Tensor | None  # (B, a, b), one factor a tap
    kernel_shape: tuple[int, int, int, int]  # (O, I, a, b)
    groups: int  # G; output channels q*O/G ... see input channels q*I ...
    mixed: Tensor | None = None  # (1, O, I, a, b), what spectrum and shared attention give, where it is at hand


def mix_spectrum(
    spectrum: Tensor, group_index: Tensor, attention: Tensor, kernel_shape: tuple[int, int, int, int]
) -> Tensor:
    """Fourier Disjoint Weight: ``sum_j attention_j * IDFT(D restricted to group j)``, for every image.

    The groups are disjoint and the DFT is linear, so the n inverse transforms are one transform of
    ``D * attention[group]`` (section 3.1).

    Args:
        spectrum, group_index, attention, kernel_shape: as in :class:`KernelParts`.

    Returns:
        (B, O, I, a, b), a permuted view of the (B, O, a, I, b) planes.
    """
    batch = attention.shape[0]
    out_channels, in_channels, height, width = kernel_shape
    weight = attention.gather(1, group_index.flatten().long().expand(batch, -1))
    # Scaling the real and imaginary parts is half the arithmetic of promoting the weights to complex numbers.
    coefficients = spectrum * weight.view(batch, *group_index.shape, 1)
    if torch.onnx.is_in_onnx_export():
        plane = inverse_transform_by_products(coefficients, in_channels * width)
        return plane.view(batch, in_channels, width, out_channels, height).permute(0, 3, 1, 4, 2)
    coefficients = torch.view_as_complex(coefficients)
    # irfft2 written as its two passes: faster over a batch, and the same on every device for coefficients
    # that training has made non-Hermitian (a fused 2-D transform may read them differently).
    columns = torch.fft.ifft(coefficients, dim=1)
    plane = torch.fft.irfft(columns, n=in_channels * width, dim=2)
    return plane.view(batch, out_channels, height, in_channels, width).transpose(2, 3)


def local_factors(taps: Tensor, windows: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """KSM's local branch: ``2 * sigmoid(taps * neighbourhood)``, one factor for every single kernel element.

    The 1-D convolution along the channels is a product of windows and taps, so that a grouped layer computes only
    the (output, input) pairs it has.

    Args:
        taps, windows: as in :class:`KernelParts`.
        kernel_size: (a, b).

    Returns:
        (B, O, I, a, b), with I innermost in memory.
    """
    batch, groups, in_channels, width = windows.shape
    logits = taps.view(groups, -1, width) @ windows.transpose(-2, -1)  # (B, G, O/G*a*b, I)
    return (2 * torch.sigmoid(logits)).view(batch, -1, *kernel_size, in_channels).permute(0, 1, 4, 2, 3)


def assemble_kernels(parts: KernelParts) -> Tensor:
    """FDW's kernels, every element scaled by the product of KSM's modulators (section 3.2).

    Returns:
        (B, O, I, a, b); B is 1 where all images share one kernel.
    """
    out_channels, in_channels, *kernel_size = parts.kernel_shape
    kernels = parts.mixed
    if kernels is None:
        kernels = mix_spectrum(parts.spectrum, parts.group_index, parts.attention, parts.kernel_shape)
    if parts.taps is not None:
        # The local factors come with I innermost in memory. As the first operand they hand that layout to the
        # product, whose inner loops then run over I and not over the few taps.
        kernels = local_factors(parts.taps, parts.windows, tuple(kernel_size)) * kernels
    if parts.spatial is not None:
        kernels = kernels * parts.spatial[:, None, None]
    if parts.channel is not None:
        channel = parts.channel.view(-1, parts.groups, 1, in_channels)
        channel = channel.expand(-1, -1, out_channels // parts.groups, -1)
        kernels = kernels * channel.reshape(-1, out_channels, in_channels, 1, 1)
    if parts.filter is not None:
        kernels = kernels * parts.filter[:, :, None, None, None]
    return kernels
