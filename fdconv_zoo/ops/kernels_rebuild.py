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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fdconv_zoo.ops.convolution import (
    POINTWISE,
    Geometry,
    convolve,
    convolve_backward,
    extract_patches,
    fold_patches,
)
from fdconv_zoo.ops.double_backward import needs_plain_gradients, plain_gradients
from fdconv_zoo.ops.kernels_plain import DisjointWeights, KernelModulators, mix_spectrum
from fdconv_zoo.ops.planes import LocalGates, MixedPlanes, plane_windows
from fdconv_zoo.ops.scratch import elements_at_once, scratch


class _Plan(NamedTuple):
    """How a batch is worked through: all that is not a tensor."""

    kernel_shape: tuple[int, int, int, int]
    geometry: Geometry
    output_size: tuple[int, int]
    chunks: tuple[slice, ...]  # the images that are worked on at once
    uses_patches: bool  # convolve as a product of planes and patches
    scales_features: bool  # apply the factors of rows and columns to output and input, not to the planes

    def split(self, planes: Tensor) -> Tensor:
        """(b, O*a, I*b) to (b, G, O/G, a, I*b), where the factors broadcast."""
        return planes.view(planes.shape[0], self.geometry.groups, -1, self.kernel_shape[2], planes.shape[-1])


def convolve_rebuild(x: Tensor, weights: DisjointWeights, modulators: KernelModulators, geometry: Geometry) -> Tensor:
    """The "rebuild" path of :func:`fdconv_zoo.ops.dynamic_convolution`, for kernels that differ between images.

    The result has x's memory format.
    """
    _, in_channels, height, width = weights.kernel_shape
    groups, attention, taps, windows, columns = geometry.groups, weights.attention, None, None, None
    if modulators.local is not None:
        attention = 2 * attention  # the 2 of the local factor 2 * sigmoid
        taps, windows = modulators.local
        taps, windows = taps.view(groups, -1, width * taps.shape[-1]), plane_windows(windows, width)
    if modulators.channel is not None:
        columns = modulators.channel.view(-1, groups, 1, in_channels, 1)
        if modulators.spatial is not None:
            columns = columns * modulators.spatial.view(-1, 1, height, 1, width)
        columns = columns.flatten(3)  # (B, G, a, I*b)
    tensors = (x, weights.spectrum, weights.group_index, attention, taps, windows, columns, modulators.filter)
    return _operator(*tensors, weights.kernel_shape, *geometry.arguments)


def _forward(
    x: Tensor,
    spectrum: Tensor,
    group_index: Tensor,
    attention: Tensor,
    taps: Tensor | None,
    windows: Tensor | None,
    columns: Tensor | None,
    rows: Tensor | None,
    *sizes: Any,
) -> Tensor:
    plan = _make_plan(x.shape, x.device.type, *map(_hashable, sizes))
    planes = MixedPlanes(spectrum, group_index, attention, plan.kernel_shape[1] * plan.kernel_shape[3])
    gates = None if taps is None else LocalGates(taps, windows)
    y = None
    for images in plan.chunks:
        kernels = _join(planes.make(images), None if gates is None else gates.make(images))
        columns_chunk, rows_chunk = (None if factors is None else factors[images] for factors in (columns, rows))
        y_chunk = _convolve(x[images], kernels, columns_chunk, rows_chunk, plan)
        if len(plan.chunks) == 1:
            return y_chunk.contiguous(memory_format=_memory_format(x))
        if y is None:
            y = _empty_output(x, plan)
        y[images] = y_chunk
    return y


