"""Precision of computations, with and without autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which operations keep the dtype they are given."""
    # Entering torch.autocast costs as much as several small operations.
    return torch.autocast(device_type, enabled=False) if _autocasts(device_type) else nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which a plain layer would convolve x: autocast's where it is on, else x's own."""
    is_cast = _autocasts(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype


def transform_dtype(x: Tensor) -> torch.dtype:
    """For sums over whole maps, which overflow or drown in half precision: float32, or wider where x is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """The dtype a module with a weight takes its input in: the weight's, or float32 for a quantized one.

    Raises:
        TypeError: nothing can be computed in the weight's dtype; names it.
    """
    weight = module.weight
    if not isinstance(weight, Tensor):  # torch's quantized layers have a method
        return torch.float32
    if weight.dtype in COMPUTED:
        return weight.dtype
    if weight.is_floating_point() or weight.is_complex():
        raise TypeError(f"FDConv layers compute in {', '.join(map(str, COMPUTED))}, but a weight is {weight.dtype}.")
    return torch.float32


def _autocasts(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)
