"""CUDA graphs: the launches of a step, recorded once and replayed at the cost of one."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and the allocator grows


def capture(step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
    """Capture a step into a CUDA graph.

    Args:
        step: reads only tensors that stay where they are; the graph reads what they hold when it is replayed. It must
            not wait for the device, nor copy from or to the host.

    Returns:
        A function that replays the graph, and the result of the captured step, which every replay overwrites.
    """
    current = torch.cuda.current_stream()
    # Autograd's nodes remember the stream they were made on; those of leaves live as long as any graph that has them.
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
