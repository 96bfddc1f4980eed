"""The "native" path on a CPU: Frequency Band Modulation by ``native/bands.c``, in one visit to each channel."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fdconv_zoo.ops import native
from fdconv_zoo.ops.bands_plain import count_passing, low_pass_basis
from fdconv_zoo.ops.operators import memory_format, register_bands
from fdconv_zoo.ops.scratch import scratch


class _Axis(ctypes.Structure):
    """``axis`` of the C file."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("passing", ctypes.c_void_p),
        ("analysis", ctypes.c_void_p),
        ("synthesis", ctypes.c_void_p),
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
    x_dense = _dense(x)
    y = torch.empty_like(x_dense)
    _run(x_dense, attention, band_edges, y=y)
    return _like(y, x)


def _backward(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    x_dense = _dense(x)
    grad_x = torch.empty_like(x_dense)
    grad = grad.to(torch.float32).contiguous(memory_format=memory_format(x_dense))
    num_blocks = -(-x.shape[1] // native.library().fdconv_bands_lanes())
    shape = (len(x), num_blocks, *attention.shape[1:])
    grad_attention = scratch("attention of blocks", shape, torch.float32, x.device)
    _run(x_dense, attention, band_edges, y=grad_x, grad=grad, grad_attention=grad_attention)
    return _like(grad_x, x), _like(grad_attention.sum(1), attention)


def _run(x: Tensor, attention: Tensor, band_edges: Sequence[float], **tensors: Tensor) -> None:
    images, channels, *size = x.shape
    library = native.library()
    num_blocks = -(-channels // library.fdconv_bands_lanes())
    band_edges = tuple(band_edges)
    arrays = [_axis_arrays(length, band_edges) for length in size]
    tensors |= {"x": x, "attention": attention.contiguous()}
    job = _Job(
        images=images,
        channels=channels,
        bands=len(band_edges),
        channels_last=memory_format(x) == torch.channels_last,
        column=_axis(size[0], arrays[0]),
        row=_axis(size[1], arrays[1]),
        parts=max(min(native.num_threads(), images * num_blocks), 1),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    library.fdconv_bands_scratch.restype = ctypes.c_int64
    num_floats = library.fdconv_bands_scratch(ctypes.byref(job))
    job.scratch = scratch("native bands", (num_floats,), torch.float32, x.device).data_ptr()
    library.fdconv_modulate_bands(ctypes.byref(job))


def _axis(length: int, arrays: tuple[np.ndarray, ...]) -> _Axis:
    passing, analysis, synthesis = (array.ctypes.data for array in arrays)
    return _Axis(length, arrays[2].shape[2], passing, analysis, synthesis)


@lru_cache(maxsize=256)
def _axis_arrays(length: int, band_edges: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of an ``axis``: ``passing``, ``analysis``, ``synthesis``."""
    basis = low_pass_basis(length, band_edges[0], device=torch.device("cpu"), dtype=torch.float64).numpy()
    cosines, sines = basis[:, 0:1], basis[:, :0]  # frequency 0 has no sine
    cosines, sines = np.concatenate((cosines, basis[:, 1::2]), 1), basis[:, 2::2]
    step = 2 - length % 2
    waves = [cosines[:, ::step], sines[:, step - 1 :: step]]
    if length % 2 == 0:
        waves += [cosines[:, 1::2], sines[:, ::2]]
    frequencies = [(passing - 1) // 2 for (passing, _) in count_passing((length, length), band_edges)]
    if length % 2:
        passing = [(k + 1, k, 0, 0) for k in frequencies]
    else:
        passing = [(k // 2 + 1, k // 2, (k + 1) // 2, (k + 1) // 2) for k in frequencies]
    period = length if length % 2 else length // 2
    points = period // 2 + 1
    synthesis = np.zeros((4, passing[0][0], points), np.float32)
    for symmetry, wave in enumerate(waves):
        synthesis[symmetry, : wave.shape[1]] = wave[:points].T
    analysis = synthesis.transpose(0, 2, 1).copy()
    analysis[:, 0] /= 2
    if period % 2 == 0:
        analysis[:, -1] /= 2
    return np.array(passing, np.int64), analysis, synthesis


def _dense(x: Tensor) -> Tensor:
    x = x.to(torch.float32)
    return x.contiguous(memory_format=memory_format(x))


def _like(result: Tensor, x: Tensor) -> Tensor:
    """With the dtype and strides that ``torch.empty_like(x)`` has."""
    y = torch.empty_like(x)
    return result if result.dtype == y.dtype and result.stride() == y.stride() else y.copy_(result)


modulate_bands_native = register_bands("native", _forward, _backward)
