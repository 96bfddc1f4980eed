"""The backward pass without torch's engine, which does not support fake CUDA tensors on machines without a GPU."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node


@torch.no_grad()
def run_backward(output: Tensor, gradient: Tensor) -> dict[Tensor, Tensor]:
    """Differentiate an output, operation by operation, in this thread and in its active modes.

    Hooks on gradients are not called.

    Args:
        output: result of a computation that autograd has recorded; the graph is retained.
        gradient: gradient of the output.

    Returns:
        The gradient of each leaf.
    """
    root = output.grad_fn
    missing = _count_dependencies(root)
    gradients: dict[Node, list[Tensor | None]] = {}
    _add(gradients, root, output.output_nr, gradient)
    found: dict[Tensor, Tensor] = {}
    ready = [root]
    while ready:
        node = ready.pop()
        inputs = gradients.pop(node, None)
        outputs = _apply(node, inputs) if inputs else [None] * len(node.next_functions)
        if inputs and hasattr(node, "variable"):
            found[node.variable] = inputs[0]
            continue
        for (target, index), gradient in zip(node.next_functions, outputs, strict=False):
            if target is None:
                continue
            if gradient is not None:
                _add(gradients, target, index, gradient)
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    return found


def _count_dependencies(root: Node) -> Counter[Node]:
    """How many gradients each node of the graph waits for."""
    missing: Counter[Node] = Counter()
    seen, open_nodes = {root}, [root]
    while open_nodes:
        for target, _ in open_nodes.pop().next_functions:
            if target is not None:
                missing[target] += 1
                if target not in seen:
                    seen.add(target)
                    open_nodes.append(target)
    return missing


def _apply(node: Node, inputs: list[Tensor | None]) -> tuple[Any, ...]:
    if hasattr(node, "variable"):
        return ()
    outputs = node.apply(*inputs) if isinstance(node, BackwardCFunction) else node(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _add(gradients: dict[Node, list[Tensor | None]], target: Node, index: int, gradient: Tensor) -> None:
    """Accumulate a gradient, in the shape and the dtype of the tensor that it belongs to, as the engine does."""
    metadata = target._input_metadata
    shape = tuple(metadata[index].shape)
    gradient = gradient.to(metadata[index].dtype)
    if gradient.shape != shape:  # the tensor was broadcast
        gradient = gradient.sum_to_size(shape)
    own = gradients.setdefault(target, [None] * len(metadata))
    own[index] = gradient if own[index] is None else own[index] + gradient
