"""Convolving each image of a batch with a kernel of its own."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.path import is_free


class Geometry(NamedTuple):
    """Of a convolution, in (rows, columns), as in ``nn.Conv2d``."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, input_size: tuple[int, int], kernel_size: tuple[int, int]) -> tuple[int, int]:
        """(H', W') of a feature map (H, W)."""
        height, width = (
            (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, padding, dilation in zip(
                input_size, kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def convolve(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve every image with its kernel.

    Args:
        x: (B, G*I, H, W).
        kernels: (B, O, I, a, b), or (1, O, I, a, b) for all images.
        geometry: of the convolution, with its G groups.

    Returns:
        (B, O, H', W').
    """
    if kernels.shape[0] == 1:
        return F.conv2d(x, kernels[0], None, *geometry)
    if kernels.shape[3:] == (1, 1) and geometry == POINTWISE:
        return torch.bmm(kernels.flatten(2), x.flatten(2)).unflatten(2, x.shape[2:])
    if is_free(x.shape[0]):
        return _convolve_by_taps(x, kernels, geometry)
    # The images of the batch become groups of one convolution.
    batch, out_channels = kernels.shape[:2]
    grouped = Geometry(geometry.stride, geometry.padding, geometry.dilation, batch * geometry.groups)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, *grouped)
    return y.view(batch, out_channels, *y.shape[2:])


def _convolve_by_taps(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """:func:`convolve` for programs whose batch is known only when they run, which the number of groups cannot be."""
    height, width = geometry.output_size(x.shape[2:], kernels.shape[3:])
    x = F.pad(x, _pad_argument(geometry)).unflatten(1, (geometry.groups, -1))  # (B, G, I, H + 2p, W + 2p)
    kernels = kernels.unflatten(1, (geometry.groups, -1))  # (B, G, O/G, I, a, b)
    result = 0
    for a in range(kernels.shape[4]):
        for b in range(kernels.shape[5]):
            seen = x[:, :, :, _tap_slice(a, height, 0, geometry), _tap_slice(b, width, 1, geometry)]
            result = result + kernels[..., a, b] @ seen.flatten(3)
    return result.unflatten(3, (height, width)).flatten(1, 2)


def convolve_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of :func:`convolve` with respect to x and kernels, for B kernels."""
    # For a single image torch's convolution is the faster of the two.
    if x.shape[0] > 1 and kernels.shape[3:] == (1, 1) and geometry == POINTWISE:
        rows, matrix = grad.flatten(2), kernels.flatten(2)
        grad_x = torch.bmm(matrix.transpose(1, 2), rows).view(x.shape) if needs_x else None
        return grad_x, torch.bmm(rows, x.flatten(2).transpose(1, 2)).view(kernels.shape)
    grad_x, grad_kernels, _ = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        kernels.flatten(0, 1),
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        kernels.shape[0] * geometry.groups,
        (needs_x, True, False),
    )
    return grad_x.view(x.shape) if needs_x else None, grad_kernels.view(kernels.shape)


def extract_patches(x: Tensor, kernel_size: tuple[int, int], geometry: Geometry) -> Tensor:
    """What the kernel sees at each output position, as columns: a convolution is their product with the kernel.

    Args:
        x: (B, I, H, W).
        kernel_size: (a, b).
        geometry: without groups.

    Returns:
        (B, a*I*b, 1, H'*W'), in the order of FDW's planes.
    """
    x = F.pad(x, _pad_argument(geometry)) if any(geometry.padding) else x
    for dim, taps, stride, dilation in zip((2, 3), kernel_size, geometry.stride, geometry.dilation, strict=True):
        x = x.unfold(dim, dilation * (taps - 1) + 1, stride)  # (B, I, H', W', a, b), in the end
    x = x[..., :: geometry.dilation[0], :: geometry.dilation[1]]
    return x.permute(0, 4, 1, 5, 2, 3).flatten(1, 3).flatten(2).unsqueeze(2)


def fold_patches(
    patches: Tensor, input_size: tuple[int, int], kernel_size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """The adjoint of :func:`extract_patches`: sum patches (B, a*I*b, 1, H'*W') into (B, I, H, W)."""
    height, width = geometry.output_size(input_size, kernel_size)
    patches = patches.view(patches.shape[0], kernel_size[0], -1, kernel_size[1], height, width)
    padded = [size + 2 * padding for size, padding in zip(input_size, geometry.padding, strict=True)]
    x = patches.new_zeros(patches.shape[0], patches.shape[2], *padded)
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            rows, cols = _tap_slice(a, height, 0, geometry), _tap_slice(b, width, 1, geometry)
            x[:, :, rows, cols] += patches[:, a, :, b]
    return F.pad(x, [-size for size in _pad_argument(geometry)]) if any(geometry.padding) else x


def _tap_slice(tap: int, output_size: int, axis: int, geometry: Geometry) -> slice:
    """The positions of a padded axis (0: rows, 1: columns) that a tap of the kernel sees."""
    start, stride = tap * geometry.dilation[axis], geometry.stride[axis]
    return slice(start, start + (output_size - 1) * stride + 1, stride)


def _pad_argument(geometry: Geometry) -> list[int]:
    rows, cols = geometry.padding
    return [cols, cols, rows, rows]
