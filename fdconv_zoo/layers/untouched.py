"""Parameters of modules that need not be called: whose own code, and nothing else, would run."""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

_TYPES = (nn.Parameter, Tensor)


class TouchedError(Exception):
    """A module has to be called."""


def untouched(module: nn.Module, expected: type, count: int) -> list[Tensor | None]:
    """Parameters of a module, in their order, to be used without calling it.

    Args:
        module: that may have been changed.
        expected: its type.
        count: of its parameters; sharding keeps them elsewhere.

    Raises:
        TouchedError: calling it does more than its class says. Its type is another where it was sharded, parametrized,
            quantized or replaced; pruning, offloading and feature extraction set hooks, accelerate another ``forward``,
            and ``Module.compile`` another call.
    """
    state = module.__dict__
    if (
        type(module) is not expected
        or len(state["_parameters"]) != count
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or state.get("_compiled_call_impl") is not None
        or "forward" in state
    ):
        raise TouchedError
    return list(state["_parameters"].values())


def check_calls() -> None:
    """Raise a :class:`TouchedError` if calls of all modules are observed."""
    # Not torch's _has_any_global_hook(), which stays true when a hook with keyword arguments has been removed.
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        raise TouchedError


def check_ordinary(x: Tensor, *tensors: Tensor | None, fake: bool = False) -> None:
    """Raise a :class:`TouchedError` unless tensors are of no subclass, in float32, contiguous, on x's device.

    Args:
        x: a tensor.
        *tensors: others.
        fake: whether tensors without memory (``FakeTensorMode``) may be among them.
    """
    device = x.device
    for tensor in (x, *tensors):
        if tensor is not None and not (
            (type(tensor) in _TYPES or (fake and type(tensor) is FakeTensor))
            and tensor.dtype == torch.float32
            and tensor.device == device
            and tensor.is_contiguous()
        ):
            raise TouchedError
