"""FDConv layers in the programs that torch makes of a model: one node in torch.fx, a traced module in TorchScript."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


def fx_leaf(forward: Forward) -> Forward:
    """Decorate a layer's ``forward`` so that symbolic tracing, by whatever tracer, keeps the layer as one node."""

    @wraps(forward)
    def forward_or_leaf(self: nn.Module, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return forward(self, x)

    return forward_or_leaf


def trace_for_script(layer: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Trace a layer, to stand for it in ``torch.jit.script``; the trace takes any batch and image size.

    Args:
        layer: in evaluation mode.
        shape: of an input that it takes.

    Raises:
        RuntimeError: the layer is in training mode, which a trace would keep for good.
    """
    if layer.training:
        raise RuntimeError(
            f"torch.jit.script takes a {type(layer).__name__} in evaluation mode only: call model.eval() first."
        )
    parameter = next(layer.parameters())
    x = torch.zeros(tuple(shape), device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        return torch.jit.trace(layer, x, check_trace=False)


class ScriptedTokens(nn.Module):
    """A traced layer of (B, N, C) tokens that also takes (B, H, W, C), which a trace tells apart for good.

    Args:
        traced: maps (B, N, I) to (B, N, O).
    """

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., I) to (B, ..., O)."""
        y = self.traced(x.flatten(1, -2))
        return y.reshape(x.shape[:-1] + y.shape[-1:])
