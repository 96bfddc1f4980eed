"""C functions for the hot operations on a CPU, and how they are built and loaded."""

from fdconv_zoo.ops.native.library import NativeCode, library, native_code, num_threads

__all__ = ["NativeCode", "library", "native_code", "num_threads"]
