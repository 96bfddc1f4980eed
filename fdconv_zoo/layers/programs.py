"""Support for torch.fx, where an FDConv layer is one node, and for TorchScript, where it is a traced module."""

import copy
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def fx_leaf(forward: Callable[[Layer, Tensor], Tensor]) -> Callable[[Layer, Tensor], Tensor]:
    """Decorate a layer's ``forward`` so that symbolic tracing, by any tracer, keeps the layer as one node."""

    @wraps(forward)
    def forward_or_leaf(self: Layer, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            if self is x.tracer.root:
                raise torch.fx.proxy.TraceError(
                    f"A {type(self).__name__} is one node of a graph: to trace it alone, put it into an nn.Sequential."
                )
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return forward(self, x)

    return forward_or_leaf


class TracedForScript(nn.Module):
    """Base of layers that ``torch.jit.script`` cannot compile; :func:`script_model` traces them instead."""

    def example_input(self) -> Tensor:
        """Return an input to trace the layer with."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> NoReturn:
        # Do not return a traced layer: torch.jit.script would put it into the user's own model permanently.
        raise RuntimeError(
            f"torch.jit.script cannot compile a {type(self).__name__}: use fdconv_zoo.script_model(model), which "
            "traces the FDConv layers and scripts the rest, or torch.jit.trace."
        )


def script_model(model: nn.Module) -> torch.jit.ScriptModule:
    """Compile a model to TorchScript: its FDConv layers are traced, everything else is scripted.

    The result takes any batch and image size that the model takes, and is for inference only.

    Args:
        model: a model in evaluation mode; it is not changed.

    Raises:
        RuntimeError: an FDConv layer is in training mode, which a trace would fix; or torch cannot script the rest.
    """
    return torch.jit.script(_trace_layers(copy.deepcopy(model)))


def _trace_layers(module: nn.Module) -> nn.Module:
    if isinstance(module, TracedForScript):
        return _trace(module)
    for name, child in module._modules.items():  # named_children() skips a layer's second name
        if child is not None:
            setattr(module, name, _trace_layers(child))
    return module


def _trace(layer: TracedForScript) -> nn.Module:
    if layer.training:
        raise RuntimeError(
            f"A {type(layer).__name__} is in training mode, and TorchScript is for inference: call model.eval() first."
        )
    x = layer.example_input()
    with torch.no_grad():
        traced = torch.jit.trace(layer, x, check_trace=False)
    return traced if x.ndim == 4 else _TracedTokens(traced)


class _TracedTokens(nn.Module):
    """A layer traced with (B, N, C) tokens, which also takes (B, H, W, C): a trace alone takes one number of axes."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., I) to (B, ..., O)."""
        y = self.traced(x.flatten(1, -2))
        return y.reshape(x.shape[:-1] + y.shape[-1:])
