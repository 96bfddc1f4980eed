"""Convolution of each image of a batch with a kernel of its own, for GPUs: few launches, and no copies of patches.

Pointwise kernels take one batched matrix product. For other kernels there are three forms, none of which is always the
fastest:

- ``"implicit"``: one launch of a Triton kernel for all images, for any layout;
- ``"grouped"``: one launch of torch's convolution for all images, which become the groups of one image;
- ``"loop"``: one launch of torch's convolution for each image; large feature maps fill the device on their own.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.convolution import (
    Geometry,
    convolution_backward,
    convolve_as_groups,
    convolve_as_groups_backward,
    geometry_arguments,
)
from fdconv_zoo.ops.operators import KernelShape, is_channels_last
from fdconv_zoo.ops.triton_support import cdiv, is_interpreted, power_of_two, triton

if triton is not None:
    from triton import language as tl

    from fdconv_zoo.ops import image_convolution_jit

    _TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

Form = Literal["product", "implicit", "grouped", "loop"]

_LARGE_MAP = 2**13  # positions from which images are convolved one by one


def choose_form(x: Tensor, kernel_shape: KernelShape, geometry: Geometry) -> Form:
    """Choose the fastest form for images (B, G*I, H, W) and kernels of shape (O, I, a, b)."""
    if geometry.kernel_size == (1, 1) and geometry.groups == 1 and geometry.padding == (0, 0):
        return "product"
    if x.shape[0] == 1 or x.shape[2] * x.shape[3] >= _LARGE_MAP:
        return "loop"
    is_narrow = min(kernel_shape[0] // geometry.groups, kernel_shape[1]) < 16
    if is_narrow or x.dtype not in (torch.float16, torch.bfloat16):
        return "grouped"
    return "implicit"


def convolve_images(x: Tensor, kernels: Tensor, geometry: Geometry, form: Form | None = None) -> Tensor:
    """Convolve each image with its kernel.

    Args:
        x: (B, G*I, H, W), contiguous or channels_last.
        kernels: (B, O, I, a, b), as :func:`fdconv_zoo.ops.operators.empty_kernels` lays them out.
        geometry: settings of the convolution, with G groups.
        form: the form to use; None: see :func:`choose_form`.

    Returns:
        (B, O, H', W'), in the dtype and memory format of x.
    """
    form = form or choose_form(x, kernels.shape[1:], geometry)
    if form == "product":
        seen, matrix = x[:, :, :: geometry.stride[0], :: geometry.stride[1]], kernels.flatten(2)
        if is_channels_last(x):
            return _from_rows(torch.bmm(_to_rows(seen), matrix.transpose(1, 2)), seen.shape[2:])
        return torch.bmm(matrix, seen.flatten(2)).unflatten(2, seen.shape[2:])
    if form == "implicit":
        y = _empty_map(x, kernels.shape[1], geometry.output_size(x.shape[2:]))
        _launch(x, kernels, y, geometry, is_transposed=False)
        return y
    if form == "loop":
        outputs = [F.conv2d(x[i : i + 1], kernels[i], None, *geometry_arguments(geometry)) for i in range(len(x))]
        return outputs[0] if len(x) == 1 else torch.cat(outputs)
    return _like(convolve_as_groups(x, kernels.contiguous(), geometry), x)


def convolve_images_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool, form: Form | None = None
) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of :func:`convolve_images` with respect to x, if needed, and kernels.

    ``grad``, the gradient of the output, has x's memory format. The gradient of kernels may have any strides.
    """
    form = form or choose_form(x, kernels.shape[1:], geometry)
    if form == "product":
        return _product_backward(grad, x, kernels, geometry, needs_x)
    if form == "implicit":
        grad_x = torch.empty_like(x) if needs_x else None
        if needs_x:
            _launch(grad, kernels, grad_x, geometry, is_transposed=True)
        return grad_x, _launch_kernel_gradient(grad, x, kernels, geometry)
    if form == "loop":
        pairs = [
            convolution_backward(grad[i : i + 1], x[i : i + 1], kernels[i], geometry, needs_x) for i in range(len(x))
        ]
        if len(x) == 1:
            return pairs[0][0], pairs[0][1][None]
        grad_x = torch.cat([pair[0] for pair in pairs]) if needs_x else None
        return grad_x, torch.stack([pair[1] for pair in pairs])
    grad_x, grad_kernels = convolve_as_groups_backward(grad, x, kernels.contiguous(), geometry, needs_x)
    return _like(grad_x, x) if needs_x else None, grad_kernels


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


