"""The "native" path on a CPU: Frequency Band Modulation by ``native/bands.c``, one block of channels at a time."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fdconv_zoo.ops import native
from fdconv_zoo.ops.bands_plain import count_passing, low_pass_basis
from fdconv_zoo.ops.operators import memory_format, register_bands
from fdconv_zoo.ops.scratch import scratch, scratch_memory


class _Axis(ctypes.Structure):
    """``axis`` of the C file, and the arrays that it points to."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("length", "points")),
        *((name, ctypes.c_void_p) for name in ("passing", "analysis", "synthesis")),
    )


class _Job(ctypes.Structure):
    """``bands_job`` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "bands", "channels_last")),
        *((name, _Axis) for name in ("column", "row")),
        *((name, ctypes.c_void_p) for name in ("x", "attention", "grad", "y", "grad_attention", "scratch")),
        ("parts", ctypes.c_int64),
    )


def _forward(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    dense_x = _dense(x, memory_format(x))
    y = torch.empty_like(dense_x)
    _run(dense_x, attention, band_edges, y=y)
    return _like(y, x)


def _backward(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    dense_x = _dense(x, memory_format(x))
    grad_x = torch.empty_like(dense_x)
    # Each block of channels has its own gradient: the rounding of a shared sum would depend on the order of threads.
    shape = (len(x), _num_blocks(x.shape[1]), *attention.shape[1:])
    grad_attention = scratch("gradients of attention", shape, torch.float32, x.device)
    grad = _dense(grad, memory_format(dense_x))
    _run(dense_x, attention, band_edges, y=grad_x, grad=grad, grad_attention=grad_attention)
    return _like(grad_x, x), _like(grad_attention.sum(1), attention)


def _run(x: Tensor, attention: Tensor, band_edges: Sequence[float], **tensors: Tensor) -> None:
    """Call the C function; ``tensors`` are the tensors of ``bands_job`` besides x and attention."""
    library = native.library()
    images, channels, height, width = x.shape
    # Variables, here and below, keep everything that the job points to alive during the call.
    attention = attention.contiguous()
    column, row = (_axis(length, tuple(band_edges)) for length in (height, width))
    job = _Job(
        images=images,
        channels=channels,
        bands=len(band_edges),
        channels_last=memory_format(x) == torch.channels_last,
        column=column[0],
        row=row[0],
        parts=max(min(native.num_threads(), images * _num_blocks(channels)), 1),
        x=x.data_ptr(),
        attention=attention.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    pointer = ctypes.byref(job)
    memory = scratch_memory("bands", 4 * library.fdconv_bands_scratch(pointer))
    job.scratch = memory.data_ptr()
    library.fdconv_modulate_bands(pointer)


@lru_cache(maxsize=256)
def _axis(length: int, band_edges: tuple[float, ...]) -> tuple[_Axis, tuple[np.ndarray, ...]]:
    """Make the axis of ``length`` samples, and its arrays, which must stay alive as long as the axis."""
    basis = low_pass_basis(length, band_edges[0], device=torch.device("cpu"), dtype=torch.float64).numpy()
    cosines, sines = np.concatenate((basis[:, :1], basis[:, 1::2]), axis=1), basis[:, 2::2]
    frequencies = [count // 2 for count, _ in count_passing((length, length), band_edges)]  # that pass, above 0
    if length % 2:
        period, symmetries = length, [cosines, sines]
        passing = [(count + 1, count, 0, 0) for count in frequencies]
    else:
        period, symmetries = length // 2, [cosines[:, ::2], sines[:, 1::2], cosines[:, 1::2], sines[:, ::2]]
        passing = [(count // 2 + 1, count // 2, (count + 1) // 2, (count + 1) // 2) for count in frequencies]
    points = period // 2 + 1
    synthesis = np.zeros((4, passing[0][0], points), np.float32)
    for matrix, waves in zip(synthesis, symmetries, strict=False):
        matrix[: waves.shape[1]] = waves[:points].T
    analysis = synthesis.transpose(0, 2, 1).copy()
    mirrors_itself = 2 * np.arange(points) % period == 0
    analysis[:, mirrors_itself] /= 2
    arrays = (np.array(passing, np.int64), analysis, synthesis)
    return _Axis(length, points, *(array.ctypes.data for array in arrays)), arrays


def _num_blocks(channels: int) -> int:
    return -(-channels // native.library().fdconv_bands_lanes())


def _dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.to(torch.float32).contiguous(memory_format=layout)


def _like(result: Tensor, x: Tensor) -> Tensor:
    """Convert a result to the dtype and the strides of ``torch.empty_like(x)``."""
    like_x = torch.empty_like(x, device="meta")
    if (result.dtype, result.stride()) == (like_x.dtype, like_x.stride()):
        return result
    return torch.empty_like(x).copy_(result)


modulate_bands_native = register_bands("native", _forward, _backward)
