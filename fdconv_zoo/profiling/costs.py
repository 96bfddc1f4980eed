"""Costs that are counted: parameters, multiply-adds, bytes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fdconv_zoo.layers import FrequencyBandModulation


def count_parameters(model: nn.Module) -> int:
    """The number of trainable and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-adds of convolutions, matrix products and attention for x (1, C, H, W) in inference.

    FFTs and element-wise work are not counted, which leaves out how FDW assembles kernels.

    Returns:
        All of them; and without the low-passes of FBM. These are matrix products that stand for FFTs: counts of
        convolutions and linear layers, the custom in papers, have neither.
    """
    # Not inference_mode: there the counter is not shown the operations that a matrix product is made of.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    counts = counter.get_flop_counts()
    low_passes = sum(
        flops
        for name, module in model.named_modules()
        if isinstance(module, FrequencyBandModulation)
        for operation, flops in counts.get(f"{type(model).__name__}.{name}", {}).items()
        if operation is not torch.ops.aten.convolution
    )
    return counter.get_total_flops() // 2, (counter.get_total_flops() - low_passes) // 2


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
