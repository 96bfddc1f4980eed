"""Parameters that leave the module they belong to, for the operation that uses them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def hand_on(module: nn.Module, parameter: Tensor) -> Tensor:
    """Return a module's parameter as a result of its forward pass.

    The result is a view, since hooks expect the result of a computation. Fully sharded data parallelism frees
    parameters when the forward pass ends; where the module is sharded by itself, the result is a copy.

    Args:
        module: whose ``forward`` returns the result.
        parameter: of the module.
    """
    # FSDP's first generation puts views of a flat parameter of its own in place of the module's parameters.
    is_sharded = dist.is_available() and dist.is_initialized() and parameter._is_view()
    if is_sharded:
        return parameter.clone()
    is_differentiated = torch.is_grad_enabled() or torch.jit.is_tracing()  # a trace must not depend on the mode
    return hand_through(module, parameter.view_as(parameter) if is_differentiated else parameter.detach())


def hand_through(module: nn.Module, result: Tensor) -> Tensor:
    """Return what a module within handed on; a copy where this module is what is sharded."""
    return result.clone() if _is_sharded(module) else result


def _is_sharded(module: nn.Module) -> bool:
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
