"""Detects exports, traces and transforms, which support only torch's own operations."""

from typing import Any

import torch
from torch.autograd import forward_ad

# Versions of torch before 2.7 cannot tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def is_exported() -> bool:
    """Whether the model is being exported (also to ONNX) or traced."""
    return _is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform (``vmap``, ``grad``, ...) or forward-mode differentiation is active."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_free(size: Any) -> bool:
    """Whether a size is dynamic in the program that is being exported or traced."""
    return not isinstance(size, int)
