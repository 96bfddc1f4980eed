"""Return parameters from the forward pass of their module, for an operation outside it."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def hand_on(module: nn.Module, parameter: Tensor) -> Tensor:
    """Return a module's parameter as a result of its forward pass.

    The result is a view, since hooks expect the result of a computation. Fully sharded data parallelism (FSDP) frees
    the parameters of a sharded module when its forward pass ends, so then the result is a copy.

    Args:
        module: the module whose ``forward`` returns the result.
        parameter: a parameter of the module.
    """
    # FSDP1 replaces the module's parameters by views of its own flat parameter.
    is_sharded = dist.is_available() and dist.is_initialized() and parameter._is_view()
    if is_sharded:
        return parameter.clone()
    is_differentiated = torch.is_grad_enabled() or torch.jit.is_tracing()  # a trace must not depend on the mode
    return hand_through(module, parameter.view_as(parameter) if is_differentiated else parameter.detach())


def hand_through(module: nn.Module, result: Tensor) -> Tensor:
    """Return the result of :func:`hand_on` in a submodule; a copy if it is this module that FSDP shards."""
    return result.clone() if _is_sharded(module) else result


def _is_sharded(module: nn.Module) -> bool:
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
