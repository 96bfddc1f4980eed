"""Registers a path's forward and backward functions as torch operators, for dynamic convolution and for FBM.

``torch.compile`` does not look into the operators. If it traced them, it would find that the backward pass recomputes
tensors of the forward pass, and would keep these tensors instead.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fdconv_zoo.ops.bands_plain import count_passing, modulate_bands_plain
from fdconv_zoo.ops.convolution import Geometry, geometry_arguments
from fdconv_zoo.ops.double_backward import needs_plain_gradients, plain_gradients
from fdconv_zoo.ops.kernels_plain import DisjointWeights, KernelModulators, LocalFactors, convolve_plain

KernelShape = tuple[int, int, int, int]


class KernelTensors(NamedTuple):
    """The tensors to assemble kernels from, in the notation of :mod:`fdconv_zoo.ops.kernels_plain`; or their gradients.

    Attributes:
        spectrum: (O*a, I*b//2 + 1, 2).
        group_index: (O*a, I*b//2 + 1), any integer dtype; it has no gradient.
        attention: (B, n) or (1, n).
        taps: (O*a*b, 1, T).
        windows: (B, G, I, T).
        channel: (B, G*I).
        filter: (B, O).
        spatial: (B, a, b).
    """

    spectrum: Tensor
    group_index: Tensor | None
    attention: Tensor
    taps: Tensor | None = None
    windows: Tensor | None = None
    channel: Tensor | None = None
    filter: Tensor | None = None
    spatial: Tensor | None = None


Convolution = Callable[[Tensor, DisjointWeights, KernelModulators, Geometry], Tensor]
ConvolutionForward = Callable[[Tensor, KernelTensors, KernelShape, Geometry], Tensor | tuple[Tensor, Tensor]]
ConvolutionBackward = Callable[..., tuple[Tensor | None, KernelTensors]]
_NUM_TENSORS = len(KernelTensors._fields)
_KERNEL_TENSORS = "Tensor spectrum, Tensor group_index, Tensor attention, " + ", ".join(
    f"Tensor? {name}" for name in KernelTensors._fields[3:]
)
_SIZES = "int[] kernel_shape, int[] stride, int[] padding, int[] dilation, int groups"


def register_convolution(
    path: str, forward: ConvolutionForward, backward: ConvolutionBackward, keeps_kernels: bool = False
) -> Convolution:
    """Register the operator ``fdconv_zoo::convolve_<path>``: assemble the kernel of every image and convolve with it.

    Args:
        path: name of the path.
        forward: maps ``(x, tensors, kernel_shape, geometry)`` to the output (B, O, H', W') in x's dtype and memory
            format.
        backward: maps ``(grad, needs_x, x, tensors, kernel_shape, geometry)`` to the gradient of x (None unless
            ``needs_x``) and the gradients of all tensors that are not None.
        keeps_kernels: ``forward`` also returns the kernels, with dtype and strides as from :func:`empty_kernels` for x.
            They are kept for the backward pass, and are the last argument of ``backward``.

    Returns:
        The function of this path, with the arguments of :func:`fdconv_zoo.ops.kernels_plain.convolve_plain`.
    """

    def run_forward(x: Tensor, *args: Any) -> Tensor | tuple[Tensor, Tensor]:
        tensors, kernel_shape, geometry = _unpack(args)
        if min(geometry.output_size(x.shape[2:])) < 1:
            size, kernel = ("x".join(map(str, sizes)) for sizes in (x.shape[2:], geometry.kernel_size))
            raise RuntimeError(f"Input of {size} is smaller than the kernel, {kernel}, even with padding.")
        return forward(x, tensors, kernel_shape, geometry)

    def run_backward(grad: Tensor, needs_x: bool, *args: Any) -> list[Tensor]:
        kept, (x, *args) = args[:keeps_kernels], args[keeps_kernels:]
        grad_x, gradients = backward(grad, needs_x, x, *_unpack(args), *kept)
        return [gradient for gradient in (grad_x, *gradients) if gradient is not None]

    name = f"fdconv_zoo::convolve_{path}"
    kernels, result = ("Tensor kernels, ", "(Tensor, Tensor)") if keeps_kernels else ("", "Tensor")
    operator = torch.library.custom_op(
        name, run_forward, mutates_args=(), schema=f"(Tensor x, {_KERNEL_TENSORS}, {_SIZES}) -> {result}"
    )
    backward_operator = torch.library.custom_op(
        f"{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"(Tensor grad, bool needs_x, {kernels}Tensor x, {_KERNEL_TENSORS}, {_SIZES}) -> Tensor[]",
    )

    @operator.register_fake
    def _(x: Tensor, *args: Any) -> Tensor | tuple[Tensor, Tensor]:
        _, kernel_shape, geometry = _unpack(args)
        y = empty_output(x, kernel_shape, geometry)
        return (y, empty_kernels(x, x.shape[0], kernel_shape)) if keeps_kernels else y

    @backward_operator.register_fake
    def _(grad: Tensor, needs_x: bool, *args: Any) -> list[Tensor]:
        x, *args = args[keeps_kernels:]
        gradients = [torch.empty_like(x)] if needs_x else []
        return gradients + [t.new_empty(t.shape) for t in _differentiable(args) if t is not None]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        kept = output[1:] if keeps_kernels else ()
        ctx.save_for_backward(*inputs[: 1 + _NUM_TENSORS], *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # or autograd would make zeros for the gradient of the kernels
        ctx.sizes = inputs[1 + _NUM_TENSORS :]

    def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        no_gradients = [None] * len(ctx.sizes)
        saved = ctx.saved_tensors  # read once, since activation checkpointing allows only one access
        inputs, kept = saved[: 1 + _NUM_TENSORS], saved[1 + _NUM_TENSORS :]
        if needs_plain_gradients(grad):
            return *plain_gradients(_convolve_plain, inputs, grad, *ctx.sizes), *no_gradients
        tensors, needs_x = inputs[1:], ctx.needs_input_grad[0]
        gradients = iter(backward_operator(grad, needs_x, *kept, *inputs, *ctx.sizes))
        grad_x = next(gradients) if needs_x else None
        grad_spectrum, *others = (None if tensor is None else next(gradients) for tensor in _differentiable(tensors))
        return grad_x, grad_spectrum, None, *others, *no_gradients

    operator.register_autograd(differentiate, setup_context=setup_context)

    @register_flop_formula(getattr(torch.ops.fdconv_zoo, f"convolve_{path}"))
    def _(*shapes: Any, **_: Any) -> int:
        """Count the flops of the convolution and of the local branch's product, as torch does for the plain path."""
        return 2 * sum(_multiply_adds(*shapes))

    @register_flop_formula(getattr(torch.ops.fdconv_zoo, f"convolve_{path}_backward"))
    def _(grad: torch.Size, needs_x: bool, *shapes: Any, **_: Any) -> int:
        """Count the convolution's flops for each gradient (x, kernels), and the product's for taps and windows."""
        convolution, product = _multiply_adds(*shapes[keeps_kernels:])
        return 2 * ((needs_x + 1) * convolution + 2 * product)

    def convolve(x: Tensor, weights: DisjointWeights, modulators: KernelModulators, geometry: Geometry) -> Tensor:
        taps, windows = modulators.local or (None, None)
        tensors = (*weights[:3], taps, windows, modulators.channel, modulators.filter, modulators.spatial)
        y = operator(x, *tensors, weights.kernel_shape, *geometry_arguments(geometry))
        return y[0] if keeps_kernels else y

    return convolve


def empty_output(x: Tensor, kernel_shape: KernelShape, geometry: Geometry) -> Tensor:
    """Allocate the result of a convolution, with x's dtype, device and memory format."""
    shape = (x.shape[0], kernel_shape[0], *geometry.output_size(x.shape[2:]))
    return x.new_empty(shape).to(memory_format=memory_format(x))


def empty_kernels(x: Tensor, batch: int, kernel_shape: KernelShape) -> Tensor:
    """Allocate kernels (B, O, I, a, b) in x's dtype; if x is channels_last, they have I innermost in memory."""
    out_channels, in_channels, height, width = kernel_shape
    if is_channels_last(x):
        return x.new_empty(batch, out_channels, height, width, in_channels).permute(0, 1, 4, 2, 3)
    return x.new_empty(batch, *kernel_shape)


def safe_divide(sums: Tensor, factors: Tensor) -> Tensor:
    """Compute sums / factors; 0 where a factor has underflowed to 0, as its own derivative is 0 there as well."""
    return torch.where(factors == 0, 0, sums / factors)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return x's memory format, channels_last or contiguous."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) is channels_last; False if it is contiguous as well, as with one channel or one pixel."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _unpack(args: Sequence[Any]) -> tuple[KernelTensors, KernelShape, Geometry]:
    tensors, (kernel_shape, *sizes, groups) = args[:_NUM_TENSORS], args[_NUM_TENSORS:]
    return (
        KernelTensors(*tensors),
        tuple(kernel_shape),
        Geometry(tuple(kernel_shape[2:]), *(tuple(size) for size in sizes), groups),
    )


def _differentiable(args: Sequence[Any]) -> list[Tensor | None]:
    """The tensors of :class:`KernelTensors` without ``group_index``."""
    return [args[0], *args[2:_NUM_TENSORS]]


def _convolve_plain(x: Tensor, *args: Any) -> Tensor:
    """The operator's computation with torch's own operations, on the whole batch."""
    tensors, kernel_shape, geometry = _unpack(args)
    weights = DisjointWeights(tensors.spectrum, tensors.group_index, tensors.attention, kernel_shape)
    local = None if tensors.taps is None else LocalFactors(tensors.taps, tensors.windows)
    modulators = KernelModulators(None, tensors.channel, tensors.filter, tensors.spatial, local)
    return convolve_plain(x, weights, modulators, geometry)


def _multiply_adds(x: torch.Size, *args: Any) -> tuple[int, int]:
    """Multiply-adds of the convolution, and of the local branch's product of taps and windows."""
    kernel_shape, stride, padding, dilation, groups = args[_NUM_TENSORS:]
    height, width = Geometry(kernel_shape[2:], stride, padding, dilation, groups).output_size(x[2:])
    elements = x[0] * math.prod(kernel_shape)
    taps = args[3]
    return elements * height * width, 0 if taps is None else elements * taps[-1]


BandForward = Callable[[Tensor, Tensor, Sequence[float]], Tensor]
BandBackward = Callable[[Tensor, Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]]


def register_bands(path: str, forward: BandForward, backward: BandBackward) -> BandForward:
    """Register the operator ``fdconv_zoo::modulate_bands_<path>``: the weighted sum of a map's frequency bands.

    Args:
        path: name of the path.
        forward: maps ``(x, attention, band_edges)`` to the output, with x's shape, dtype and memory format.
        backward: maps ``(grad, x, attention, band_edges)`` to the gradients of x and attention.

    Returns:
        The function of this path, with the arguments of :func:`fdconv_zoo.ops.bands_plain.modulate_bands_plain`.
    """
    name = f"fdconv_zoo::modulate_bands_{path}"
    operator = torch.library.custom_op(
        name, forward, mutates_args=(), schema="(Tensor x, Tensor attention, float[] band_edges) -> Tensor"
    )
    backward_operator = torch.library.custom_op(
        f"{name}_backward",
        backward,
        mutates_args=(),
        schema="(Tensor grad, Tensor x, Tensor attention, float[] band_edges) -> (Tensor, Tensor)",
    )

    @operator.register_fake
    def _(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
        return torch.empty_like(x)

    @backward_operator.register_fake
    def _(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(attention)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.band_edges = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if needs_plain_gradients(grad):
            return *plain_gradients(modulate_bands_plain, ctx.saved_tensors, grad, ctx.band_edges), None
        return *backward_operator(grad, *ctx.saved_tensors, ctx.band_edges), None

    operator.register_autograd(differentiate, setup_context=setup_context)

    @register_flop_formula(getattr(torch.ops.fdconv_zoo, f"modulate_bands_{path}"))
    def _(x: torch.Size, attention: torch.Size, band_edges: Sequence[float], **_: Any) -> int:
        return _band_flops(x, band_edges)

    @register_flop_formula(getattr(torch.ops.fdconv_zoo, f"modulate_bands_{path}_backward"))
    def _(grad: torch.Size, x: torch.Size, attention: torch.Size, band_edges: Sequence[float], **_: Any) -> int:
        return _band_flops(x, band_edges)  # the bases are constant: a product's gradient costs as much

    return operator


def _band_flops(x: torch.Size, band_edges: Sequence[float]) -> int:
    """Count the flops of the plain path's matrix products for x (B, C, H, W)."""
    batch, channels, height, width = x
    (rows, cols), *_ = passing = count_passing((height, width), band_edges)
    multiply_adds = height * width * cols + rows * height * cols  # analysis
    multiply_adds += sum(height * p * q + height * q * width for p, q in passing)  # synthesis of each band
    return 2 * batch * channels * multiply_adds
