"""Convolution of each image of a batch with a kernel of its own."""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.context import is_free


class Geometry(NamedTuple):
    """The settings of a convolution, as in ``nn.Conv2d``; pairs are (rows, columns)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is 1x1, without stride, padding and groups."""
        return self == POINTWISE

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H', W') of the output for an input of size (H, W)."""
        height, width = (
            (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, padding, dilation in zip(input_size, *self[:4], strict=True)
        )
        return height, width


POINTWISE = Geometry((1, 1))


def geometry_arguments(geometry: Geometry) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Return stride, padding, dilation and groups: the arguments of ``F.conv2d`` after the bias."""
    _, stride, padding, dilation, groups = geometry  # torch 2.6 does not compile its properties or slices
    return stride, padding, dilation, groups


def convolve(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve every image with its own kernel.

    Args:
        x: (B, G*I, H, W).
        kernels: (B, O, I, a, b). If the batch size is dynamic, also (1, O, I, a, b), one kernel for all images.
        geometry: settings of the convolution, with G groups.

    Returns:
        (B, O, H', W').
    """
    if not is_free(x.shape[0]) and x.shape[0] == 1:
        return F.conv2d(x, kernels[0], None, *geometry_arguments(geometry))
    if geometry.is_pointwise:
        return (kernels.flatten(2) @ x.flatten(2)).unflatten(2, x.shape[2:])
    if is_free(x.shape[0]):
        return _convolve_by_taps(x, kernels, geometry)
    return convolve_as_groups(x, kernels, geometry)


def convolve_as_groups(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """:func:`convolve` as one convolution of one image, whose groups of channels are the images of the batch."""
    y = F.conv2d(_as_groups(x), kernels.flatten(0, 1), None, *geometry_arguments(_grouped(geometry, len(x))))
    return y.view(*kernels.shape[:2], *y.shape[2:])


def convolve_as_groups_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of :func:`convolve_as_groups` with respect to x, if needed, and kernels."""
    grad_x, grad_kernels = convolution_backward(
        _as_groups(grad), _as_groups(x), kernels.flatten(0, 1), _grouped(geometry, len(x)), needs_x
    )
    return grad_x.view(x.shape) if needs_x else None, grad_kernels.view(kernels.shape)


def convolution_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of ``F.conv2d`` without a bias with respect to x, if needed, and the kernel."""
    stride, padding, dilation, groups = geometry_arguments(geometry)
    return torch.ops.aten.convolution_backward(
        grad, x, kernel, None, stride, padding, dilation, False, (0, 0), groups, (needs_x, True, False)
    )[:2]


def _as_groups(x: Tensor) -> Tensor:
    """(B, C, H, W) to (1, B*C, H, W)."""
    return x.reshape(1, -1, *x.shape[2:])


def _grouped(geometry: Geometry, images: int) -> Geometry:
    kernel_size, stride, padding, dilation, groups = geometry  # torch 2.6 does not compile _replace()
    return Geometry(kernel_size, stride, padding, dilation, images * groups)


def _convolve_by_taps(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """:func:`convolve` for programs with a dynamic batch size; the number of groups cannot be dynamic."""
    height, width = geometry.output_size(x.shape[2:])
    x = F.pad(x, _pad_argument(geometry)).unflatten(1, (geometry.groups, -1))  # (B, G, I, H + 2p, W + 2p)
    kernels = kernels.unflatten(1, (geometry.groups, -1))  # (B, G, O/G, I, a, b)
    result = 0
    taps = kernels.flatten(4).unbind(4)
    for kernel, seen in zip(taps, _seen_by_taps(geometry, (height, width)), strict=True):
        result = result + kernel @ x[(..., *seen)].flatten(3)
    return result.unflatten(3, (height, width)).flatten(1, 2)


def _seen_by_taps(geometry: Geometry, output_size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The rows and columns of a padded feature map that each tap of the kernel reads."""
    rows, cols = (
        [_tap_slice(tap, output_size[axis], axis, geometry) for tap in range(geometry.kernel_size[axis])]
        for axis in (0, 1)
    )
    return list(itertools.product(rows, cols))


def _tap_slice(tap: int, output_size: int, axis: int, geometry: Geometry) -> slice:
    """The positions of a padded axis (0: rows, 1: columns) that a tap of the kernel reads."""
    start, stride = tap * geometry.dilation[axis], geometry.stride[axis]
    return slice(start, start + (output_size - 1) * stride + 1, stride)


def _pad_argument(geometry: Geometry) -> list[int]:
    rows, cols = geometry.padding
    return [cols, cols, rows, rows]
