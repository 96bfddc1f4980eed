"""Gradients that can be differentiated again, for operators whose own backward cannot."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def plain_gradients(function: Callable[..., Tensor], ctx: Any, grad: Tensor, *settings: Any) -> list[Tensor | None]:
    """Differentiate a function of the saved tensors that consists of torch's own operations.

    Args:
        function: computes what the operator does, from ``ctx.saved_tensors`` and the settings.
        ctx: of the operator's backward.
        grad: the gradient of the operator's output.
        *settings: the operator's other arguments.

    Returns:
        The gradient of each saved tensor; None where it needs none.
    """
    create_graph, inputs = torch.is_grad_enabled(), ctx.saved_tensors
    needed = [tensor is not None and tensor.requires_grad for tensor in inputs]
    with torch.enable_grad():
        output = function(*inputs, *settings)
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
    gradients = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph, allow_unused=True))
    return [next(gradients) if is_needed else None for is_needed in needed]
