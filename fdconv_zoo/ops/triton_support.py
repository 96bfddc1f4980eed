"""Whether Triton can be used, and what launching its kernels takes."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

try:
    import triton
except ImportError:
    triton = None


def problem(device_type: str = "cuda") -> str | None:
    """Reason why Triton cannot be used on a type of device; None if it can."""
    if triton is None:
        return "triton is not installed"
    if is_interpreted():
        return None if device_type in ("cpu", "cuda") else f"triton does not support {device_type}"
    if device_type != "cuda":
        return f"triton compiles for CUDA devices, not for {device_type}"
    return _driver_problem()


@lru_cache(maxsize=1)
def _driver_problem() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "triton needs a CUDA device of compute capability 8.0 or later"
    return None


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on a CPU (``TRITON_INTERPRET=1``)."""
    return triton is not None and triton.knobs.runtime.interpret


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """A context in which kernels are launched on a tensor's device."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


def cdiv(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def power_of_two(size: int, least: int = 1, most: int = 2**30) -> int:
    """The smallest power of two that is at least ``size``, between two others."""
    return min(max(1 << (size - 1).bit_length(), least), most)
