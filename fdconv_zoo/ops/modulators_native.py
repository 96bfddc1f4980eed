"""KSM on a CPU in inference: all modulators in one call of ``native/modulators.c``.

There is little arithmetic. But a layer's kernels displace everything else from the caches, so that each of torch's
operations first waits for its own code, several times as long as it runs. KSM takes about thirty of these operations.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fdconv_zoo.ops import native
from fdconv_zoo.ops.modulators_plain import linear_flops
from fdconv_zoo.ops.scratch import scratch_memory

_WORTH_THREADS = 2**15  # elements of the weights from which several threads are used
_HEADS = (7, 9, 11, 13)  # among the tensors, the weights of the heads

_Sizes, _Numbers = ctypes.c_int64 * 9, ctypes.c_float * 6
_Tensors, _Results = ctypes.c_void_p * 17, ctypes.c_void_p * (len(_HEADS) + 1)


def predict_modulators_native(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    numbers: Sequence[float],
    sizes: Sequence[int],
) -> list[Tensor | None]:
    """Predict modulators without gradients, using the running statistics of the normalization.

    The arguments and the results are those of :func:`fdconv_zoo.ops.predict_modulators`.
    """
    tensors = [*tensors[:3], *statistics[:2], *tensors[3:]]
    width, groups, *kernel_size = sizes
    found = iter(_operator(pooled, tensors, numbers[:4], width))
    results = [next(found) if size else None for size in (*_head_sizes(tensors), width)]
    if results[3] is not None:
        results[3] = results[3].unflatten(1, kernel_size)
    if width:
        results[4] = results[4].unflatten(1, (groups, -1))
    return results


def _predict(pooled: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[float], width: int) -> list[Tensor]:
    images, channels = pooled.shape
    hidden = 0 if tensors[0] is None else tensors[0].shape[0]
    sizes = _head_sizes(tensors)
    results = _empty_results(pooled, sizes, width)
    found = iter(results)
    pointers = [tensor if tensor is None else tensor.data_ptr() for tensor in tensors]
    kernel_temperature, temperature, *epsilons = numbers
    parts = native.num_threads() if hidden * (channels + sum(sizes)) >= _WORTH_THREADS else 1
    memory = scratch_memory("modulators", 4 * max(images * hidden, channels))
    native.library().fdconv_predict_modulators(
        _Sizes(images, channels, hidden, width, *sizes, parts),
        _Numbers(kernel_temperature, temperature, temperature, temperature, *epsilons),
        pooled.data_ptr(),
        _Tensors(*pointers),
        _Results(*(next(found).data_ptr() if size else None for size in (*sizes, width))),
        memory.data_ptr(),
    )
    return results


def _head_sizes(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensors[head] is None else tensors[head].shape[0] for head in _HEADS]


def _empty_results(pooled: Tensor, sizes: Sequence[int], width: int) -> list[Tensor]:
    results = [pooled.new_empty(pooled.shape[0], size) for size in sizes if size]
    return [*results, pooled.new_empty(*pooled.shape, width)] if width else results


_operator = torch.library.custom_op(
    "fdconv_zoo::predict_modulators_native",
    _predict,
    mutates_args=(),
    schema="(Tensor pooled, Tensor?[] tensors, float[] numbers, int width) -> Tensor[]",
)


@_operator.register_fake
def _(pooled: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[float], width: int) -> list[Tensor]:
    return _empty_results(pooled, _head_sizes(tensors), width)


@register_flop_formula(torch.ops.fdconv_zoo.predict_modulators_native)
def _(pooled: torch.Size, tensors: Sequence[torch.Size | None], *_: Any, **__: Any) -> int:
    return linear_flops(pooled, tensors, _HEADS)
