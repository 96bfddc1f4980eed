"""Kernel assembly: from Fourier coefficients and modulators to one convolution kernel an image.

The paper's equations (https://arxiv.org/abs/2503.18783, sections 3.1 and 3.2) in the notation

    B images, O output channels, I input channels a group, a x b kernel taps, n kernels,
    spectrum D of the plane that lays the kernel out as O*a rows by I*b columns.
"""

import torch
from torch import Tensor


def mix_spectrum(
    spectrum: Tensor, group_index: Tensor, kernel_attention: Tensor, kernel_shape: tuple[int, int, int, int]
) -> Tensor:
    """Fourier Disjoint Weight: ``sum_j attention_j * IDFT(D restricted to group j)``, for every image.

    The groups are disjoint and the DFT is linear, so the n inverse transforms are one transform of
    ``D * attention[group]`` (section 3.1).

    Args:
        spectrum: (O*a, I*b//2 + 1, 2), real and imaginary parts; float32 or float64.
        group_index: (O*a, I*b//2 + 1), the group each coefficient belongs to, any integer type.
        kernel_attention: (B, n), the weight of each kernel; of the spectrum's dtype.
        kernel_shape: (O, I, a, b).

    Returns:
        (B, O, I, a, b), a permuted view of the (B, O, a, I, b) planes.
    """
    batch = kernel_attention.shape[0]
    out_channels, in_channels, height, width = kernel_shape
    weight = kernel_attention.gather(1, group_index.flatten().long().expand(batch, -1))
    # Scaling the real and imaginary parts is half the arithmetic of promoting the weights to complex numbers.
    coefficients = torch.view_as_complex(spectrum * weight.view(batch, *group_index.shape, 1))
    # irfft2 written as its two passes: faster over a batch, and the same on every device for coefficients
    # that training has made non-Hermitian (a fused 2-D transform may read them differently).
    columns = torch.fft.ifft(coefficients, dim=1)
    plane = torch.fft.irfft(columns, n=in_channels * width, dim=2)
    return plane.view(batch, out_channels, height, in_channels, width).transpose(2, 3)


def assemble_kernels(
    kernels: Tensor,
    *,
    local: Tensor | None = None,
    channel: Tensor | None = None,
    filter: Tensor | None = None,
    spatial: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Kernel Spatial Modulation: scale every kernel element by the product of the modulators (section 3.2).

    Args:
        kernels: (B or 1, O, I, a, b).
        local: (B, O, I, a, b), the dense modulation of single elements.
        channel: (B, groups * I), one factor an input channel.
        filter: (B, O), one factor an output channel.
        spatial: (B, a, b), one factor a tap.
        groups: of the convolution; output channels ``q*O/groups ...`` see input channels ``q*I ...``.

    Returns:
        (B, O, I, a, b).
    """
    # The local modulator comes with I innermost in memory. As the first operand it hands that layout to the product,
    # whose inner loops then run over I and not over the few taps.
    kernels = kernels if local is None else local * kernels
    if spatial is not None:
        kernels = kernels * spatial[:, None, None]
    if channel is not None:
        out_channels, in_channels = kernels.shape[1:3]
        per_output = channel.view(-1, groups, 1, in_channels).expand(-1, -1, out_channels // groups, -1)
        kernels = kernels * per_output.reshape(-1, out_channels, in_channels, 1, 1)
    if filter is not None:
        kernels = kernels * filter[:, :, None, None, None]
    return kernels
