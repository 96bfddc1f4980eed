"""FDConv's performance-critical operations in C, compiled for this machine at first use."""

from fdconv_zoo.ops.native.load import current_build, library, num_threads, problem

__all__ = ["current_build", "library", "num_threads", "problem"]
