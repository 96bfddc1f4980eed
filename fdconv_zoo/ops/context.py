"""The context of an operation: exports, traces and transforms, which handle torch's own operations only."""

from typing import Any

import torch
from torch.autograd import forward_ad

# Versions of torch before 2.7 cannot tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def is_exported() -> bool:
    """Whether the operations become a program: exported, traced, or in ONNX."""
    return _is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether ``torch.func`` (``vmap``, ``grad``, ``jvp``, ...) or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_free(size: Any) -> bool:
    """Whether the program being exported or traced leaves a size open."""
    return not isinstance(size, int)