def _backward(
    grad: Tensor,
    needs_x: bool,
    x: Tensor,
    spectrum: Tensor,
    group_index: Tensor,
    attention: Tensor,
    taps: Tensor | None,
    windows: Tensor | None,
    columns: Tensor | None,
    rows: Tensor | None,
    *sizes: Any,
) -> list[Tensor]:
    """The gradients of those of the differentiable arguments that exist, of x where it is needed."""
    plan = _make_plan(x.shape, x.device.type, *map(_hashable, sizes))
    planes = MixedPlanes(spectrum, group_index, attention, plan.kernel_shape[1] * plan.kernel_shape[3])
    gates = None if taps is None else LocalGates(taps, windows)
    grad_x = torch.empty_like(x) if needs_x else None
    grad_columns, grad_rows = (None if factors is None else torch.empty_like(factors) for factors in (columns, rows))
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
            grad_columns[images] = _safe_divide(plan.split(product).sum(2), columns_chunk)
        if rows is not None:
            grad_rows[images] = _safe_divide(plan.split(product).sum((3, 4)).flatten(1), rows_chunk)
        if gate is not None:
            gates.add_gradient(product.addcmul_(product, gate, value=-1), images)
            grad_plane.mul_(gate)
        del kernels  # before more large tensors are made
        planes.add_gradient(grad_plane, images)
    gradients = (grad_x, *planes.gradients(), *(gates.gradients() if gates else ()), grad_columns, grad_rows)
    return [gradient for gradient in gradients if gradient is not None]


def _forward_plain(
    x: Tensor,
    spectrum: Tensor,
    group_index: Tensor,
    attention: Tensor,
    taps: Tensor | None,
    windows: Tensor | None,
    columns: Tensor | None,
    rows: Tensor | None,
    *sizes: Any,
) -> Tensor:
    """:func:`_forward` in torch's own operations on the whole batch."""
    plan = _make_plan(x.shape, x.device.type, *map(_hashable, sizes))
    out_channels, in_channels, height, width = plan.kernel_shape
    kernels = mix_spectrum(DisjointWeights(spectrum, group_index, attention, plan.kernel_shape))
    planes = kernels.transpose(2, 3).reshape(-1, out_channels * height, in_channels * width)
    if taps is not None:
        planes = planes * torch.sigmoid(taps @ windows).view(len(x), *planes.shape[1:])
    kernels = _scale(planes, columns, rows, plan).view(-1, out_channels, height, in_channels, width).transpose(2, 3)
    return convolve(x, kernels.to(x.dtype), plan.geometry)


# One opaque operator for torch.compile: traced step by step, the rebuilding in backward would be recognized as what
# forward has computed already, and be kept instead.
_TENSORS = "Tensor x, Tensor spectrum, Tensor group_index, Tensor attention, " + ", ".join(
    f"Tensor? {name}" for name in ("taps", "windows", "columns", "rows")
)
_SIZES = "int[] kernel_shape, int[] stride, int[] padding, int[] dilation, int groups"
_operator = torch.library.custom_op(
    "fdconv_zoo::convolve_rebuild", _forward, mutates_args=(), schema=f"({_TENSORS}, {_SIZES}) -> Tensor"
)
_backward_operator = torch.library.custom_op(
    "fdconv_zoo::convolve_rebuild_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, bool needs_x, {_TENSORS}, {_SIZES}) -> Tensor[]",
)


@_operator.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    kernel_shape, stride, padding, dilation, groups = args[-5:]
    size = Geometry(kernel_shape[2:], stride, padding, dilation, groups).output_size(x.shape[2:])
    return x.new_empty(x.shape[0], kernel_shape[0], *size).to(memory_format=_memory_format(x))


