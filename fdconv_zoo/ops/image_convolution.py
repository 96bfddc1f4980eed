"""Convolution of each image of a batch with a kernel of its own, for GPUs: few launches, no copies.

Pointwise kernels are one batched matrix product. Others are one grouped convolution, or one convolution an image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry

Form = Literal["product", "grouped", "loop"]


def choose_form(x: Tensor, geometry: Geometry) -> Form:
    """The form that is fastest for images (B, G*I, H, W)."""
    if geometry.kernel_size == (1, 1) and geometry.groups == 1 and geometry.padding == (0, 0):
        return "product"
    if x.shape[0] == 1:
        return "loop"
    # A grouped convolution takes channels-first maps only; on large maps one image fills the device.
    if is_channels_last(x) or x.shape[2] * x.shape[3] >= _LARGE_MAP:
        return "loop"
    return "grouped"


_LARGE_MAP = 64 * 64  # positions from which an image is convolved alone


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) has its channels innermost, also where its sizes leave that open."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_kernels(x: Tensor, batch: int, kernel_shape: tuple[int, int, int, int]) -> Tensor:
    """Uninitialized kernels (B, O, I, a, b) of x's dtype, in the layout that its convolution wants."""
    out_channels, in_channels, height, width = kernel_shape
    if is_channels_last(x):
        return x.new_empty(batch, out_channels, height, width, in_channels).permute(0, 1, 4, 2, 3)
    return x.new_empty(batch, *kernel_shape)


def convolve_images(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve images (B, G*I, H, W) with kernels (B, O, I, a, b), in the dtype and memory format of x."""
    form = choose_form(x, geometry)
    if form == "product":
        x = x[:, :, :: geometry.stride[0], :: geometry.stride[1]]
        matrix = kernels.flatten(2)
        if is_channels_last(x):
            return _from_rows(torch.bmm(_to_rows(x), matrix.transpose(1, 2)), x.shape[2:])
        return torch.bmm(matrix, x.flatten(2)).unflatten(2, x.shape[2:])
    if form == "loop":
        outputs = [F.conv2d(x[i : i + 1], kernels[i], None, *geometry.arguments) for i in range(len(x))]
        return outputs[0] if len(x) == 1 else torch.cat(outputs)
    grouped = geometry._replace(groups=len(x) * geometry.groups)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, *grouped.arguments)
    return y.view(len(x), -1, *y.shape[2:])


def convolve_images_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of :func:`convolve_images` with respect to x, if needed, and to kernels."""
    form = choose_form(x, geometry)
    if form == "product":
        return _product_backward(grad, x, kernels, geometry, needs_x)
    if form == "loop":
        pairs = [
            _convolution_backward(grad[i : i + 1], x[i : i + 1], kernels[i], geometry, needs_x) for i in range(len(x))
        ]
        grad_x = torch.cat([pair[0] for pair in pairs]) if needs_x else None
        return grad_x, torch.stack([pair[1] for pair in pairs])
    grouped = geometry._replace(groups=len(x) * geometry.groups)
    flat = [images.reshape(1, -1, *images.shape[2:]) for images in (grad, x)]
    grad_x, grad_kernels = _convolution_backward(*flat, kernels.flatten(0, 1), grouped, needs_x)
    return grad_x.view(x.shape) if needs_x else None, grad_kernels.view(kernels.shape)


def _product_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    matrix = kernels.flatten(2)
    seen = x[:, :, :: geometry.stride[0], :: geometry.stride[1]]
    grad_x = None
    if is_channels_last(x):
        rows = _to_rows(grad)
        grad_kernels = torch.bmm(rows.transpose(1, 2), _to_rows(seen))
        if needs_x:
            grad_x = _from_rows(torch.bmm(rows, matrix), seen.shape[2:])
    else:
        rows = grad.flatten(2)
        grad_kernels = torch.bmm(rows, seen.flatten(2).transpose(1, 2))
        if needs_x:
            grad_x = torch.bmm(matrix.transpose(1, 2), rows).view(seen.shape)
    if needs_x and geometry.stride != (1, 1):
        whole = torch.zeros_like(x)
        whole[:, :, :: geometry.stride[0], :: geometry.stride[1]] = grad_x
        grad_x = whole
    return grad_x, grad_kernels.view(kernels.shape)


def _convolution_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Of ``F.conv2d``."""
    arguments = (geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), geometry.groups)
    return torch.ops.aten.convolution_backward(grad, x, kernel, None, *arguments, (needs_x, True, False))[:2]


def _to_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _from_rows(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H*W, C) to (B, C, H, W)."""
    return rows.unflatten(1, size).permute(0, 3, 1, 2)
