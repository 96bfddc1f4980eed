"""Memory of a training step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def bytes_saved_for_backward(model: nn.Module, x: Tensor | Sequence, loss: Callable[..., Tensor] | None = None) -> int:
    """Measure the bytes that autograd keeps between forward and backward, without parameters and buffers.

    Each storage counts once. The input counts if a layer keeps it.

    Args:
        model: In the mode to train in.
        x, loss: As in `training_step`.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # keeps the storages alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        # Not the tensor itself: if an operation saves its own result, they would refer to each other, and the graph
        # would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if loss is None:
            model(x)
        else:
            loss(model, *x)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes_of_step(model: nn.Module, x: Tensor, step: Callable[[], None]) -> int:
    """Measure the peak GPU memory of a training step, as if the model and its input were alone on the device.

    Memory allocated before the step, including other models, is subtracted; the model and its input are added back.

    Returns:
        Bytes.
    """
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    step()
    above = torch.cuda.max_memory_allocated(x.device) - before
    return above + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), x))