def _launch(x: Tensor, kernels: Tensor, out: Tensor, geometry: Geometry, is_transposed: bool) -> None:
    """Write the convolution of x to ``out``; or, if x is the gradient of an output, that of the convolution's input."""
    groups, positions = geometry.groups, out.shape[2] * out.shape[3]
    image, filter_stride, channel_stride, *tap_strides = kernels.stride()
    inner, outer = x.shape[1] // groups, out.shape[1] // groups
    positions_block = 128 if positions >= 512 else power_of_two(positions, 16, 64)
    outer_block = power_of_two(outer, 16, 64)
    grid = (cdiv(positions, positions_block) * cdiv(outer, outer_block), len(x), groups)
    image_convolution_jit.convolve[grid](
        x,
        kernels,
        out,
        *x.shape[2:],
        *out.shape[2:],
        inner,
        outer,
        *x.stride(),
        image,
        kernels.shape[1] // groups * filter_stride,
        *((filter_stride, channel_stride) if is_transposed else (channel_stride, filter_stride)),
        *tap_strides,
        *out.stride(),
        *geometry.padding,
        HEIGHT=geometry.kernel_size[0],
        **_settings(x, geometry),
        TRANSPOSED=is_transposed,
        POSITIONS=positions_block,
        OUTER=outer_block,
        INNER=power_of_two(inner, 16, 64 if x.itemsize == 2 else 32),
    )


def _launch_kernel_gradient(grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    out, groups = torch.empty_like(kernels), geometry.groups
    filters, channels, *taps = kernels.shape[1:]
    filters //= groups
    filters_block, channels_block = power_of_two(filters, 16, 64), power_of_two(channels, 16, 64)
    blocks = cdiv(filters, filters_block) * cdiv(channels, channels_block)
    image_convolution_jit.kernel_gradient[(blocks * taps[0] * taps[1], len(x), groups)](
        grad,
        x,
        out,
        *x.shape[2:],
        *grad.shape[2:],
        filters,
        channels,
        *grad.stride(),
        *x.stride(),
        *out.stride(),
        *geometry.padding,
        **_settings(x, geometry),
        FILTERS=filters_block,
        CHANNELS=channels_block,
        POSITIONS=power_of_two(grad.shape[2] * grad.shape[3], 16, 64 if x.itemsize == 2 else 32),
    )
    return out


def _settings(x: Tensor, geometry: Geometry) -> dict[str, object]:
    return {
        "WIDTH": geometry.kernel_size[1],
        "STRIDE_ROWS": geometry.stride[0],
        "STRIDE_COLS": geometry.stride[1],
        "DILATION_ROWS": geometry.dilation[0],
        "DILATION_COLS": geometry.dilation[1],
        # The interpreter does not multiply bfloat16.
        "DTYPE": tl.float32 if is_interpreted() else _TYPES[x.dtype],
        "PRECISION": "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3",
    }


def _empty_map(x: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Allocate (B, C, H, W), in the dtype and memory format of x."""
    if is_channels_last(x):
        return x.new_empty(len(x), *size, channels).permute(0, 3, 1, 2)
    return x.new_empty(len(x), channels, *size)


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y


def _to_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _from_rows(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H*W, C) to (B, C, H, W)."""
    return rows.unflatten(1, size).permute(0, 3, 1, 2)
