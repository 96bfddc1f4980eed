"""Buffers that live on between calls, for intermediates on a CPU.

A large tensor on a CPU comes fresh from the operating system, which clears it page by page, at several times the cost
of the arithmetic that fills it; freed, it goes back. CUDA's allocator keeps what is freed, and needs none of this.
"""

import math
import threading

import torch
from torch import Tensor

# Elements that are worked on at once: few enough for a processor's cache; enough to fill a GPU.
_ELEMENTS_AT_ONCE = {"cpu": 2**20, "default": 2**26}

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor, which the next call with the same name, in this thread, overwrites."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return scratch_memory(name, size)[:size].view(dtype).view(shape)


def scratch_memory(name: str, size: int) -> Tensor:
    """At least ``size`` bytes of a CPU's memory, which the next call with the same name, in this thread, overwrites."""
    buffers = _buffers.__dict__
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside of it
            buffer = buffers[name] = torch.empty(size, dtype=torch.uint8)
    return buffer


def elements_at_once(device_type: str) -> int:
    """Number of elements of kernels and features to work on at once; a larger image is processed alone."""
    return _ELEMENTS_AT_ONCE.get(device_type, _ELEMENTS_AT_ONCE["default"])
