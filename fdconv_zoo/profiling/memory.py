"""Costs of a training step in memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def bytes_saved_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward: each storage once, no parameters and buffers.

    The input counts where a layer keeps it.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # holds the storages themselves, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes_of_step(model: nn.Module, x: Tensor, step: Callable[[], None]) -> int:
    """Peak GPU memory of a training step, as if the model and its input were alone on the device.

    What was allocated before the step, other models included, is taken off; the model and its input come back on.
    """
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    step()
    above = torch.cuda.max_memory_allocated(x.device) - before
    return above + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), x))
