"""The library of this process, which the first call builds, loads and connects to torch's threads."""

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from fdconv_zoo.ops.native.build import Build, build
from fdconv_zoo.ops.native.unavailable import UnavailableError

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {  # what each returns and takes
    "fdconv_set_parallel": (None, [_POINTER]),
    "fdconv_kernels_scratch": (_INTEGER, [_POINTER]),
    "fdconv_assemble_kernels": (_INTEGER, [_POINTER] * 4),
    "fdconv_bands_lanes": (_INTEGER, []),
    "fdconv_bands_scratch": (_INTEGER, [_POINTER]),
    "fdconv_modulate_bands": (None, [_POINTER]),
    "fdconv_predict_modulators": (None, [_POINTER] * 6),
    "fdconv_differentiate_kernels": (_INTEGER, [*[_POINTER] * 5, _INTEGER, _POINTER]),
}


class _State(NamedTuple):
    library: ctypes.CDLL | None = None
    build: Build | None = None
    is_parallel: bool = False
    problem: str | None = None


_state: _State | None = None
_is_forked = False
_lock = threading.Lock()


def library() -> ctypes.CDLL | None:
    """Return the C functions; None if they are not available, see :func:`problem`.

    The first call may compile the library, which takes seconds. It creates no tensors, so it may run during tracing.
    """
    return (_state or _start()).library


def problem() -> str | None:
    """Return why there is no library, and how to fix it; None if there is one."""
    return (_state or _start()).problem


def current_build() -> Build | None:
    """Return the build of the loaded library; None if there is none."""
    return (_state or _start()).build


def num_threads() -> int:
    """Return the number of threads to run on: as many as torch's operations.

    It is 1 in a child process that was forked after the library was loaded, since a fork does not copy OpenMP's
    threads, and GCC's runtime would wait for them forever. It is also 1 if torch does not use OpenMP.
    """
    return torch.get_num_threads() if (_state or _start()).is_parallel and not _is_forked else 1


def _start() -> _State:
    global _state
    with _lock:
        if _state is None:
            try:
                _state = _load()
            except UnavailableError as error:
                _state = _State(problem=str(error))
            except Exception as error:  # a bug here is no reason to stop, either: other paths compute the same
                _state = _State(problem=f"{type(error).__name__}: {error}")
        return _state


def _load() -> _State:
    if os.environ.get("FDCONV_NATIVE") == "0":
        raise UnavailableError("FDCONV_NATIVE=0 is set")
    built = build()
    try:
        loaded = ctypes.CDLL(str(built.path))
    except OSError as error:
        raise UnavailableError(f"the library cannot be loaded: {error}") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    parallel = _find_parallel()
    loaded.fdconv_set_parallel(parallel)
    return _State(loaded, built, parallel is not None)


def _find_parallel() -> int | None:
    """Find the address of the function with which torch starts its threads; None if there is none.

    The OpenMP runtimes of GCC, Intel and LLVM all provide it. On Linux, torch calls the first one among the libraries
    that were loaded globally, such as one in LD_PRELOAD; on macOS, the one that it was linked with.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    own = str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}")
    if torch.backends.openmp.is_available():
        for place in (own,) if sys.platform == "darwin" else (None, own):
            try:
                return ctypes.cast(ctypes.CDLL(place).GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    return None


def _after_fork() -> None:
    global _lock, _is_forked
    _lock = threading.Lock()  # another thread of the parent may have held it
    _is_forked = _is_forked or (_state is not None and _state.library is not None)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
