"""Dynamic convolution for GPUs: kernels are assembled for many images at once, in few launches.

For each chunk of images, the forward pass weighs the coefficients, transforms them (``torch.fft``), applies all
modulators, and convolves. The backward pass repeats the first three steps. With P = K * dL/dK, the gradients of all
modulators follow from sums of P, which are computed together with the gradient of the planes; see
:mod:`fdconv_zoo.ops.kernels_rebuild` for the mathematics. All sums have a fixed order. Kernels are assembled in
float32, whatever the dtype of x.

If the kernels K are kept for the backward pass, in x's dtype, they are not assembled again: P is computed from K, and
the gradient of the planes from the modulators. The gradients of taps, windows, channel, filter and spatial are then
affected by the rounding of K.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry, geometry_arguments
from fdconv_zoo.ops.image_convolution import convolve_images, convolve_images_backward
from fdconv_zoo.ops.kernels_plain import DisjointWeights, mix_spectrum
from fdconv_zoo.ops.operators import (
    KernelShape,
    KernelTensors,
    empty_kernels,
    is_channels_last,
    memory_format,
    register_convolution,
)
from fdconv_zoo.ops.triton_support import cdiv, is_interpreted, on_device_of, power_of_two, triton, with_fallback

if triton is not None:
    import triton.language as tl

    from fdconv_zoo.ops import kernels_jit

# Elements of kernels to process at once, with 4 bytes in each of several tensors. Their number grows with the batch, as
# does the memory of feature maps.
_ELEMENTS_BY_IMAGE, _LEAST_ELEMENTS, _MOST_ELEMENTS = 2**20, 2**23, 2**26
_IMAGES_AT_ONCE = 64  # one block of the sums over images
_IMAGES_OF_PROGRAM = 16  # in the sums over coefficients: the least that tensor cores multiply
_COEFFICIENTS = 128  # in a step of these sums
_WEIGHED, _WEIGHED_IMAGES = 256, 16  # coefficients and images that a program weighs
_WARPS = 2112  # that a large GPU runs at once: 16 on each of 132 multiprocessors
_MOST_STEPS = 8
_AT_ONCE = {} if torch.version.hip else {"maxnreg": 168}  # three programs of 128 threads fit a multiprocessor


class _Blocks(NamedTuple):
    """How planes are cut into blocks, one for each warp: ``steps`` tiles of one group's rows, one below the other."""

    rows: int  # of a tile
    cols: int  # input channels
    steps: int
    row_blocks: int
    col_blocks: int


