"""CUDA graphs: the launches of a step, recorded once and replayed at the cost of one."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")
WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and the allocator grows


def capture(step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
    """Capture a step into a CUDA graph.

    Args:
        step: a function that reads only tensors at fixed addresses; a replay reads their current values. It must not
            wait for the device, nor copy from or to the host.

    Returns:
        A function that replays the graph, and the result of the captured step, which every replay overwrites.
    """
    current = torch.cuda.current_stream()
    # Autograd's nodes keep the stream that they were created on; those of leaves live as long as any graph with them.
    # So a step with a backward pass is warmed up and captured on one stream, the caller's unless it is the default.
    is_default = current == torch.cuda.default_stream()
    stream = torch.cuda.Stream() if is_default else current
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = step()
    current.wait_stream(stream)
    return graph.replay, result


def graphable_step(model: nn.Module, x: Tensor, dtype: torch.dtype, *, training: bool) -> Callable[[], object]:
    """Make a step for :func:`capture`, whose tensors all stay at fixed addresses.

    Args:
        model: the model, which is set to the mode of the step.
        x: input of the model.
        dtype: autocast dtype, without autocast's cache of weights; float32 disables autocast.
        training: whether the step is a forward pass, a backward pass and an SGD update, or only a forward pass without
            gradients.
    """
    model.train(training)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward() -> Tensor:
        with torch.autocast(x.device.type, dtype, dtype != torch.float32, cache_enabled=False):
            return model(x)

    def train() -> None:
        gradients = torch.autograd.grad(forward().float().sum(), parameters)
        with torch.no_grad():
            # A tiny learning rate keeps the weights finite over all repeats.
            torch._foreach_add_(parameters, gradients, alpha=-1e-9)

    return train if training else torch.no_grad()(forward)
