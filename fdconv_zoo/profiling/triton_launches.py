"""Watches launches of Triton kernels."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor


@contextmanager
def observed_launches(observe: Callable[[str, list[Tensor]], None], *, execute: bool) -> Iterator[None]:
    """Call a function at each launch of a Triton kernel.

    Args:
        observe: called with the kernel's name and its tensors.
        execute: whether to run the kernels. False also skips autotuning, as needed for fake tensors without memory.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def observed(run: Callable[..., Any]) -> Callable[..., Any]:
        def run_observed(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if not kwargs.get("warmup"):
                tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                observe(_name(kernel), tensors)
            return run(kernel, *args, **kwargs) if execute or kwargs.get("warmup") else None

        return run_observed

    # The autotuner calls the kernel that it has chosen, which is observed. If nothing runs, the autotuner is observed.
    kinds = (JITFunction, InterpretedFunction) if execute else (JITFunction, InterpretedFunction, Autotuner)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "run", observed(kind.run)))
        yield


def _name(kernel: Any) -> str:
    while not hasattr(kernel, "__name__"):
        kernel = kernel.fn
    return kernel.__name__
