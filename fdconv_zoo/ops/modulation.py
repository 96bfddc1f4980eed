"""KSM's small operations between its linear layers, and FBM's gate; on GPUs, one launch replaces several of torch's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.double_backward import needs_plain_gradients
from fdconv_zoo.ops.triton_support import cdiv, on_device_of, triton, with_fallback

if triton is not None:
    from fdconv_zoo.ops import modulation_jit

_BLOCK = 512
_PROGRAMS = 1024  # enough to keep a large GPU busy
_POOLED, _ROWS = 32, 128  # channels and positions that a program pools at once


def modulate_plain(
    logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int], dtype: torch.dtype
) -> list[Tensor]:
    """Compute ``2 * sigmoid(logit / temperature) / count`` for each tensor."""
    found = []
    for logit, temperature, count in zip(logits, temperatures, counts, strict=True):
        logit = logit.to(dtype)
        gates = torch.sigmoid(logit if temperature == 1 else logit / temperature)
        factors = gates + gates  # for small tensors twice as fast as multiplying by 2
        found.append(factors if count == 1 else factors / count)
    return found


def star_relu_plain(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``scale * relu(x)^2 + bias``."""
    x = F.relu(x)
    return torch.addcmul(bias, x * scale, x)


def neighbors_plain(x: Tensor, width: int) -> Tensor:
    """Collect the ``width`` channels around each channel of x (B, C): (B, C, width), 0 beyond the first and last."""
    padded = F.pad(x, (width // 2, width // 2))
    if torch.onnx.is_in_onnx_export():  # the tracing exporter does not support unfold
        return torch.stack([padded[:, tap : tap + x.shape[1]] for tap in range(width)], dim=2)
    return padded.unfold(1, width, 1)


def pool_plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Average each channel of x (B, C, H, W) to (B, C)."""
    # The gradient of a sum is a view; that of a mean is a tensor of x's size.
    return x.sum((2, 3), dtype=dtype) / (x.shape[2] * x.shape[3])


def _modulate(logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int]) -> list[Tensor]:
    logits = [logit.contiguous() for logit in logits]
    outs = [torch.empty_like(logit, dtype=torch.float32) for logit in logits]
    with on_device_of(logits[0]):
        modulation_jit.modulate[_count_blocks(logits)](
            tuple(logits), tuple(outs), *_numbers(logits, temperatures, counts), COUNT=len(logits), BLOCK=_BLOCK
        )
    return outs


def _modulate_backward(
    grads: Sequence[Tensor], logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int]
) -> list[Tensor]:
    grads, logits = [grad.contiguous() for grad in grads], [logit.contiguous() for logit in logits]
    outs = [torch.empty_like(logit) for logit in logits]
    with on_device_of(logits[0]):
        modulation_jit.modulate_backward[_count_blocks(logits)](
            tuple(grads),
            tuple(logits),
            tuple(outs),
            *_numbers(logits, temperatures, counts),
            COUNT=len(logits),
            BLOCK=_BLOCK,
        )
    return outs


def _modulate_backward_plain(
    grads: Sequence[Tensor], logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int]
) -> list[Tensor]:
    found = []
    for grad, logit, temperature, count in zip(grads, logits, temperatures, counts, strict=True):
        share = torch.sigmoid(logit.to(grad.dtype) / temperature)
        found.append((grad * (2 / temperature / count) * share * (1 - share)).to(logit.dtype))
    return found


def _count_blocks(tensors: Sequence[Tensor]) -> tuple[int]:
    return (sum(cdiv(tensor.numel(), _BLOCK) for tensor in tensors),)


def _numbers(
    logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """The sizes of the logits, their divisors, and the factors of their sigmoids."""
    sizes = tuple(logit.numel() for logit in logits)
    return sizes, tuple(map(float, temperatures)), tuple(2 / count for count in counts)


def _star_relu(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    x = x.contiguous()
    out, size = torch.empty_like(x), x.numel()
    with on_device_of(x):
        modulation_jit.star_relu[(cdiv(size, _BLOCK),)](x, scale, bias, out, size, BLOCK=_BLOCK)
    return out


def _star_relu_backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    grad_x, grad_scale, grad_bias = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
    with on_device_of(x):
        modulation_jit.star_relu_backward[(1,)](grad, x, scale, grad_x, grad_scale, grad_bias, x.numel(), BLOCK=1024)
    return grad_x, grad_scale, grad_bias


def _star_relu_backward_plain(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = F.relu(x)
    return 2 * scale * x * grad, (grad * x * x).sum().view(1), grad.sum().view(1)


def _neighbors(x: Tensor, width: int) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(*x.shape, width)
    with on_device_of(x):
        grid = (cdiv(out.numel(), _BLOCK),)
        modulation_jit.neighbors[grid](x, out, out.numel(), x.shape[1], WIDTH=width, BLOCK=_BLOCK)
    return out


def _neighbors_backward(grad: Tensor) -> Tensor:
    grad = grad.contiguous()
    batch, channels, width = grad.shape
    out = grad.new_empty(batch, channels)
    with on_device_of(grad):
        grid = (cdiv(out.numel(), _BLOCK),)
        modulation_jit.neighbors_backward[grid](grad, out, out.numel(), channels, WIDTH=width, BLOCK=_BLOCK)
    return out


def _neighbors_backward_plain(grad: Tensor) -> Tensor:
    _, channels, width = grad.shape
    padded = sum(F.pad(grad[..., tap], (tap, width - 1 - tap)) for tap in range(width))
    return padded[:, width // 2 : width // 2 + channels]


def _pool(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    stride = x.stride(3) if width > 1 else x.stride(2)
    # The Triton kernel is for maps with innermost channels, which torch sums at a fifth of the memory bandwidth.
    if x.stride(1) != 1 or (width > 1 and x.stride(2) != width * stride):
        return x.mean((2, 3), dtype=torch.float32)
    positions = height * width
    shares = max(min(_PROGRAMS // (cdiv(channels, _POOLED) * batch), cdiv(positions, _ROWS)), 1)
    with on_device_of(x):
        means = _sum_positions(x, (batch, channels, positions), (x.stride(0), stride), shares, 1 / positions)
        if shares == 1:
            return means[0]
        size = batch * channels
        return _sum_positions(means, (1, size, shares), (0, size), 1, 1.0).view(batch, channels)


def _sum_positions(
    x: Tensor, sizes: tuple[int, int, int], strides: tuple[int, int], shares: int, scale: float
) -> Tensor:
    """Partial sums (shares, B, C) over the positions of x, times ``scale``; ``sizes`` are B, C and positions."""
    batch, channels, positions = sizes
    out = x.new_empty(shares, batch, channels, dtype=torch.float32)
    modulation_jit.pool[(cdiv(channels, _POOLED) * batch, shares)](
        x, out, channels, positions, cdiv(positions, shares), *strides, scale, ROWS=_ROWS, COLS=_POOLED
    )
    return out


def _pool_plain(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=torch.float32)


_NUMBERS = "float[] temperatures, int[] counts"
_modulate_operator = torch.library.custom_op(
    "fdconv_zoo::modulate",
    with_fallback(_modulate, partial(modulate_plain, dtype=torch.float32)),
    mutates_args=(),
    schema=f"(Tensor[] logits, {_NUMBERS}) -> Tensor[]",
)
_modulate_backward_operator = torch.library.custom_op(
    "fdconv_zoo::modulate_backward",
    with_fallback(_modulate_backward, _modulate_backward_plain),
    mutates_args=(),
    schema=f"(Tensor[] grads, Tensor[] logits, {_NUMBERS}) -> Tensor[]",
)
_star_relu_operator = torch.library.custom_op(
    "fdconv_zoo::star_relu",
    with_fallback(_star_relu, star_relu_plain),
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor bias) -> Tensor",
)
_star_relu_backward_operator = torch.library.custom_op(
    "fdconv_zoo::star_relu_backward",
    with_fallback(_star_relu_backward, _star_relu_backward_plain),
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor, Tensor)",
)
_neighbors_operator = torch.library.custom_op(
    "fdconv_zoo::neighbors",
    with_fallback(_neighbors, lambda x, width: neighbors_plain(x, width).contiguous()),
    mutates_args=(),
    schema="(Tensor x, int width) -> Tensor",
)
_neighbors_backward_operator = torch.library.custom_op(
    "fdconv_zoo::neighbors_backward",
    with_fallback(_neighbors_backward, lambda grad: _neighbors_backward_plain(grad).contiguous()),
    mutates_args=(),
    schema="(Tensor grad) -> Tensor",
)
_pool_operator = torch.library.custom_op(
    "fdconv_zoo::pool", with_fallback(_pool, _pool_plain), mutates_args=(), schema="(Tensor x) -> Tensor"
)


@_modulate_operator.register_fake
def _(logits: Sequence[Tensor], temperatures: Sequence[float], counts: Sequence[int]) -> list[Tensor]:
    return [logit.new_empty(logit.shape, dtype=torch.float32) for logit in logits]


@_modulate_backward_operator.register_fake
def _(grads: Sequence[Tensor], logits: Sequence[Tensor], *numbers: Any) -> list[Tensor]:
    return [logit.new_empty(logit.shape) for logit in logits]


@_star_relu_operator.register_fake
def _(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_star_relu_backward_operator.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(scale), torch.empty_like(scale)


@_neighbors_operator.register_fake
def _(x: Tensor, width: int) -> Tensor:
    return x.new_empty(*x.shape, width)


@_neighbors_backward_operator.register_fake
def _(grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[:2])


@_pool_operator.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    logits, *ctx.numbers = inputs
    ctx.save_for_backward(*logits)


def _differentiate_modulate(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    run = _modulate_backward_plain if any(map(needs_plain_gradients, grads)) else _modulate_backward_operator
    return run(grads, list(ctx.saved_tensors), *ctx.numbers), None, None


def _save_star_relu(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate_star_relu(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    run = _star_relu_backward_plain if needs_plain_gradients(grad) else _star_relu_backward_operator
    return run(grad, *ctx.saved_tensors)


def _differentiate_neighbors(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    run = _neighbors_backward_plain if needs_plain_gradients(grad) else _neighbors_backward_operator
    return run(grad), None


def _save_shape(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _differentiate_pool(ctx: Any, grad: Tensor) -> Tensor:
    positions = ctx.shape[2] * ctx.shape[3]
    if needs_plain_gradients(grad) or torch.compiler.is_compiling():
        share = (grad / positions).to(ctx.dtype)
    else:  # in one launch
        share = torch.div(grad, positions, out=grad.new_empty(grad.shape, dtype=ctx.dtype))
    # A view, so that no tensor of x's size is written.
    return share[:, :, None, None].expand(ctx.shape)


_modulate_operator.register_autograd(_differentiate_modulate, setup_context=_save_logits)
_star_relu_operator.register_autograd(_differentiate_star_relu, setup_context=_save_star_relu)
_neighbors_operator.register_autograd(_differentiate_neighbors)
_pool_operator.register_autograd(_differentiate_pool, setup_context=_save_shape)

modulate_triton, star_relu_triton, neighbors_triton, pool_triton = (
    _modulate_operator,
    _star_relu_operator,
    _neighbors_operator,
    _pool_operator,
)
