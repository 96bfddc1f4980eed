"""Checks whether Triton can be used, provides fallbacks if it cannot, and helps to launch its kernels."""

import os
import subprocess
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

try:
    import triton
    from triton.errors import TritonError
except ImportError:
    triton = None

P, T = ParamSpec("P"), TypeVar("T")

_failures: list[str] = []  # reasons of failed compilations; after the first, only fallbacks run


def problem(device_type: str = "cuda") -> str | None:
    """Reason why Triton cannot be used on a type of device; None if it can."""
    if triton is None:
        return "it is not installed"
    if is_interpreted():
        return (
            None
            if device_type == "cpu"
            else f"its interpreter (TRITON_INTERPRET=1) runs on a CPU, not on {device_type}"
        )
    if device_type != "cuda":
        return f"it compiles for CUDA devices, not for {device_type}"
    return _failures[0] if _failures else _driver_problem()


def version() -> str | None:
    """Version of Triton; None if it is not installed."""
    return None if triton is None else triton.__version__


@lru_cache(maxsize=1)
def _driver_problem() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "it needs a CUDA device of compute capability 8.0 or later"
    return None


@lru_cache(maxsize=16)
def warn_once(reason: str) -> None:
    """Warn that the Triton path is not taken, once for each reason."""
    warnings.warn(
        f"FDConv layers do not use Triton: {reason}. They compute the same with torch's operations.", stacklevel=2
    )


def with_fallback(run: Callable[P, T], fallback: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function that launches kernels: if a kernel does not compile, run ``fallback`` then and from then on."""

    @wraps(run)
    def run_or_fall_back(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _failures:
            try:
                return run(*args, **kwargs)
            except Exception as error:
                if not _is_failed_compilation(error):
                    raise
                last_line = "".join(str(error).strip().splitlines()[-1:])
                _failures.append(f"a kernel does not compile ({type(error).__name__}: {last_line})")
                warn_once(_failures[0])
        return fallback(*args, **kwargs)

    return run_or_fall_back


def _is_failed_compilation(error: Exception) -> bool:
    if is_interpreted():
        return False
    # Where there is no C compiler, which the launchers need, Triton raises a RuntimeError.
    is_without_compiler = isinstance(error, RuntimeError) and "C compiler" in str(error)
    return isinstance(error, TritonError | subprocess.CalledProcessError) or is_without_compiler


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on a CPU (``TRITON_INTERPRET=1``)."""
    if triton is None:
        return False
    if hasattr(triton, "knobs"):
        return triton.knobs.runtime.interpret
    return os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton before 3.4


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """A context in which kernels are launched on a tensor's device."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


def cdiv(numerator: int, denominator: int) -> int:
    """Divide and round up."""
    return -(-numerator // denominator)


def power_of_two(size: int, least: int = 1, most: int = 2**30) -> int:
    """Return the smallest power of two that is at least ``size``, limited to the range from ``least`` to ``most``."""
    return min(max(1 << (size - 1).bit_length(), least), most)
