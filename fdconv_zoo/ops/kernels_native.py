"""The "native" path on a CPU: kernels are assembled, and the assembly differentiated, by ``native/kernels.c``."""

import ctypes

import torch
from torch import Tensor

from fdconv_zoo.ops import native
from fdconv_zoo.ops.convolution import Geometry
from fdconv_zoo.ops.kernels_by_image import register
from fdconv_zoo.ops.operators import KernelShape, KernelTensors
from fdconv_zoo.ops.scratch import scratch, scratch_memory

_Pointers = ctypes.c_void_p * len(KernelTensors._fields)
_Sizes = ctypes.c_int64 * 12


class _Assembler:
    """See :class:`fdconv_zoo.ops.kernels_by_image.Assembler`."""

    def __init__(self, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> None:
        if tensors.group_index.dtype == torch.int64:
            tensors = tensors._replace(group_index=tensors.group_index.int())
        self._tensors = tensors = KernelTensors(*(None if t is None else t.contiguous() for t in tensors))
        self._pointers = _pointers(tensors)
        self._kernel_shape = kernel_shape
        self._library = native.library()
        # The sizes that the C functions take, in the order of ``kernel_sizes``; the first two select a call's images.
        self._sizes = _Sizes(
            0, 0, len(tensors.attention) == 1, *kernel_shape, geometry.groups,
            0 if tensors.taps is None else tensors.taps.shape[2], tensors.attention.shape[1],
            tensors.group_index.itemsize, native.num_threads(),
        )  # fmt: skip
        self._gradients: KernelTensors | None = None

    def make(self, images: slice) -> Tensor:
        memory = self._prepare(images)
        shape = (images.stop - images.start, *self._kernel_shape)
        kernels = scratch("kernels", shape, torch.float32, self._tensors.spectrum.device)
        succeeded = self._library.fdconv_assemble_kernels(
            self._sizes, self._pointers, kernels.data_ptr(), memory.data_ptr()
        )
        _check(succeeded)
        return kernels

    def add_gradient(self, images: slice, kernels: Tensor, grad: Tensor) -> None:
        accumulates = self._gradients is not None
        if self._gradients is None:
            self._gradients = KernelTensors(
                *(None if tensor is None else torch.empty_like(tensor) for tensor in self._tensors)
            )
        memory, grad = self._prepare(images), grad.contiguous()
        succeeded = self._library.fdconv_differentiate_kernels(
            self._sizes,
            self._pointers,
            kernels.data_ptr(),
            grad.data_ptr(),
            _pointers(self._gradients),
            accumulates,
            memory.data_ptr(),
        )
        _check(succeeded)

    def gradients(self) -> KernelTensors:
        return self._gradients._replace(group_index=None)

    def _prepare(self, images: slice) -> Tensor:
        """Select the images of the next call, and return its scratch memory, which must stay alive during the call."""
        self._sizes[:2] = images.start, images.stop - images.start
        return scratch_memory("native", 4 * self._library.fdconv_kernels_scratch(self._sizes))


def _pointers(tensors: KernelTensors) -> ctypes.Array:
    return _Pointers(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _check(succeeded: int) -> None:
    if not succeeded:
        raise MemoryError("No memory is left for the tables of a Fourier transform.")


convolve_native = register("native", _Assembler)