@_backward_operator.register_fake
def _(
    grad: Tensor, needs_x: bool, x: Tensor, spectrum: Tensor, group_index: Tensor, *others: Tensor | int | None
) -> list[Tensor]:
    tensors = (x if needs_x else None, spectrum, *others[:5])
    return [torch.empty_like(tensor) for tensor in tensors if tensor is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.sizes = inputs[8:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    no_gradients = [None] * len(ctx.sizes)
    if needs_plain_gradients(grad):
        return *plain_gradients(_forward_plain, ctx, grad, *ctx.sizes), *no_gradients
    x, spectrum, group_index, *others = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[0]
    gradients = iter(_backward_operator(grad, needs_x, x, spectrum, group_index, *others, *ctx.sizes))
    grad_x, grad_spectrum = next(gradients) if needs_x else None, next(gradients)
    return (
        grad_x,
        grad_spectrum,
        None,
        *(None if tensor is None else next(gradients) for tensor in others),
        *no_gradients,
    )


_operator.register_autograd(_differentiate, setup_context=_setup_context)


@register_flop_formula(torch.ops.fdconv_zoo.convolve_rebuild)
def _flops(*shapes: Any, **_: Any) -> int:
    """Those of the convolution and of the local branch's product, as torch counts the plain path's."""
    return 2 * sum(_multiply_adds(*shapes))


@register_flop_formula(torch.ops.fdconv_zoo.convolve_rebuild_backward)
def _backward_flops(grad: torch.Size, needs_x: bool, *shapes: Any, **_: Any) -> int:
    """The convolution's again per gradient, of x and of the kernels; the product's for taps and for windows."""
    convolution, product = _multiply_adds(*shapes)
    return 2 * ((needs_x + 1) * convolution + 2 * product)


def _multiply_adds(x: torch.Size, *args: Any) -> tuple[int, int]:
    """Of the convolution, and of the local branch's product of taps and windows."""
    taps = args[3]
    kernel_shape, stride, padding, dilation, groups = args[-5:]
    height, width = Geometry(kernel_shape[2:], stride, padding, dilation, groups).output_size(x[2:])
    elements = x[0] * math.prod(kernel_shape)
    # Of a row of the taps, which see b columns at once, all but one column meet zeros.
    return elements * height * width, 0 if taps is None else elements * (taps[2] // kernel_shape[3])


def _hashable(size: Any) -> Any:
    return size if isinstance(size, int) else tuple(size)


def _join(planes: Tensor, gates: Tensor | None) -> Tensor:
    """K0, (b, R, C)."""
    if gates is None:
        return planes
    return torch.mul(planes, gates, out=scratch("kernels", gates.shape, gates.dtype, gates.device))


@lru_cache(maxsize=1024)
def _make_plan(
    shape: torch.Size,
    device_type: str,
    kernel_shape: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> _Plan:
    geometry = Geometry(kernel_shape[2:], stride, padding, dilation, groups)
    batch, in_features = shape[0], math.prod(shape[1:])
    out_channels, num_elements = kernel_shape[0], math.prod(kernel_shape)
    size = geometry.output_size(shape[2:])
    if min(size) < 1:
        kernel = "x".join(map(str, geometry.kernel_size))
        raise ValueError(f"Input of {shape[2]}x{shape[3]}: it is smaller than the kernel, {kernel}, with its padding.")
    is_pointwise = kernel_shape[2:] == (1, 1)
    # Where there are more output channels than positions, copying out the patches moves less than rearranging planes
    # into kernels.
    uses_patches = groups == 1 and not is_pointwise and out_channels > size[0] * size[1]
    # Pointwise kernels of several images are one batched product, which does not mind large features.
    step = max(elements_at_once(device_type) // (num_elements if is_pointwise else num_elements + in_features), 1)
    return _Plan(
        kernel_shape=kernel_shape,
        geometry=geometry,
        output_size=size,
        chunks=tuple(slice(start, start + step) for start in range(0, batch, step)),
        uses_patches=uses_patches,
        scales_features=groups == 1 and (is_pointwise or uses_patches) and num_elements > in_features,
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


def _empty_output(x: Tensor, plan: _Plan) -> Tensor:
    shape = (len(x), plan.kernel_shape[0], *plan.output_size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _safe_divide(sums: Tensor, factors: Tensor) -> Tensor:
    """sums / factors, and 0 where a factor has underflowed to 0 (there its own derivative is 0 as well)."""
    return torch.where(factors == 0, 0, sums / factors)
