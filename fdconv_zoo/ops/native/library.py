"""The compiled library: loaded once, with torch's own threads."""

import ctypes
import os
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from fdconv_zoo.ops.native.build import Build, BuildError, build

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {  # what each returns and takes
    "fdconv_set_parallel": (None, [_POINTER]),
    "fdconv_lanes": (_INTEGER, []),
    "fdconv_kernels_scratch": (_INTEGER, [_POINTER]),
    "fdconv_assemble_kernels": (_INTEGER, [_POINTER] * 4),
    "fdconv_differentiate_kernels": (_INTEGER, [*[_POINTER] * 5, _INTEGER, _POINTER]),
}


class NativeCode(NamedTuple):
    """The native code of this process.

    Attributes:
        library: with the functions; None where there is none.
        problem: why there is none.
        build: of the library.
    """

    library: ctypes.CDLL | None = None
    problem: str | None = None
    build: Build | None = None


_code: NativeCode | None = None
_lock = threading.Lock()
_is_forked = False


def native_code() -> NativeCode:
    """The native code, built and loaded by the first call. ``FDCONV_NATIVE=0`` in the environment switches it off."""
    global _code
    if _code is None:
        with _lock:
            if _code is None:
                _code = _load()
    return _code


def library() -> ctypes.CDLL | None:
    """The library with the C functions; None where there is none, for the reason that :func:`native_code` gives."""
    return native_code().library


def num_threads() -> int:
    """How many threads to share work out to."""
    # In a forked process the threads of the OpenMP runtime are gone, and GCC's waits for them forever.
    return 1 if _is_forked else torch.get_num_threads()


def _load() -> NativeCode:
    if os.environ.get("FDCONV_NATIVE") == "0":
        return NativeCode(problem="FDCONV_NATIVE=0 in the environment switches it off")
    try:
        built = build()
        try:
            loaded = ctypes.CDLL(str(built.path))
        except OSError:  # damaged
            built = build(again=True)
            loaded = ctypes.CDLL(str(built.path))
    except (BuildError, OSError) as error:
        return NativeCode(problem=str(error))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.fdconv_set_parallel(_torchs_parallel())
    return NativeCode(loaded, None, built)


def _torchs_parallel() -> int | None:
    """Address of the function by which torch's OpenMP runtime starts parallel work; None: there is no such thing."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            # Symbols are looked up in the libraries that this one needs, so this is the very runtime that torch uses.
            function = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _forget_threads() -> None:
    global _is_forked, _lock
    _is_forked = True
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
