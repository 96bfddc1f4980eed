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
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result
