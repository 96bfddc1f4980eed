"""Costs of any model that are counted, not measured: parameters and multiply-adds."""

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
