"""The Triton kernels of :mod:`fdconv_zoo.ops.modulation`."""

import triton
import triton.language as tl


@triton.jit
def modulate(logits, outs, sizes, divisors, scales, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Compute ``scale * sigmoid(logit / divisor)`` for each tensor.

    Grid: blocks of the first tensor, then of the second, ...
    """
    block = tl.program_id(0)
    for index in tl.static_range(COUNT):
        element = block * BLOCK + tl.arange(0, BLOCK)
        mask = (element >= 0) & (element < sizes[index])
        values = tl.load(logits[index] + element, mask=mask, other=0.0).to(tl.float32)
        tl.store(outs[index] + element, scales[index] * tl.sigmoid(values / divisors[index]), mask=mask)
        block -= tl.cdiv(sizes[index], BLOCK)


@triton.jit
def modulate_backward(grads, logits, outs, sizes, divisors, scales, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The gradients of the logits of :func:`modulate`, with the same grid."""
    block = tl.program_id(0)
    for index in tl.static_range(COUNT):
        element = block * BLOCK + tl.arange(0, BLOCK)
        mask = (element >= 0) & (element < sizes[index])
        values = tl.load(logits[index] + element, mask=mask, other=0.0).to(tl.float32)
        share = tl.sigmoid(values / divisors[index])
        grad = tl.load(grads[index] + element, mask=mask, other=0.0)
        grad *= scales[index] / divisors[index] * share * (1 - share)
        tl.store(outs[index] + element, grad.to(outs[index].dtype.element_ty), mask=mask)
        block -= tl.cdiv(sizes[index], BLOCK)


@triton.jit(do_not_specialize=["size"])
def star_relu(x, scale, bias, out, size, BLOCK: tl.constexpr):
    """``scale * relu(x)^2 + bias``; grid: blocks."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    values = tl.load(x + element, mask=mask, other=0.0)
    values = tl.where(values < 0, 0.0, values)  # keeps NaN
    tl.store(out + element, tl.load(scale) * values * values + tl.load(bias), mask=mask)


@triton.jit(do_not_specialize=["size"])
def star_relu_backward(grad, x, scale, grad_x, grad_scale, grad_bias, size, BLOCK: tl.constexpr):
    """The gradients of :func:`star_relu`, in one program: elements are few, and two gradients are sums of all."""
    factor = 2 * tl.load(scale)
    scale_sums = tl.zeros([BLOCK], tl.float32)
    bias_sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        element = start + tl.arange(0, BLOCK)
        mask = element < size
        values = tl.load(x + element, mask=mask, other=0.0)
        values = tl.where(values < 0, 0.0, values)
        grads = tl.load(grad + element, mask=mask, other=0.0)
        tl.store(grad_x + element, factor * values * grads, mask=mask)
        scale_sums += grads * values * values
        bias_sums += grads
    tl.store(grad_scale, tl.sum(scale_sums, 0))
    tl.store(grad_bias, tl.sum(bias_sums, 0))


@triton.jit(do_not_specialize=["size", "channels"])
def neighbors(x, out, size, channels, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Collect the WIDTH channels around each channel of x (B, C): (B, C, WIDTH), 0 beyond the ends; grid: blocks."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    shift = element % WIDTH - WIDTH // 2
    position = element // WIDTH
    seen = position % channels + shift
    is_inside = (seen >= 0) & (seen < channels)
    values = tl.load(x + position + shift, mask=(element < size) & is_inside, other=0.0)
    tl.store(out + element, values, mask=element < size)


@triton.jit(do_not_specialize=["size", "channels"])
def neighbors_backward(grad, out, size, channels, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of x in :func:`neighbors`; grid: blocks of the gradient."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = position < size
    total = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(WIDTH):
        center = position % channels + WIDTH // 2 - tap
        is_inside = mask & (center >= 0) & (center < channels)
        total += tl.load(grad + (position + WIDTH // 2 - tap) * WIDTH + tap, mask=is_inside, other=0.0)
    tl.store(out + position, total, mask=mask)


@triton.jit(do_not_specialize=["positions", "count"])
def pool(x, out, channels, positions, count, x_image, x_position, scale, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sum each block of ``count`` positions, (blocks, B, C), times ``scale``; x has its channels innermost.

    Grid: blocks of each image's channels, blocks of positions.
    """
    channel_blocks = tl.cdiv(channels, COLS)
    image = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * COLS + tl.arange(0, COLS)
    channel_mask = channel < channels
    first = tl.program_id(1) * count
    last = tl.minimum(first + count, positions)
    x += image.to(tl.int64) * x_image
    total = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(first, last, ROWS):
        position = start + tl.arange(0, ROWS)
        pointers = x + position[:, None] * x_position + channel[None, :]
        total += tl.load(pointers, mask=(position < last)[:, None] & channel_mask[None, :], other=0.0).to(tl.float32)
    images = tl.num_programs(0) // channel_blocks
    pointers = out + (tl.program_id(1) * images + image) * channels + channel
    tl.store(pointers, tl.sum(total, 0) * scale, mask=channel_mask)
