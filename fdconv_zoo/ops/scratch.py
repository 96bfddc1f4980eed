"""Buffers for intermediate results on a CPU, which are reused between calls.

The memory of each new large CPU tensor comes from the operating system, which clears it page by page, at several times
the cost of the arithmetic that fills it. When the tensor is freed, the memory goes back to the system. CUDA's allocator
keeps freed memory, so no buffers are needed there.
"""

import math
import threading

import torch
from torch import Tensor

# Elements to process at once: few enough for the cache of a CPU, or enough to fill a GPU.
_ELEMENTS_AT_ONCE = {"cpu": 2**20, "default": 2**26}

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized tensor. The next call with this name in this thread may reuse its memory."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return scratch_memory(name, size)[:size].view(dtype).view(shape)


def scratch_memory(name: str, size: int) -> Tensor:
    """Return at least ``size`` bytes of CPU memory. The next call with this name in this thread may reuse them."""
    buffers = _buffers.__dict__
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # a tensor created in inference mode cannot be written to outside of it
            buffer = buffers[name] = torch.empty(size, dtype=torch.uint8)
    return buffer


def elements_at_once(device_type: str) -> int:
    """Return how many elements of kernels or feature maps to process at once; a larger image is processed alone."""
    return _ELEMENTS_AT_ONCE.get(device_type, _ELEMENTS_AT_ONCE["default"])
