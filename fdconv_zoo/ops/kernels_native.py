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


class _Assembler:
    """See :class:`fdconv_zoo.ops.kernels_by_image.Assembler`."""

    def __init__(self, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> None:
        if tensors.group_index.dtype == torch.int64:
            tensors = tensors._replace(group_index=tensors.group_index.int())
        self._tensors = KernelTensors(*(None if tensor is None else tensor.contiguous() for tensor in tensors))
        self._pointers = _pointers(self._tensors)
        self._kernel_shape, self._groups = kernel_shape, geometry.groups
        self._library, self._num_parts = native.library(), native.num_threads()
        self._gradients: KernelTensors | None = None

    def make(self, images: slice) -> Tensor:
        shape = (images.stop - images.start, *self._kernel_shape)
        kernels = scratch("kernels", shape, torch.float32, self._tensors.spectrum.device)
        sizes = self._sizes(images)
        memory = self._memory(sizes)  # it has a name to stay alive during the call
        succeeded = self._library.fdconv_assemble_kernels(sizes, self._pointers, kernels.data_ptr(), memory.data_ptr())
        _check(succeeded)
        return kernels

    def add_gradient(self, images: slice, kernels: Tensor, grad: Tensor) -> None:
        accumulates = self._gradients is not None
        if self._gradients is None:
            self._gradients = KernelTensors(
                *(None if tensor is None else torch.empty_like(tensor) for tensor in self._tensors)
            )
        sizes, grad = self._sizes(images), grad.contiguous()
        memory = self._memory(sizes)
        succeeded = self._library.fdconv_differentiate_kernels(
            sizes,
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

    def _sizes(self, images: slice) -> ctypes.Array:
        """The numbers that the C functions take, in the order of ``kernel_sizes``."""
        tensors = self._tensors
        num_taps = 0 if tensors.taps is None else tensors.taps.shape[2]
        num_kernels = tensors.attention.shape[1]
        sizes = (
            images.start, images.stop - images.start, len(tensors.attention) == 1, *self._kernel_shape, self._groups,
            num_taps, num_kernels, tensors.group_index.itemsize, self._num_parts,
        )  # fmt: skip
        return (ctypes.c_int64 * len(sizes))(*sizes)

    def _memory(self, sizes: ctypes.Array) -> Tensor:
        return scratch_memory("native", 4 * self._library.fdconv_kernels_scratch(sizes))


def _pointers(tensors: KernelTensors) -> ctypes.Array:
    return _Pointers(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _check(succeeded: int) -> None:
    if not succeeded:
        raise MemoryError("No memory is left for the tables of a Fourier transform.")


convolve_native = register("native", _Assembler)
