"""KSM on a GPU: all modulators in two launches, and their gradients in three.

With torch's operations, the KSM of a layer takes about 15 launches in the forward pass and 30 in the backward pass.
Each kernel takes far longer to launch than to run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fdconv_zoo.ops.double_backward import needs_plain_gradients, plain_gradients
from fdconv_zoo.ops.modulators_plain import (
    HEADS,
    NUM_GLOBAL,
    batch_statistics_plain,
    linear_flops,
    predict_plain,
)
from fdconv_zoo.ops.triton_support import cdiv, on_device_of, power_of_two, triton, with_fallback

if triton is not None:
    from fdconv_zoo.ops import modulators_jit

_ELEMENTS = 1024  # of a block of windows
# By the number of images in a tile, its rows and columns. A thread adds at most 64 elements.
_HIDDEN_TILES = {1: (1, 1024), 2: (1, 1024), 4: (1, 1024), 8: (2, 512), 16: (4, 128)}
_TILE = 32  # outputs, hidden units and channels in the tiles of gradients
_UNITS, _SHARES = 8, 512  # hidden units of a program that adds shares, and shares that it adds at a time, of all images
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
    # An existing tensor replaces each missing one, so that each kernel is compiled only once.
    filled = [pooled if tensor is None else tensor for tensor in tensors]
    statistics = (state, state, state) if mean is None else (mean, variance, count)
    images = power_of_two(batch, most=16)
    with on_device_of(pooled):
        units, cols = _HIDDEN_TILES[images]
        hidden_blocks = cdiv(hidden, units)
        modulators_jit.predict_hidden[(hidden_blocks + batch * cdiv(channels * width, _ELEMENTS),)](
            pooled, *filled[:3], *statistics, *filled[3:5], *filled[NUM_GLOBAL:],
            state, results[-2] if width else state,
            batch, channels, hidden, width, hidden_blocks, eps, momentum, layer_eps,
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
        hidden = F.linear(pooled, tensors[0])
        if batch_statistics:
            center, spread, inverse = batch_statistics_plain(hidden, eps)
            mean.lerp_(center, momentum)
            variance.lerp_(spread * (len(pooled) / (len(pooled) - 1)), momentum)
            count.add_(1)
        else:
            center, inverse = mean, (variance + eps).rsqrt()
        normalized = (hidden - center) * inverse
        state[2 * hidden.numel() :][: 2 * len(center)] = torch.cat((center, inverse))
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


def _backward(
    grads: Sequence[Tensor],
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    factors: Sequence[Tensor],
    state: Tensor,
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor]:
    batch, channels = pooled.shape
    width, outputs = sizes[0], _head_sizes(tensors)
    hidden = 0 if tensors[0] is None else tensors[0].shape[0]
    results = [torch.empty_like(tensor) for tensor in (pooled, *tensors) if tensor is not None]
    grads = [grad.contiguous() for grad in grads]
    grad_pooled, *found = results
    found = iter(found)
    filled = [pooled if tensor is None else tensor for tensor in tensors]
    gradients = [pooled if tensor is None else next(found) for tensor in tensors]
    kernel_temperature, temperature, *_ = numbers
    images = power_of_two(batch, most=16)
    num_warps = 8 if images > 4 else 4
    head_blocks = sum(cdiv(size, _TILE) for size in outputs)
    star_shares = cdiv(hidden, _UNITS)
    numel = head_blocks * batch * hidden + batch * (hidden + channels + 2) + 2 * star_shares
    scratch = pooled.new_empty(numel)
    parts, blocks = cdiv(hidden, _TILE), cdiv(channels, _TILE)
    with on_device_of(pooled):
        found = iter(zip(grads, factors, strict=False))
        arguments = [
            argument
            for head, size in zip(HEADS, outputs, strict=True)
            for argument in (
                *(next(found) if size else (pooled, pooled)),
                filled[head],
                *gradients[head : head + 2],
            )
        ]
        modulators_jit.backward_heads[(head_blocks * parts + (batch if width else 0),)](
            *arguments, grads[-1], pooled, filled[NUM_GLOBAL], state, scratch, batch, channels, hidden, width,
            *outputs, head_blocks, kernel_temperature, temperature,
            IMAGES=images, OUTPUTS=_TILE, UNITS=_TILE, CHANNELS=_ELEMENTS, num_warps=num_warps,
        )  # fmt: skip
        if hidden:
            shares = min(_SHARES // images, 64)
            modulators_jit.backward_hidden[(star_shares,)](
                state, *filled[1:4], scratch, *gradients[1:3], batch, channels, hidden, head_blocks,
                TRAINING=batch_statistics, IMAGES=images, UNITS=_UNITS, SHARES=shares, num_warps=num_warps,
            )  # fmt: skip
        reduce_programs, layer_programs = blocks * parts, blocks if width else 0
        grid = (reduce_programs + layer_programs + blocks * cdiv(batch, images),)
        modulators_jit.backward_inputs[grid](
            pooled, filled[0], filled[NUM_GLOBAL], state, scratch, grad_pooled, gradients[0],
            *gradients[NUM_GLOBAL:], *gradients[3:5],
            batch, channels, hidden, head_blocks, star_shares, reduce_programs, layer_programs,
            IMAGES=images, UNITS=_TILE, CHANNELS=_TILE, num_warps=num_warps,
        )  # fmt: skip
    return results


def _register(name: str, batch_statistics: bool) -> Callable[..., list[Tensor]]:
    """Register the operator that uses running statistics, or the one that uses batch statistics and updates them.

    There are two, since the schema of an operator states whether it writes to a tensor, and cannot leave this open.
    """
    mean, variance, count = ("Tensor(a!)", "Tensor(b!)", "Tensor(c!)") if batch_statistics else ("Tensor",) * 3
    settings = {"batch_statistics": batch_statistics}
    operator = torch.library.custom_op(
        f"fdconv_zoo::{name}",
        with_fallback(partial(_predict, **settings), partial(_predict_plain, **settings)),
        mutates_args=("mean", "variance", "count") if batch_statistics else (),
        schema=f"(Tensor pooled, Tensor?[] tensors, {mean}? mean, {variance}? variance, {count}? count,"
        " float[] numbers, int[] sizes) -> Tensor[]",
    )

    @operator.register_fake
    def _(pooled: Tensor, tensors: Sequence[Tensor | None], *others: Any) -> list[Tensor]:
        return _empty_results(pooled, tensors, others[-1])

    @register_flop_formula(getattr(torch.ops.fdconv_zoo, name))
    def _(pooled: torch.Size, tensors: Sequence[torch.Size | None], *_: Any, **__: Any) -> int:
        return linear_flops(pooled, tensors, HEADS)

    return operator


_operators = {
    False: _register("predict_modulators_triton", False),
    True: _register("predict_modulators_triton_in_training", True),
}
_backward_operator = torch.library.custom_op(
    "fdconv_zoo::predict_modulators_triton_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor[] grads, Tensor pooled, Tensor?[] tensors, Tensor[] factors, Tensor state,"
    " float[] numbers, int[] sizes, bool batch_statistics) -> Tensor[]",
)


@_backward_operator.register_fake
def _(grads: Sequence[Tensor], pooled: Tensor, tensors: Sequence[Tensor | None], *_: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (pooled, *tensors) if tensor is not None]


@register_flop_formula(torch.ops.fdconv_zoo.predict_modulators_triton_backward)
def _(grads: Any, pooled: torch.Size, tensors: Sequence[torch.Size | None], *_: Any, **__: Any) -> int:
    return 2 * linear_flops(pooled, tensors, HEADS)


class _Prediction(torch.autograd.Function):
    """The operator with gradients, which torch cannot register for an operator that updates running statistics."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """Take pooled, the tensors that are not None, and a tuple of the operator's other arguments."""
        *tensors, (is_there, statistics, *settings) = arguments
        *results, state = _operators[settings[-1]](pooled, _spread(tensors, is_there), *statistics, *settings[:-1])
        ctx.is_there, ctx.settings = is_there, settings
        ctx.count = len(tensors)
        ctx.save_for_backward(pooled, *tensors, *results, state)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of pooled and the tensors."""
        saved = ctx.saved_tensors  # read once, since activation checkpointing allows only one access
        inputs, results = saved[: ctx.count + 1], saved[ctx.count + 1 :]
        run = _gradients_plain if any(map(needs_plain_gradients, grads)) else _gradients
        return *run(grads, inputs, results, ctx.is_there, *ctx.settings), None


def _spread(tensors: Sequence[Tensor], is_there: Sequence[bool]) -> list[Tensor | None]:
    found = iter(tensors)
    return [next(found) if there else None for there in is_there]


def _launch_gradients(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    is_there: Sequence[bool],
    *settings: Any,
) -> list[Tensor]:
    *factors, state = results
    pooled, *tensors = inputs
    return _backward_operator(list(grads), pooled, _spread(tensors, is_there), factors, state, *settings)


def _gradients_plain(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    is_there: Sequence[bool],
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor | None]:
    def predict(pooled: Tensor, *tensors: Tensor) -> list[Tensor]:
        tensors, normalized = _spread(tensors, is_there), None
        if is_there[0]:
            hidden = F.linear(pooled, tensors[0])
            if batch_statistics:
                center, _, inverse = batch_statistics_plain(hidden, numbers[2])
            else:
                center, inverse = results[-1][2 * hidden.numel() :][: 2 * hidden.shape[1]].chunk(2)
            normalized = (hidden - center) * inverse
        return predict_plain(pooled, tensors, normalized, numbers, sizes)

    return plain_gradients(predict, inputs, grads)


_gradients = with_fallback(_launch_gradients, _gradients_plain)


def predict_modulators_triton(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    numbers: Sequence[float],
    sizes: Sequence[int],
    batch_statistics: bool,
) -> list[Tensor | None]:
    """The Triton path of :func:`fdconv_zoo.ops.predict_modulators`."""
    settings = (numbers, sizes, batch_statistics)
    if torch.is_grad_enabled():
        is_there = [tensor is not None for tensor in tensors]
        there = [tensor for tensor in tensors if tensor is not None]
        found = iter(_Prediction.apply(pooled, *there, (is_there, statistics, *settings)))
    else:
        found = iter(_operators[batch_statistics](pooled, tensors, *statistics, numbers, sizes))
    return [next(found) if size else None for size in (*_head_sizes(tensors), sizes[0])]
