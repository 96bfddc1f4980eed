"""Memory formats of whole models."""

import torch
from torch import nn


@torch.no_grad()
def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Give all four-dimensional parameters a memory format, in place.

    ``model.to(memory_format=...)`` fails for models with five-dimensional parameters, such as stacked kernels.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
