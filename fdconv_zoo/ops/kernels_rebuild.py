"""Dynamic convolution without keeping kernels: assemble one image's, use it, forget it; rebuild it in backward.

The assembled kernels of a batch are B times the weights, and autograd would keep each step of their making. They are
a function of small things: the spectrum, which all images share, and a few vectors an image. Going through the batch
image by image (small kernels: some images at a time) keeps the intermediates in the processor's cache, and only the
small things for backward.

Everything happens on FDW's planes, O*a rows by I*b columns. With S the mixed plane, s = sigmoid(local logit), and the
factors m = spatial * channel of the columns and f = filter of the rows, the kernel is

    K = m * f * K0,    K0 = 2 * S * s

and, with P = K * dL/dK, the gradients are dL/dlogit = P * (1 - s), dL/dm = (column sums of P) / m, dL/df = (row sums
of P) / f. The gradient of the spectrum is the adjoint DFT of dL/dS.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fdconv_zoo.ops.convolution import (
    POINTWISE,
    Geometry,
    convolve,
    convolve_backward,
    extract_patches,
    fold_patches,
)
from fdconv_zoo.ops.operators import (
    KernelShape,
    KernelTensors,
    empty_output,
    memory_format,
    register_convolution,
    safe_divide,
)
from fdconv_zoo.ops.planes import LocalGates, MixedPlanes
from fdconv_zoo.ops.scratch import elements_at_once, scratch


class _Plan(NamedTuple):
    """How a batch is worked through: all that is not a tensor."""

    kernel_shape: KernelShape
    geometry: Geometry
    output_size: tuple[int, int]
    chunks: tuple[slice, ...]  # the images that are worked on at once
    uses_patches: bool  # convolve as a product of planes and patches
    scales_features: bool  # apply the factors of rows and columns to output and input, not to the planes

    def split(self, planes: Tensor) -> Tensor:
        """(b, O*a, I*b) to (b, G, O/G, a, I*b), where the factors broadcast."""
        return planes.view(planes.shape[0], self.geometry.groups, -1, self.kernel_shape[2], planes.shape[-1])


def _forward(x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> Tensor:
    plan = _make_plan(x.shape, x.device.type, kernel_shape, geometry)
    planes, gates, columns = _prepare(tensors, plan)
    rows = tensors.filter
    y = None
    for images in plan.chunks:
        kernels = _join(planes.make(images), None if gates is None else gates.make(images))
        columns_chunk, rows_chunk = (None if factors is None else factors[images] for factors in (columns, rows))
        y_chunk = _convolve(x[images], kernels, columns_chunk, rows_chunk, plan)
        if len(plan.chunks) == 1:
            return y_chunk.contiguous(memory_format=memory_format(x))
        if y is None:
            y = empty_output(x, kernel_shape, geometry)
        y[images] = y_chunk
    return y


def _backward(
    grad: Tensor, needs_x: bool, x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry
) -> tuple[Tensor | None, KernelTensors]:
    plan = _make_plan(x.shape, x.device.type, kernel_shape, geometry)
    planes, gates, columns = _prepare(tensors, plan)
    rows = tensors.filter
    grad_x = torch.empty_like(x) if needs_x else None
    column_sums, row_sums = (None if factors is None else torch.empty_like(factors) for factors in (columns, rows))
    for images in plan.chunks:
        kernels, gate = planes.make(images), None if gates is None else gates.make(images)
        kernels = _join(kernels, gate)
        columns_chunk, rows_chunk = (None if factors is None else factors[images] for factors in (columns, rows))
        grad_x_chunk, grad_plane, product = _convolve_backward(
            grad[images], x[images], kernels, columns_chunk, rows_chunk, plan, needs_x
        )
        if needs_x:
            grad_x[images] = grad_x_chunk
        if columns is not None:
            column_sums[images] = plan.split(product).sum(2)
        if rows is not None:
            row_sums[images] = plan.split(product).sum((3, 4)).flatten(1)
        if gate is not None:
            gates.add_gradient(product.addcmul_(product, gate, value=-1), images)
            grad_plane.mul_(gate)
        del kernels  # before more large tensors are made
        planes.add_gradient(grad_plane, images)
    return grad_x, _gradients(tensors, planes, gates, column_sums, row_sums, plan)


def _prepare(tensors: KernelTensors, plan: _Plan) -> tuple[MixedPlanes, LocalGates | None, Tensor | None]:
    """What makes K0, and the factors of its columns (B, G, a, C)."""
    _, in_channels, height, width = plan.kernel_shape
    groups = plan.geometry.groups
    attention, gates, columns = tensors.attention, None, None
    if tensors.taps is not None:
        attention = 2 * attention  # the 2 of the local factor 2 * sigmoid
        gates = LocalGates(tensors.taps.reshape(groups, -1, width * tensors.taps.shape[-1]), tensors.windows, width)
    if tensors.channel is not None:
        columns = tensors.channel.view(-1, groups, 1, in_channels, 1)
        if tensors.spatial is not None:
            columns = columns * tensors.spatial.view(-1, 1, height, 1, width)
        columns = columns.flatten(3)
    return MixedPlanes(tensors.spectrum, tensors.group_index, attention, in_channels * width), gates, columns


def _gradients(
    tensors: KernelTensors,
    planes: MixedPlanes,
    gates: LocalGates | None,
    column_sums: Tensor | None,
    row_sums: Tensor | None,
    plan: _Plan,
) -> KernelTensors:
    """Of all tensors, from what the batch has left: P summed over columns (B, G, a, C) and rows (B, O) among it."""
    grad_spectrum, grad_attention = planes.gradients()
    gradients = KernelTensors(grad_spectrum, None, grad_attention)
    if gates is not None:
        grad_taps, grad_windows = gates.gradients()
        gradients = gradients._replace(
            attention=2 * grad_attention, taps=grad_taps.view(tensors.taps.shape), windows=grad_windows
        )
    if row_sums is not None:
        gradients = gradients._replace(filter=safe_divide(row_sums, tensors.filter))
    if column_sums is not None:
        column_sums = column_sums.unflatten(3, (-1, plan.kernel_shape[3]))  # (B, G, a, I, b)
        gradients = gradients._replace(channel=safe_divide(column_sums.sum((2, 4)).flatten(1), tensors.channel))
        if tensors.spatial is not None:
            gradients = gradients._replace(spatial=safe_divide(column_sums.sum((1, 3)), tensors.spatial))
    return gradients


def _join(planes: Tensor, gates: Tensor | None) -> Tensor:
    """K0, (b, R, C)."""
    if gates is None:
        return planes
    return torch.mul(planes, gates, out=scratch("kernels", gates.shape, gates.dtype, gates.device))


@lru_cache(maxsize=1024)
def _make_plan(
    shape: torch.Size,
    device_type: str,
    kernel_shape: KernelShape,
    geometry: Geometry,
) -> _Plan:
    batch, in_features = shape[0], math.prod(shape[1:])
    out_channels, num_elements = kernel_shape[0], math.prod(kernel_shape)
    size = geometry.output_size(shape[2:])
    is_pointwise = kernel_shape[2:] == (1, 1)
    # Where there are more output channels than positions, copying out the patches moves less than rearranging planes
    # into kernels.
    uses_patches = geometry.groups == 1 and not is_pointwise and out_channels > size[0] * size[1]
    # Pointwise kernels of several images are one batched product, which does not mind large features.
    step = max(elements_at_once(device_type) // (num_elements if is_pointwise else num_elements + in_features), 1)
    return _Plan(
        kernel_shape=kernel_shape,
        geometry=geometry,
        output_size=size,
        chunks=tuple(slice(start, start + step) for start in range(0, batch, step)),
        uses_patches=uses_patches,
        scales_features=geometry.groups == 1 and (is_pointwise or uses_patches) and num_elements > in_features,
    )


def _convolve(x: Tensor, kernels: Tensor, columns: Tensor | None, rows: Tensor | None, plan: _Plan) -> Tensor:
    """Images (b, G*I, H, W) with their planes K0 (b or 1, R, C), to (b, O, H', W')."""
    if not plan.scales_features:
        kernels = _scale(kernels, columns, rows, plan)
    kernels = kernels.expand(len(x), -1, -1)
    x, operand, geometry = _operands(x, kernels, plan)
    if plan.scales_features and columns is not None:
        x = x * columns.reshape(len(x), -1, 1, 1).to(x.dtype)
    y = convolve(x, operand, geometry)
    if plan.scales_features and rows is not None:
        y.mul_(rows[..., None, None].to(y.dtype))
    return y.view(*y.shape[:2], *plan.output_size)


def _convolve_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, columns: Tensor | None, rows: Tensor | None, plan: _Plan, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x and of K0, and P = K * dL/dK, (b, R, C) both."""
    input_size = x.shape[2:]
    if not plan.scales_features:
        kernels = _scale(kernels, columns, rows, plan)
    kernels = kernels.expand(len(x), -1, -1)
    x, operand, geometry = _operands(x, kernels, plan)
    if plan.uses_patches:
        grad = grad.flatten(2).unsqueeze(2)
    if plan.scales_features and columns is not None:
        columns = columns.reshape(len(x), -1, 1, 1).to(x.dtype)
        x = x * columns
    if plan.scales_features and rows is not None:
        grad = grad * rows[..., None, None].to(grad.dtype)
    grad_x, grad_kernels = convolve_backward(grad, x, operand, geometry, needs_x)
    if grad_x is not None:
        if plan.scales_features and columns is not None:
            grad_x.mul_(columns)
        if plan.uses_patches:
            grad_x = fold_patches(grad_x, input_size, plan.geometry)
    if not plan.uses_patches:
        grad_kernels = grad_kernels.transpose(2, 3)
    grad_kernels = grad_kernels.reshape(kernels.shape).to(kernels.dtype)
    product = scratch("product", kernels.shape, kernels.dtype, x.device)
    torch.mul(kernels, grad_kernels, out=product)
    return grad_x, grad_kernels if plan.scales_features else _scale(grad_kernels, columns, rows, plan), product


def _operands(x: Tensor, kernels: Tensor, plan: _Plan) -> tuple[Tensor, Tensor, Geometry]:
    """The two factors of the convolution, from images (b, G*I, H, W) and planes (b, R, C), and its geometry."""
    kernels = kernels.to(x.dtype)
    out_channels, in_channels, height, width = plan.kernel_shape
    if plan.uses_patches:
        patches = extract_patches(x, plan.geometry)
        return patches, kernels.reshape(-1, out_channels, patches.shape[1], 1, 1), POINTWISE
    return x, kernels.reshape(-1, out_channels, height, in_channels, width).transpose(2, 3), plan.geometry


def _scale(planes: Tensor, columns: Tensor | None, rows: Tensor | None, plan: _Plan) -> Tensor:
    """Multiply planes (b, R, C) with the factors of their columns (b, G, a, C) and rows (b, O)."""
    shape = planes.shape
    planes = plan.split(planes)
    if columns is not None:
        planes = planes * columns.unsqueeze(2)
    if rows is not None:
        planes = planes * rows.view(len(rows), planes.shape[1], -1, 1, 1)
    return planes.view(-1, *shape[1:])


convolve_rebuild = register_convolution("rebuild", _forward, _backward)
