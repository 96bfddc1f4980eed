"""Check that modules need not be called: a call would only run the ``forward`` of their class, without hooks."""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

_TYPES = (nn.Parameter, Tensor)


class TouchedError(Exception):
    """A module has to be called: an operation on its parameters might not do the same."""


def untouched(module: nn.Module, expected: type, count: int) -> list[Tensor | None]:
    """Return a module's parameters in order, for use without calling the module.

    Args:
        module: a module that may have been changed.
        expected: the type it must have.
        count: the number of parameters it must have; sharding may keep them elsewhere.

    Raises:
        TouchedError: calling the module may do more than its class defines. Sharding, parametrization, quantization and
            replacement change its type; pruning, offloading and feature extraction set hooks; accelerate sets another
            ``forward``, and ``Module.compile`` another call.
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
    """Raise a :class:`TouchedError` if there are global hooks, which run in calls of all modules."""
    # Not torch's _has_any_global_hook(), which stays true after a hook with keyword arguments was removed.
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        raise TouchedError


def check_ordinary(x: Tensor, *tensors: Tensor | None, fake: bool = False) -> None:
    """Raise a :class:`TouchedError` unless all tensors are contiguous float32 tensors on x's device, of no subclass.

    Args:
        x: a tensor.
        *tensors: more tensors; None is ignored.
        fake: whether to also accept tensors without memory (``FakeTensorMode``).
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
