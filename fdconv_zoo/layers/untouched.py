"""Parameters of modules that need not be called: whose own code, and nothing else, would run."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module


class TouchedError(Exception):
    """A module has to be called."""


def untouched(module: nn.Module, expected: type) -> list[Tensor | None]:
    """Parameters of a module, in their order, to be used without calling it.

    Raises:
        TouchedError: calling it does more than its class says. Its type is another where it was sharded, parametrized,
            quantized or replaced; pruning, offloading and feature extraction set hooks, accelerate another ``forward``,
            and ``Module.compile`` another call.
    """
    state = module.__dict__
    if (
        type(module) is not expected
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state.get("_compiled_call_impl") is not None
        or "forward" in state
    ):
        raise TouchedError
    return list(state["_parameters"].values())


def check_calls() -> None:
    """Raise a :class:`TouchedError` if calls of all modules are observed, or compiled."""
    # Not torch's _has_any_global_hook(), which stays true when a hook with keyword arguments has been removed.
    hooks = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    if torch.compiler.is_compiling() or hooks:
        raise TouchedError


def check_ordinary(*tensors: Tensor | None) -> None:
    """Raise a :class:`TouchedError` unless tensors are of no subclass, in float32, contiguous, in a CPU's memory."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in (nn.Parameter, Tensor)
            and tensor.dtype == torch.float32
            and tensor.is_cpu
            and tensor.is_contiguous()
        ):
            raise TouchedError
