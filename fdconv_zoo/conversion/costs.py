"""Counts a model's parameters and multiply-adds."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fdconv_zoo.layers import FrequencyBandModulation


def count_parameters(model: nn.Module) -> int:
    """Count trainable and frozen parameters; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Count multiply-adds of convolutions, matrix products and attention in inference.

    FFTs and element-wise operations are not counted, so the assembly of kernels in FDW is not counted either.

    Args:
        model: changed to eval mode.
        x: (1, C, H, W).

    Returns:
        The total, and the total without FBM's low-passes. These are matrix products in place of FFTs; papers usually
        count convolutions and linear layers only, which excludes both.
    """
    # Not inference_mode, in which the counter does not see the operations that a matrix product consists of.
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
