"""Convolution of each image of a batch with a kernel of its own."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.context import is_free


class Geometry(NamedTuple):
    """A convolution's settings, in (rows, columns), as in ``nn.Conv2d``."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def arguments(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """Stride, padding, dilation and groups: what ``F.conv2d`` takes after the bias."""
        return self[1:]

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(H', W') of a feature map (H, W)."""
        height, width = (
            (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, padding, dilation in zip(input_size, *self[:4], strict=True)
        )
        return height, width


POINTWISE = Geometry((1, 1))


def convolve(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve every image with its kernel.

    Args:
        x: (B, G*I, H, W).
        kernels: (B, O, I, a, b); where the batch is free, also (1, O, I, a, b) for all images.
        geometry: of the convolution, with its G groups.

    Returns:
        (B, O, H', W').
    """
    if not is_free(x.shape[0]) and x.shape[0] == 1:
        return F.conv2d(x, kernels[0], None, *geometry.arguments)
    if geometry == POINTWISE:
        return (kernels.flatten(2) @ x.flatten(2)).unflatten(2, x.shape[2:])
    if is_free(x.shape[0]):
        return _convolve_by_taps(x, kernels, geometry)
    # The images of the batch become groups of one convolution.
    batch, out_channels = kernels.shape[:2]
    grouped = geometry._replace(groups=batch * geometry.groups)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, *grouped.arguments)
    return y.view(batch, out_channels, *y.shape[2:])


def _convolve_by_taps(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """:func:`convolve` for programs whose batch is known only when they run, which the number of groups cannot be."""
    height, width = geometry.output_size(x.shape[2:])
    x = F.pad(x, _pad_argument(geometry)).unflatten(1, (geometry.groups, -1))  # (B, G, I, H + 2p, W + 2p)
    kernels = kernels.unflatten(1, (geometry.groups, -1))  # (B, G, O/G, I, a, b)
    result = 0
    for a in range(geometry.kernel_size[0]):
        for b in range(geometry.kernel_size[1]):
            seen = x[:, :, :, _tap_slice(a, height, 0, geometry), _tap_slice(b, width, 1, geometry)]
            result = result + kernels[..., a, b] @ seen.flatten(3)
    return result.unflatten(3, (height, width)).flatten(1, 2)


def convolve_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of :func:`convolve` with respect to x and kernels, for B kernels."""
    # For a single image torch's convolution is the faster of the two.
    if x.shape[0] > 1 and geometry == POINTWISE:
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


def extract_patches(x: Tensor, geometry: Geometry) -> Tensor:
    """Copy out the inputs of each output position, as columns: a convolution is their product with the kernel.

    Args:
        x: (B, I, H, W).
        geometry: without groups.

    Returns:
        (B, a*I*b, 1, H'*W'), in the order of FDW's planes.
    """
    x = F.pad(x, _pad_argument(geometry)) if any(geometry.padding) else x
    sizes = zip((2, 3), geometry.kernel_size, geometry.stride, geometry.dilation, strict=True)
    for dim, taps, stride, dilation in sizes:
        x = x.unfold(dim, dilation * (taps - 1) + 1, stride)  # (B, I, H', W', a, b), in the end
    x = x[..., :: geometry.dilation[0], :: geometry.dilation[1]]
    return x.permute(0, 4, 1, 5, 2, 3).flatten(1, 3).flatten(2).unsqueeze(2)


def fold_patches(patches: Tensor, input_size: tuple[int, int], geometry: Geometry) -> Tensor:
    """The adjoint of :func:`extract_patches`: sum patches (B, a*I*b, 1, H'*W') into (B, I, H, W)."""
    kernel_size, (height, width) = geometry.kernel_size, geometry.output_size(input_size)
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
