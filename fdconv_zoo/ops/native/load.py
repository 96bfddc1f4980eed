"""The library of this process: built, loaded and joined with torch's threads at the first call."""

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
    """The C functions; None where there are none, of which :func:`problem` says why.

    The first call may take the seconds of a compilation. It makes no tensors, so that it may fall into tracing.
    """
    return (_state or _start()).library


def problem() -> str | None:
    """Why there is no library, and what would help; None if there is one."""
    return (_state or _start()).problem


def current_build() -> Build | None:
    """Which library there is."""
    return (_state or _start()).build


def num_threads() -> int:
    """On how many threads to run: as many as torch's operations.

    One in a child that was forked after the library was loaded: OpenMP's threads do not come along, and GCC's runtime
    would wait for them forever. One, too, where torch does not use OpenMP.
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
            except Exception as error:  # a fault of ours is no reason to stop, either: other paths compute the same
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
    """Address of the function with which torch starts its threads; None if it has none.

    GCC's, Intel's and LLVM's OpenMP all have it. On Linux, torch calls the first in the order in which libraries were
    loaded for all to see, such as one in LD_PRELOAD; on macOS, the one it was linked with.
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
    _lock = threading.Lock()  # perhaps another thread of the parent held it
    _is_forked = _is_forked or (_state is not None and _state.library is not None)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