def _forward(x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> Tensor:
    return _convolve(_dense(x), tensors, kernel_shape, geometry)


def _forward_keeping(
    x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    kernels = empty_kernels(x, len(x), kernel_shape)
    return _convolve(x, tensors, kernel_shape, geometry, kernels), kernels


def _convolve(
    x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry, kept: Tensor | None = None
) -> Tensor:
    """Convolve x (contiguous or channels_last), and write the kernels of all images to ``kept``, if given."""
    tensors = _contiguous(tensors)
    outputs = []
    with on_device_of(x):
        for images in _chunks(len(x), kernel_shape):
            part = _select(tensors, images)
            kernels = empty_kernels(x, len(x[images]), kernel_shape) if kept is None else kept[images]
            _assemble(kernels, part, _mix(part, kernel_shape), geometry)
            outputs.append(convolve_images(x[images], kernels, geometry))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _backward(
    grad: Tensor,
    needs_x: bool,
    x: Tensor,
    tensors: KernelTensors,
    kernel_shape: KernelShape,
    geometry: Geometry,
    kept: Tensor | None = None,
) -> tuple[Tensor | None, KernelTensors]:
    x, tensors = _dense(x), _contiguous(tensors)
    grad = grad.contiguous(memory_format=memory_format(x))
    with on_device_of(x):
        return _Gradients(x, tensors, kernel_shape, geometry, kept).run(grad, needs_x)


class _Gradients:
    """The backward pass of a batch, from the kernels of all images if they were kept."""

    def __init__(
        self, x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry, kept: Tensor | None
    ) -> None:
        self.x, self.tensors, self.kernel_shape, self.geometry, self.kept = x, tensors, kernel_shape, geometry, kept
        _, in_channels, _, width = kernel_shape
        self.num_taps = 0 if tensors.taps is None else tensors.taps.shape[-1]
        self.num_col_sums = self.num_taps + (tensors.channel is not None)
        needs_rows = tensors.filter is not None or tensors.spatial is not None
        self.blocks = blocks = _cut(kernel_shape, geometry.groups, min(len(x), _images_at_once(len(x), kernel_shape)))
        elements = len(tensors.spectrum) * width
        self.tap_shares = self._empty(len(x), blocks.col_blocks, elements, self.num_taps)
        self.row_shares = self._empty(len(x), blocks.col_blocks, elements * needs_rows)
        self.col_shares = self._empty(len(x), geometry.groups, blocks.row_blocks, self.num_col_sums, in_channels)
        self.grad_spectrum = torch.empty_like(tensors.spectrum)
        self.grad_attention = torch.empty_like(tensors.attention)
        self.coefficients = math.prod(tensors.spectrum.shape[:2])
        self.steps = min(cdiv(self.coefficients, _COEFFICIENTS * _WARPS // 2), _MOST_STEPS)
        programs = cdiv(self.coefficients, _COEFFICIENTS * self.steps)
        self.attention_shares = self._empty(programs, *tensors.attention.shape)

    def run(self, grad: Tensor, needs_x: bool) -> tuple[Tensor | None, KernelTensors]:
        """Compute the gradients of x, if needed, and of all tensors that are not None."""
        grad_x = []
        is_shared = len(self.tensors.attention) < len(self.x)
        sum_of_planes = None
        for images in _chunks(len(self.x), self.kernel_shape):
            part, x = _select(self.tensors, images), self.x[images]
            if self.kept is None:
                source = _mix(part, self.kernel_shape)
                kernels = empty_kernels(x, len(x), self.kernel_shape)
                _assemble(kernels, part, source, self.geometry)
            else:
                source = kernels = self.kept[images]
            grad_images, grad_kernels = convolve_images_backward(grad[images], x, kernels, self.geometry, needs_x)
            grad_x.append(grad_images)
            del kernels
            grad_planes = self._modulate_backward(images, part, source, grad_kernels)
            del source, grad_kernels
            if is_shared:
                grad_planes = grad_planes.sum(0, keepdim=True)
                sum_of_planes = grad_planes if sum_of_planes is None else sum_of_planes + grad_planes
            else:
                self._spectrum_backward(images, grad_planes)
        if is_shared:
            self._spectrum_backward(slice(0, 1), sum_of_planes)
        gradients = KernelTensors(self.grad_spectrum, None, self.grad_attention, *self._finish())
        if not needs_x:
            return None, gradients
        return grad_x[0] if len(grad_x) == 1 else torch.cat(grad_x), gradients

    def _modulate_backward(self, images: slice, part: KernelTensors, source: Tensor, grad_kernels: Tensor) -> Tensor:
        """Compute the gradients of planes, (b, R, C), from the planes or from kept kernels.

        If ``source`` holds a plane for each image, the gradients overwrite the planes.
        """
        blocks, groups = self.blocks, self.geometry.groups
        batch, in_channels, height, width = len(grad_kernels), *self.kernel_shape[1:]
        rows = len(part.spectrum)
        is_kept = self.kept is not None
        strides = source.stride() if is_kept else (_plane_stride(source), 0, 0, 0, 0)
        is_new = is_kept or len(source) < batch
        grad_planes = self._empty(batch, rows, in_channels * width) if is_new else source
        grid = (groups * blocks.row_blocks * blocks.col_blocks, batch)
        kernels_jit.modulate_backward[grid](
            source,
            grad_kernels,
            *_factors(part, source),
            grad_planes,
            self.tap_shares[images],
            self.row_shares[images],
            self.col_shares[images],
            groups,
            rows // groups,
            in_channels,
            blocks.row_blocks,
            blocks.col_blocks,
            blocks.steps,
            *strides,
            *_window_strides(part),
            *grad_kernels.stride(),
            HEIGHT=height,
            WIDTH=width,
            **_flags(part),
            ROWS=blocks.rows,
            COLS=blocks.cols,
            LEVELS=max(self.num_taps - 1, 0).bit_length(),
            KEPT=int(is_kept),
            num_warps=1,
        )
        return grad_planes

    def _spectrum_backward(self, images: slice, grad_planes: Tensor) -> None:
        """Add the gradients of planes (b, R, C) to those of spectrum and attention."""
        _, group_index, attention, *_ = _select(self.tensors, images)
        batch, rows, cols = grad_planes.shape
        grads = torch.fft.rfft2(grad_planes)
        num_groups = attention.shape[1]
        groups_block = power_of_two(num_groups, 16, 64)
        grid = (len(self.attention_shares), cdiv(num_groups, groups_block))
        kernels_jit.spectrum_backward[grid](
            torch.view_as_real(grads),
            self.tensors.spectrum,
            group_index,
            attention,
            self.grad_spectrum,
            self.attention_shares[:, images],
            self.coefficients,
            grads.shape[2],
            cols,
            num_groups,
            self.attention_shares.stride(0),
            batch,
            self.steps,
            1 / (rows * cols),
            ACCUMULATE=images.start > 0,
            IMAGES=_IMAGES_OF_PROGRAM,
            BLOCK=_COEFFICIENTS,
            GROUPS=groups_block,
            # The interpreter does not multiply bfloat16.
            DTYPE=tl.float32 if is_interpreted() else tl.bfloat16,
            num_stages=1,  # more stages take memory from further programs, which hide latency better
            **_AT_ONCE,
        )

    def _finish(self) -> list[Tensor | None]:
        """Compute the gradients of taps, windows, channel, filter, spatial and attention from the partial sums."""
        _, _, _, taps, windows, *factors = self.tensors
        # Windows may overlap in memory; their gradients must not.
        gradients = [None if t is None else self._empty(*t.shape) for t in (taps, windows, *factors)]
        out_channels, in_channels, height, width = self.kernel_shape
        batch, rows, groups = len(self.x), len(self.tensors.spectrum), self.geometry.groups
        flags, many, few, share_size = _flags(self.tensors), 128, 16, self.grad_attention.numel()
        programs = (
            batch * groups * cdiv(self.num_col_sums * in_channels, many)
            + cdiv(self.num_taps * rows * width, few)
            + flags["FILTER"] * batch * cdiv(out_channels, many)
            + flags["SPATIAL"] * batch * height * width
            + cdiv(share_size, few)
        )
        kernels_jit.finish[(programs,)](
            self.tap_shares,
            self.row_shares,
            self.col_shares,
            self.attention_shares,
            *_or_any(factors, self.attention_shares),
            *_or_any(gradients, self.attention_shares),
            self.grad_attention,
            batch,
            groups,
            rows,
            in_channels,
            self.blocks.row_blocks,
            self.blocks.col_blocks,
            share_size,
            len(self.attention_shares),
            HEIGHT=height,
            WIDTH=width,
            **flags,
            MANY=many,
            FEW=few,
        )
        return gradients

    def _empty(self, *shape: int) -> Tensor:
        return self.tensors.spectrum.new_empty(shape)


def _mix(part: KernelTensors, kernel_shape: KernelShape) -> Tensor:
    """Compute the planes (b, R, C) of some images, or (1, R, C) if all share their attention."""
    spectrum, group_index, attention, *_ = part
    rows, cols = len(spectrum), kernel_shape[1] * kernel_shape[3]
    if cols % 2:
        weights = DisjointWeights(spectrum, group_index, attention, kernel_shape)
        return mix_spectrum(weights).transpose(2, 3).reshape(-1, rows, cols)
    batch, half = len(attention), cols // 2
    packed = spectrum.new_empty(batch, rows, half, 2)
    grid = (cdiv(rows * half, _WEIGHED), cdiv(batch, _WEIGHED_IMAGES))
    kernels_jit.weigh[grid](
        spectrum,
        group_index,
        attention,
        packed,
        rows,
        half,
        attention.shape[1],
        batch,
        1 / (rows * cols),
        IMAGES=_WEIGHED_IMAGES,
        BLOCK=_WEIGHED,
    )
    # norm="forward" leaves the inverse transform unscaled: the scale is in the weights already.
    planes = torch.fft.ifft2(torch.view_as_complex(packed), norm="forward")
    return torch.view_as_real(planes).view(batch, rows, cols)


def _assemble(kernels: Tensor, part: KernelTensors, planes: Tensor, geometry: Geometry) -> None:
    """Multiply planes by all modulators, and write the result to ``kernels`` (images, O, I, a, b)."""
    kernel_shape = kernels.shape[1:]
    blocks = _cut(kernel_shape, geometry.groups, len(kernels))
    grid = (geometry.groups * blocks.row_blocks * blocks.col_blocks, len(kernels))
    kernels_jit.modulate[grid](
        planes,
        *_factors(part, planes),
        kernels,
        geometry.groups,
        planes.shape[1] // geometry.groups,
        kernel_shape[1],
        blocks.row_blocks,
        blocks.col_blocks,
        blocks.steps,
        _plane_stride(planes),
        *_window_strides(part),
        *kernels.stride(),
        HEIGHT=kernel_shape[2],
        WIDTH=kernel_shape[3],
        **_flags(part),
        ROWS=blocks.rows,
        COLS=blocks.cols,
        num_warps=1,
    )


def _plane_stride(planes: Tensor) -> int:
    """The stride between the planes of images; 0 if all images share one plane."""
    return planes.stride(0) if len(planes) > 1 else 0


def _chunks(batch: int, kernel_shape: KernelShape) -> list[slice]:
    """The images to process at once."""
    step = _images_at_once(batch, kernel_shape)
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def _images_at_once(batch: int, kernel_shape: KernelShape) -> int:
    return min(max(_elements_at_once(batch) // math.prod(kernel_shape), 1), _IMAGES_AT_ONCE)


def _elements_at_once(batch: int) -> int:
    return min(max(batch * _ELEMENTS_BY_IMAGE, _LEAST_ELEMENTS), _MOST_ELEMENTS)


def _select(tensors: KernelTensors, images: slice) -> KernelTensors:
    spectrum, group_index, attention, taps, *others = tensors
    if len(attention) > 1:
        attention = attention[images]
    return KernelTensors(spectrum, group_index, attention, taps, *(None if t is None else t[images] for t in others))


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _contiguous(tensors: KernelTensors) -> KernelTensors:
    """Make all tensors contiguous except the windows, which may overlap in memory."""
    return KernelTensors(
        *(t if t is None or name == "windows" else t.contiguous() for name, t in tensors._asdict().items())
    )


def _cut(kernel_shape: KernelShape, groups: int, images: int) -> _Blocks:
    """Cut planes into blocks: tall ones if there are many, so that :func:`kernels_jit.finish` has few sums to add."""
    out_channels, in_channels, height, _ = kernel_shape
    rows_of_group = out_channels // groups * height
    cols = power_of_two(in_channels, 4, 64)
    rows = 32 * 4 // cols  # a thread has 4 channels, which are 16 bytes of a plane
    tiles, col_blocks = cdiv(rows_of_group, rows), cdiv(in_channels, cols)
    steps = min(cdiv(images * groups * tiles * col_blocks, _WARPS), tiles, _MOST_STEPS)
    row_blocks = cdiv(tiles, steps)
    return _Blocks(rows, cols, cdiv(tiles, row_blocks), row_blocks, col_blocks)


def _factors(part: KernelTensors, unused: Tensor) -> list[Tensor]:
    """Taps, windows, channel, filter and spatial, as arguments of a kernel."""
    return _or_any(part[3:], unused)


def _or_any(tensors: tuple[Tensor | None, ...] | list[Tensor | None], unused: Tensor) -> list[Tensor]:
    return [unused if tensor is None else tensor for tensor in tensors]


def _window_strides(part: KernelTensors) -> tuple[int, ...]:
    return (0, 0, 0, 0) if part.windows is None else part.windows.stride()


def _flags(part: KernelTensors) -> dict[str, int]:
    return {
        "TAPS": 0 if part.taps is None else part.taps.shape[-1],
        "CHANNEL": int(part.channel is not None),
        "FILTER": int(part.filter is not None),
        "SPATIAL": int(part.spatial is not None),
    }


def _fall_back(x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> Tensor:
    return torch.ops.fdconv_zoo.convolve_rebuild(x, *tensors, kernel_shape, *geometry_arguments(geometry))


def _fall_back_keeping(
    x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    # The kernels have the shape that compiled code expects; the backward pass of the fallback does not read them.
    return _fall_back(x, tensors, kernel_shape, geometry), empty_kernels(x, len(x), kernel_shape)


def _fall_back_backward(
    grad: Tensor, needs_x: bool, x: Tensor, tensors: KernelTensors, *settings: Any
) -> tuple[Tensor | None, KernelTensors]:
    kernel_shape, geometry, *_ = settings  # kept kernels are not needed
    run = torch.ops.fdconv_zoo.convolve_rebuild_backward
    found = iter(run(grad, needs_x, x, *tensors, kernel_shape, *geometry_arguments(geometry)))
    grad_x = next(found) if needs_x else None
    has_gradient = tensors._replace(group_index=None)
    return grad_x, KernelTensors(*(None if tensor is None else next(found) for tensor in has_gradient))


_run_backward = with_fallback(_backward, _fall_back_backward)
convolve_triton = register_convolution("triton", with_fallback(_forward, _fall_back), _run_backward)
convolve_triton_keeping = register_convolution(
    "triton_keeping", with_fallback(_forward_keeping, _fall_back_keeping), _run_backward, keeps_kernels=True
)
