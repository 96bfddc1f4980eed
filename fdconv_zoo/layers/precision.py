"""Precision of computations, with and without autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context without autocast, in which operations keep the dtype of their inputs."""
    # Entering torch.autocast takes as long as several small operations.
    return torch.autocast(device_type, enabled=False) if _autocasts(device_type) else nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a plain layer would convolve x: autocast's if it is enabled, else that of x."""
    is_cast = _autocasts(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype


def transform_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for sums over whole feature maps: float32, or float64 if x is. Half precision may overflow."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the input that a module with a weight expects: the weight's, or float32 if it is quantized.

    Raises:
        TypeError: the layers do not support the weight's dtype.
    """
    weight = module.weight
    if not isinstance(weight, Tensor):  # a method in torch's quantized layers
        return torch.float32
    if weight.dtype in COMPUTED:
        return weight.dtype
    if weight.is_floating_point() or weight.is_complex():
        raise TypeError(f"FDConv layers compute in {', '.join(map(str, COMPUTED))}, but a weight is {weight.dtype}.")
    return torch.float32


def _autocasts(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)
