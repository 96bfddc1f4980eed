"""KSM on a GPU: all modulators in two launches, and their gradients in three.

With torch's operations a layer's KSM is some 15 launches forward and 30 backward, each far longer on its way than at
work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fdconv_zoo.ops.modulators_plain import HEADS, NUM_GLOBAL, normalize_plain, predict_plain
from fdconv_zoo.ops.triton_support import cdiv, on_device_of, power_of_two, triton, with_fallback

if triton is not None:
    from fdconv_zoo.ops import modulators_jit

_ELEMENTS = 1024  # of a block of windows
# Images of a tile to the rows and columns of its tiles, of which a thread adds up at most 64 elements.
_HIDDEN_TILES = {1: (1, 1024), 2: (1, 1024), 4: (1, 1024), 8: (2, 512), 16: (4, 128)}
_HEAD_TILES = {1: (16, 128), 2: (16, 128), 4: (16, 128), 8: (16, 64), 16: (16, 32)}


def _predict(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    mean: Tensor | None,
    variance: Tensor | None,
    count: Tensor | None,
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor]:
    batch, channels = pooled.shape
    width, outputs = sizes[0], _head_sizes(tensors)
    hidden = 0 if tensors[0] is None else tensors[0].shape[0]
    results = _empty_results(pooled, tensors, sizes)
    state = results[-1]
    kernel_temperature, temperature, eps, layer_eps, momentum = numbers
    # What is not there stands as a tensor that is: each kernel is compiled once.
    filled = [pooled if tensor is None else tensor for tensor in tensors]
    statistics = (state, state, state) if mean is None else (mean, variance, count)
    images = power_of_two(batch, most=16)
    with on_device_of(pooled):
        units, cols = _HIDDEN_TILES[images]
        hidden_blocks = cdiv(hidden, units)
        modulators_jit.predict_hidden[(hidden_blocks + batch * cdiv(channels * width, _ELEMENTS),)](
            pooled, *filled[:3], *statistics, *filled[3:5], *filled[NUM_GLOBAL:],
            state, results[-2] if width else state, batch, channels, hidden, width, hidden_blocks, eps, momentum, layer_eps,
            TRAINING=batch_statistics, IMAGES=images, UNITS=units, CHANNELS=cols, ELEMENTS=_ELEMENTS,
        )  # fmt: skip
        if hidden:
            units, cols = _HEAD_TILES[images]
            found = iter(results)
            arguments = [
                argument
                for head, size in zip(HEADS, outputs, strict=True)
                for argument in (filled[head], filled[head + 1], next(found) if size else state)
            ]
            grid = (sum(cdiv(size, units) for size in outputs), cdiv(batch, images))
            modulators_jit.predict_heads[grid](
                state, *arguments, batch, hidden, *outputs, kernel_temperature, temperature,
                IMAGES=images, OUTPUTS=units, UNITS=cols,
            )  # fmt: skip
    return results


def _predict_plain(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    mean: Tensor | None,
    variance: Tensor | None,
    count: Tensor | None,
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor]:
    normalized, state = None, _empty_state(pooled, tensors)
    if mean is not None:
        *_, eps, _, momentum = numbers
        normalized, center, spread, inverse = normalize_plain(pooled, tensors[0], mean, variance, eps, batch_statistics)
        if batch_statistics:
            mean.lerp_(center, momentum)
            variance.lerp_(spread * (len(pooled) / (len(pooled) - 1)), momentum)
            count.add_(1)
        state[2 * normalized.numel() :][: 2 * len(center)] = torch.cat((center, inverse))
    results = predict_plain(pooled, tensors, normalized, numbers, sizes)
    return [*(tensor.contiguous() for tensor in results), state]


def _head_sizes(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensors[head] is None else tensors[head].shape[0] for head in HEADS]


def _empty_results(pooled: Tensor, tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> list[Tensor]:
    batch, channels = pooled.shape
    width, groups, *kernel_size = sizes
    *outputs, taps = _head_sizes(tensors)
    results = [pooled.new_empty(batch, size) for size in outputs if size]
    if taps:
        results.append(pooled.new_empty(batch, *kernel_size))
    if width:
        results.append(pooled.new_empty(batch, groups, channels // groups, width))
    return [*results, _empty_state(pooled, tensors)]


def _empty_state(pooled: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """See :mod:`fdconv_zoo.ops.modulators_jit`."""
    batch, hidden = len(pooled), 0 if tensors[0] is None else tensors[0].shape[0]
    return pooled.new_empty(2 * (batch * hidden + hidden + batch))


_operator = torch.library.custom_op(
    "fdconv_zoo::predict_modulators_triton",
    with_fallback(_predict, _predict_plain),
    mutates_args=("mean", "variance", "count"),
    schema="(Tensor pooled, Tensor?[] tensors, Tensor(a!)? mean, Tensor(b!)? variance, Tensor(c!)? count,"
    " float[] numbers, int[] sizes, bool batch_statistics) -> Tensor[]",
)


@_operator.register_fake
def _(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    mean: Tensor | None,
    variance: Tensor | None,
    count: Tensor | None,
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor]:
    return _empty_results(pooled, tensors, sizes)


def _linear_flops(pooled: torch.Size, tensors: Sequence[torch.Size | None]) -> int:
    """Those of the linear layers, as torch counts them."""
    weights = [tensors[at] for at in (0, *HEADS) if tensors[at] is not None]
    return 2 * pooled[0] * sum(rows * cols for rows, cols in weights)


@register_flop_formula(torch.ops.fdconv_zoo.predict_modulators_triton)
def _(pooled: torch.Size, tensors: Sequence[torch.Size | None], *_: object, **__: object) -> int:
    return _linear_flops(pooled, tensors)


def predict_modulators_triton(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor | None]:
    """The Triton path of :func:`fdconv_zoo.ops.predict_modulators`."""
    found = iter(_operator(pooled, tensors, *statistics, numbers, sizes, batch_statistics))
    return [next(found) if size else None for size in (*_head_sizes(tensors), sizes[0])]
