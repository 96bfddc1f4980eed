"""Gradients of gradients and batched gradients, for operators whose own backward does not support them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def needs_plain_gradients(grad: Tensor) -> bool:
    """Whether a backward pass is itself differentiated, or runs for a batch of gradients at once."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    is_wrapped = functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)
    return is_wrapped or torch.is_grad_enabled()


def plain_gradients(
    function: Callable[..., Tensor | Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    grad: Tensor | Sequence[Tensor | None],
    *settings: Any,
) -> list[Tensor | None]:
    """Differentiate a function of tensors that consists of torch's own operations.

    Args:
        function: the operator's computation, called with ``tensors`` and ``settings``.
        tensors: the operator's input tensors, as saved by autograd.
        grad: the gradient of the operator's output, or of each of its outputs; None for outputs without a gradient.
        *settings: the operator's other arguments.

    Returns:
        The gradient of each tensor; None for tensors that do not require one.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, since the inputs may depend on one another, and each gradient must be that of one input alone.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        output = function(*inputs, *settings)
    outputs, grads = ([output], [grad]) if isinstance(output, Tensor) else (output, grad)
    pairs = [pair for pair in zip(outputs, grads, strict=True) if pair[0].requires_grad and pair[1] is not None]
    needed = [tensor is not None and tensor.requires_grad for tensor in inputs]
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
    outputs, grads = zip(*pairs, strict=True)
    gradients = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph, allow_unused=True))
    return [next(gradients) if is_needed else None for is_needed in needed]
