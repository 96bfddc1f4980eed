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
        execute: False: the launches, and what would tune them, do not take place; fake tensors have no memory.
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

    # The tuner calls the kernel it has chosen, which is observed; where nothing is executed, it stands for the kernel.
    kinds = (JITFunction, InterpretedFunction) if execute else (JITFunction, InterpretedFunction, Autotuner)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "run", observed(kind.run)))
        yield


def _name(kernel: Any) -> str:
    while not hasattr(kernel, "__name__"):
        kernel = kernel.fn
    return kernel.__name__
