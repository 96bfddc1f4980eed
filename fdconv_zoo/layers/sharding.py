"""Parameters that leave the module they belong to."""

import torch.distributed as dist
from torch import Tensor, nn


def outlive_forward(module: nn.Module, parameter: Tensor) -> Tensor:
    """Return a parameter for use after a module's forward pass has ended; called in that pass.

    Fully sharded data parallelism frees parameters then: where the module is sharded by itself, this is a copy. Every
    module that the parameter leaves on its way calls it.

    Args:
        module: whose ``forward`` hands the parameter on.
        parameter: of the module, or of a module within.
    """
    return parameter.clone() if _is_sharded(module, parameter) else parameter


def _is_sharded(module: nn.Module, parameter: Tensor) -> bool:
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    # FSDP's first generation puts views of a flat parameter of its own in place of the module's parameters.
    return isinstance(module, FSDPModule) or parameter._is_view()
