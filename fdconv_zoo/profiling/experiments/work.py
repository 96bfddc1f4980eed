"""Counts the arithmetic of a model's inference by kind, so that counts of every convention can be derived."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fdconv_zoo.profiling.checks import plain_copy

_aten = torch.ops.aten
# Multiply-adds of a norm for each element of its input, as fvcore and mmengine count them.
_NORMS = {
    _aten.native_batch_norm: 2,
    _aten._native_batch_norm_legit_no_training: 2,
    _aten.native_layer_norm: 5,
    _aten.native_group_norm: 5,
}
_RESIZES = {_aten.upsample_nearest2d: 1, _aten.upsample_bilinear2d: 4}  # per element of the result
_COPIES = (_aten.clone, _aten.copy, _aten.where)


@dataclass
class Work:
    """Multiply-adds by kind.

    Attributes:
        products: Convolutions, matrix products and attention.
        norms: Norms in inference, at 2 (BatchNorm) or 5 for each element, and resizing, at 1 or 4.
        transforms: Fourier transforms, at half of their floating-point operations: a complex one of N numbers takes
            5 N log2(N), a real one half of that.
        elementwise: All other elementwise operations, at 1 for a real and 2 for a complex number; and pooling.
    """

    products: int = 0
    norms: int = 0
    transforms: float = 0.0
    elementwise: int = 0

    @property
    def get_flops(self) -> int:
        """The figure that `get_flops.py` of mmdetection and mmsegmentation reports, which omits other operations.

        The script calls mmengine's `get_model_complexity_info`, with the rules of fvcore: operations without a rule,
        such as FFTs and elementwise products, count as 0. (Both trace the model. The exact form of FBM is then that of
        exported programs, with other matrix products than here.)
        """
        return self.products + self.norms

    @property
    def total(self) -> float:
        """All kinds together."""
        return self.products + self.norms + self.transforms + self.elementwise

    def as_row(self) -> dict[str, float]:
        """All figures by name: the kinds, ``get_flops`` and ``total``."""
        return {**vars(self), "get_flops": self.get_flops, "total": self.total}

    def __sub__(self, other: "Work") -> "Work":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Work(*(mine - theirs for mine, theirs in pairs))


def count_work(model: nn.Module, size: tuple[int, int]) -> Work:
    """Count the arithmetic of inference for one image, by torch's own operations.

    Nothing is computed: the model is copied to the meta device, so any size can be counted.

    Args:
        model: For images of three channels; it is not changed.
        size: Height and width.
    """
    model = plain_copy(model).to("meta").eval()
    # Not inference_mode: in it, the counter does not see the operations that others consist of.
    with torch.no_grad(), _Counter() as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return counter.work


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation, work = func._overloadpacket, self.work
        if operation in flop_registry:
            work.products += flop_registry[operation](*args, **kwargs, out_val=result) // 2
        elif operation in _NORMS:
            work.norms += _NORMS[operation] * args[0].numel()
        elif operation in _RESIZES:
            work.norms += _RESIZES[operation] * result.numel()
        elif operation is _aten._fft_r2c:
            work.transforms += _transform(args[0], args[1]) / 4
        elif operation is _aten._fft_c2c:
            work.transforms += _transform(args[0], args[1]) / 2
        elif operation is _aten._fft_c2r:
            work.transforms += _transform(result, args[1]) / 4
        elif operation is _aten.avg_pool2d:
            work.elementwise += args[0].numel()
        elif torch.Tag.pointwise in func.tags and operation not in _COPIES and _has_numbers(result):
            work.elementwise += result.numel() * (2 if result.is_complex() else 1)
        return result


def _has_numbers(result: Any) -> bool:
    """Whether the result is a tensor of real or complex numbers, not of integers or booleans."""
    return isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex())


def _transform(x: Tensor, dims: list[int]) -> float:
    """Operations of complex transforms of x along some of its dimensions."""
    return 5 * x.numel() * math.log2(max(math.prod(x.shape[dim] for dim in dims), 1))
