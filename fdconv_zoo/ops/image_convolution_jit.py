"""The Triton kernels of :mod:`fdconv_zoo.ops.image_convolution`: matrix products with patches, without copying them."""

import triton
import triton.language as tl


@triton.jit
def convolve(x, kernels, out, in_height, in_width, out_height, out_width, inner, outer,
             x_image, x_channel, x_row, x_col, kernel_image, kernel_group, kernel_inner, kernel_outer, kernel_row,
             kernel_col, out_image, out_channel, out_row, out_col, padding_rows, padding_cols,
             HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE_ROWS: tl.constexpr, STRIDE_COLS: tl.constexpr,
             DILATION_ROWS: tl.constexpr, DILATION_COLS: tl.constexpr, TRANSPOSED: tl.constexpr,
             POSITIONS: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, DTYPE: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """Convolve each image with its kernel; or, if TRANSPOSED, apply the adjoint with respect to the image.

    Each group sums over its ``inner`` channels and writes ``outer`` channels. Grid: blocks of positions and outer
    channels, images, groups.
    """
    outer_blocks = tl.cdiv(outer, OUTER)
    position = tl.program_id(0) // outer_blocks * POSITIONS + tl.arange(0, POSITIONS)
    to = tl.program_id(0) % outer_blocks * OUTER + tl.arange(0, OUTER)
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(2)
    x += image * x_image + group * inner * x_channel
    kernels += image * kernel_image + group * kernel_group
    row = position // out_width
    col = position % out_width
    inner_blocks = tl.cdiv(inner, INNER)
    total = tl.zeros([POSITIONS, OUTER], tl.float32)
    for step in range(HEIGHT * WIDTH * inner_blocks):
        tap_row = step // inner_blocks // WIDTH
        tap_col = step // inner_blocks % WIDTH
        channel = step % inner_blocks * INNER + tl.arange(0, INNER)
        if TRANSPOSED:
            seen_row = row + padding_rows - tap_row * DILATION_ROWS
            seen_col = col + padding_cols - tap_col * DILATION_COLS
            is_seen = (seen_row >= 0) & (seen_col >= 0)
            is_seen &= (seen_row % STRIDE_ROWS == 0) & (seen_col % STRIDE_COLS == 0)
            seen_row = seen_row // STRIDE_ROWS
            seen_col = seen_col // STRIDE_COLS
        else:
            seen_row = row * STRIDE_ROWS - padding_rows + tap_row * DILATION_ROWS
            seen_col = col * STRIDE_COLS - padding_cols + tap_col * DILATION_COLS
            is_seen = (seen_row >= 0) & (seen_col >= 0)
        is_seen &= (seen_row < in_height) & (seen_col < in_width)
        left = tl.load(x + (seen_row * x_row + seen_col * x_col)[:, None] + (channel * x_channel)[None, :],
                       mask=is_seen[:, None] & (channel < inner)[None, :], other=0.0)  # fmt: skip
        start = kernels + tap_row * kernel_row + tap_col * kernel_col
        right = tl.load(start + (channel * kernel_inner)[:, None] + (to * kernel_outer)[None, :],
                        mask=(channel < inner)[:, None] & (to < outer)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(left.to(DTYPE), right.to(DTYPE), total, input_precision=PRECISION)
    out += image * out_image + group * outer * out_channel
    pointers = out + (row * out_row + col * out_col)[:, None] + (to * out_channel)[None, :]
    mask = (position < out_height * out_width)[:, None] & (to < outer)[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def kernel_gradient(grad, x, out, in_height, in_width, out_height, out_width, filters, channels,
                    grad_image, grad_channel, grad_row, grad_col, x_image, x_channel, x_row, x_col,
                    out_image, out_filter, out_channel, out_tap_row, out_tap_col, padding_rows, padding_cols,
                    WIDTH: tl.constexpr, STRIDE_ROWS: tl.constexpr, STRIDE_COLS: tl.constexpr,
                    DILATION_ROWS: tl.constexpr, DILATION_COLS: tl.constexpr,
                    FILTERS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, DTYPE: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """Compute the gradient of each image's kernel.

    Grid: blocks of a group's filters and of its input channels for each tap, images, groups.
    """
    filter_blocks = tl.cdiv(filters, FILTERS)
    channel_blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0)
    filter = block % filter_blocks * FILTERS + tl.arange(0, FILTERS)
    channel = block // filter_blocks % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    tap_row = block // (filter_blocks * channel_blocks) // WIDTH
    tap_col = block // (filter_blocks * channel_blocks) % WIDTH
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(2)
    grad += image * grad_image + group * filters * grad_channel
    x += image * x_image + group * channels * x_channel
    total = tl.zeros([FILTERS, CHANNELS], tl.float32)
    for start in range(0, out_height * out_width, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        row = position // out_width
        col = position % out_width
        seen_row = row * STRIDE_ROWS - padding_rows + tap_row * DILATION_ROWS
        seen_col = col * STRIDE_COLS - padding_cols + tap_col * DILATION_COLS
        is_inside = position < out_height * out_width
        is_seen = is_inside & (seen_row >= 0) & (seen_row < in_height) & (seen_col >= 0) & (seen_col < in_width)
        left = tl.load(grad + (row * grad_row + col * grad_col)[None, :] + (filter * grad_channel)[:, None],
                       mask=is_inside[None, :] & (filter < filters)[:, None], other=0.0)  # fmt: skip
        right = tl.load(x + (seen_row * x_row + seen_col * x_col)[:, None] + (channel * x_channel)[None, :],
                        mask=is_seen[:, None] & (channel < channels)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(left.to(DTYPE), right.to(DTYPE), total, input_precision=PRECISION)
    out += image * out_image + group * filters * out_filter + tap_row * out_tap_row + tap_col * out_tap_col
    pointers = out + (filter * out_filter)[:, None] + (channel * out_channel)[None, :]
    mask = (filter < filters)[:, None] & (channel < channels)[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)
