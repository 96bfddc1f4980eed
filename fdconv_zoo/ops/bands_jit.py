"""The Triton kernels of :mod:`fdconv_zoo.ops.bands_triton`.

Maps x are (B, C, H, W) with any strides; M bands with their weights A, (B, M, H, W). Coefficients of the Q sinusoids of
the columns lie with the channels innermost, (B, H, Q, C), so that those a lower edge passes are a prefix.
``passing`` has the number of sinusoids of the columns that pass each edge, Q first; ``row_passing`` that of the rows.
"""

import triton
import triton.language as tl

_PI = tl.constexpr(3.141592653589793)


@triton.jit(do_not_specialize=["height", "width", "num_waves", "padded_height", "padded_width", "padded_waves"])
def make_bases(basis, projectors, height, width, num_waves, padded_height, padded_width, padded_waves, row_passing,
               BANDS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The sinusoids of the columns (W, Q), see ``low_pass_basis``, and the low-passes of the rows (M, H, H).

    Both end in zeros up to sizes that blocks divide: they are loaded without masks, aligned. Phases are reduced in
    integers, where that is exact. Grid: blocks of the basis, then of one projector.
    """
    basis_blocks = tl.cdiv(padded_width * padded_waves, BLOCK)
    block = tl.program_id(0)
    if block < basis_blocks:
        element = block * BLOCK + tl.arange(0, BLOCK)
        time = element // padded_waves
        wave = element % padded_waves
        cycles = time * ((wave + 1) // 2) % width
        angle = cycles.to(tl.float32) * (2 * _PI / width)
        value = tl.where(wave % 2 == 1, tl.cos(angle), tl.sin(angle)) * tl.sqrt(2.0 / width)
        value = tl.where(wave == 0, tl.sqrt(1.0 / width), value)
        value = tl.where((time < width) & (wave < num_waves), value, 0.0)
        tl.store(basis + element, value, mask=element < padded_width * padded_waves)
    else:
        entry = (block - basis_blocks) * BLOCK + tl.arange(0, BLOCK)
        row = entry // padded_height
        col = entry % padded_height
        is_inside = (row < height) & (col < height)
        delay = tl.abs(row - col) % height
        divisor = height * tl.sin(delay.to(tl.float32) * (_PI / height))
        for band in tl.static_range(BANDS):
            half_cycles = row_passing[band] * delay % (2 * height)
            response = tl.sin(half_cycles.to(tl.float32) * (_PI / height)) / tl.where(delay == 0, 1.0, divisor)
            response = tl.where(delay == 0, row_passing[band] / height, response)
            pointers = projectors + band * padded_height * padded_height + entry
            tl.store(pointers, tl.where(is_inside, response, 0.0), mask=entry < padded_height * padded_height)


@triton.jit
def _locate(height, length, channels, LENGTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, row, and first position and channel of program 0's block."""
    channel_blocks = tl.cdiv(channels, CHANNELS)
    blocks = tl.cdiv(length, LENGTH) * channel_blocks
    line = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first = block // channel_blocks * LENGTH
    return (line // height).to(tl.int64), line % height, first, block % channel_blocks * CHANNELS


@triton.jit
def _load_difference(attention, band: tl.constexpr, plane, mask, BANDS: tl.constexpr):
    """D_m = A_{m+1} - A_m, where A_{M+1} = 1, at some positions of band 0."""
    weight = tl.load(attention + band * plane, mask=mask, other=0.0)
    if band + 1 < BANDS:
        return tl.load(attention + (band + 1) * plane, mask=mask, other=0.0) - weight
    else:
        return 1.0 - weight


@triton.jit
def analyze(x, grad, attention, basis, out, channels, height, width, num_waves, padded_waves, passing,
            x_image, x_channel, x_row, x_col, grad_image, grad_channel, grad_row, grad_col, out_source,
            BANDS: tl.constexpr, WAVES: tl.constexpr, CHANNELS: tl.constexpr, COLS: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """The coefficients of x (source 0) and of ``D_m * grad`` (source m), (sources, B, H, Q, C).

    Grid: blocks of waves and channels of each image's rows, sources.
    """
    image, row, first_wave, first_channel = _locate(height, num_waves, channels, WAVES, CHANNELS)
    wave = first_wave + tl.arange(0, WAVES)
    channel = first_channel + tl.arange(0, CHANNELS)
    source = tl.program_id(1)
    attention += (image * BANDS * height + row) * width
    channel_mask = channel < channels
    if source == 0:
        start = x + image * x_image + row * x_row + channel * x_channel
        total = tl.zeros([WAVES, CHANNELS], tl.float32)
        for first in range(0, width, COLS):
            col = first + tl.arange(0, COLS)
            col_mask = col < width
            left = tl.load(basis + col[None, :] * padded_waves + wave[:, None])
            right = tl.load(start[None, :] + col[:, None] * x_col, mask=col_mask[:, None] & channel_mask[None, :],
                            other=0.0).to(tl.float32)  # fmt: skip
            total = tl.dot(left, right, total, input_precision=PRECISION)
        pointers = out + ((image * height + row) * num_waves + wave[:, None]) * channels + channel[None, :]
        tl.store(pointers, total, mask=(wave < num_waves)[:, None] & channel_mask[None, :])
    for band in tl.static_range(BANDS):
        if source == band + 1 and first_wave < passing[band]:
            start_grad = grad + image * grad_image + row * grad_row + channel * grad_channel
            total_grad = tl.zeros([WAVES, CHANNELS], tl.float32)
            for first in range(0, width, COLS):
                col_grad = first + tl.arange(0, COLS)
                mask_grad = col_grad < width
                left_grad = tl.load(basis + col_grad[None, :] * padded_waves + wave[:, None])
                right_grad = tl.load(start_grad[None, :] + col_grad[:, None] * grad_col,
                                     mask=mask_grad[:, None] & channel_mask[None, :], other=0.0)  # fmt: skip
                difference = _load_difference(attention + col_grad, band, height * width, mask_grad, BANDS)
                right_grad = right_grad.to(tl.float32) * difference[:, None]
                total_grad = tl.dot(left_grad, right_grad, total_grad, input_precision=PRECISION)
            out_grad = out + source.to(tl.int64) * out_source
            out_grad += ((image * height + row) * num_waves + wave[:, None]) * channels + channel[None, :]
            tl.store(out_grad, total_grad, mask=(wave < num_waves)[:, None] & channel_mask[None, :])


@triton.jit
def project(coefficients, projectors, out, channels, height, padded_height, num_waves, passing, source_size,
            BANDS: tl.constexpr, ROWS: tl.constexpr, COEFFICIENTS: tl.constexpr, INNER: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Low-passes along the rows, (M + 1, B, H, Q, C): of x's coefficients at each edge; of the gradients', their sum.

    Grid: blocks of rows and of an image's coefficients, images, results: the M of x, and one more in backward.
    """
    size = num_waves * channels  # of one row
    blocks = tl.cdiv(size, COEFFICIENTS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % blocks * COEFFICIENTS
    column = first + tl.arange(0, COEFFICIENTS)
    image = tl.program_id(1).to(tl.int64)
    result = tl.program_id(2)
    total = tl.zeros([ROWS, COEFFICIENTS], tl.float32)
    for band in tl.static_range(BANDS):
        if (result == band or result == BANDS) and first < passing[band] * channels:
            source = tl.where(result == BANDS, band + 1, 0).to(tl.int64)
            start = coefficients + source * source_size + image * height * size + column
            column_mask = column < passing[band] * channels
            for begin in range(0, height, INNER):
                inner = begin + tl.arange(0, INNER)
                inner_mask = inner < height
                left = tl.load(projectors + (band * padded_height + row[:, None]) * padded_height + inner[None, :])
                right = tl.load(start[None, :] + inner[:, None] * size,
                                mask=inner_mask[:, None] & column_mask[None, :], other=0.0)  # fmt: skip
                total = tl.dot(left, right, total, input_precision=PRECISION)
    pointers = out + result.to(tl.int64) * source_size + (image * height + row[:, None]) * size + column[None, :]
    tl.store(pointers, total, mask=(row < height)[:, None] & (column < size)[None, :])


@triton.jit
def _synthesize(coefficients, basis, wave_count, padded_waves, col, channel, channel_mask, channels,
                COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One row of a map, (COLS, CHANNELS), from its first ``wave_count`` coefficients."""
    total = tl.zeros([COLS, CHANNELS], tl.float32)
    for first in range(0, wave_count, WAVES):
        wave = first + tl.arange(0, WAVES)
        wave_mask = wave < wave_count
        left = tl.load(basis + col[:, None] * padded_waves + wave[None, :])
        right = tl.load(coefficients + wave[:, None] * channels + channel[None, :],
                        mask=wave_mask[:, None] & channel_mask[None, :], other=0.0)  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def synthesize(x, attention, coefficients, basis, out, channels, height, width, num_waves, padded_waves, passing,
               x_image, x_channel, x_row, x_col, source_size,
               BANDS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """``A_1 * x + sum_m D_m * L_m(x)`` from the coefficients (M, B, H, Q, C) of the low-passes; strides as x's.

    Grid: blocks of columns and channels of each image's rows.
    """
    image, row, first_col, first_channel = _locate(height, width, channels, COLS, CHANNELS)
    col = first_col + tl.arange(0, COLS)
    channel = first_channel + tl.arange(0, CHANNELS)
    col_mask = col < width
    channel_mask = channel < channels
    mask = col_mask[:, None] & channel_mask[None, :]
    offset = image * x_image + row * x_row
    offsets = col[:, None] * x_col + channel[None, :] * x_channel
    attention += (image * BANDS * height + row) * width + col
    total = tl.load(x + offset + offsets, mask=mask, other=0.0).to(tl.float32)
    total *= tl.load(attention, mask=col_mask, other=0.0)[:, None]
    coefficients += (image * height + row) * num_waves * channels
    for band in tl.static_range(BANDS):
        low_pass = _synthesize(coefficients + band * source_size, basis, passing[band], padded_waves, col,
                               channel, channel_mask, channels, COLS, CHANNELS, WAVES, PRECISION)  # fmt: skip
        total += _load_difference(attention, band, height * width, col_mask, BANDS)[:, None] * low_pass
    tl.store(out + offset + offsets, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def synthesize_backward(grad, x, attention, coefficients, basis, grad_x, sums,
                        channels, height, width, num_waves, padded_waves, passing,
                        x_image, x_channel, x_row, x_col, grad_image, grad_channel, grad_row, grad_col,
                        source_size, sums_size,
                        BANDS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr,
                        PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of x, with x's strides, and each block of channels' share of the sums of ``grad * L_m(x)``.

    ``sums`` (channel blocks, B, M + 1, H, W) begins with that of ``grad * x``. Grid: as of :func:`synthesize`.
    """
    image, row, first_col, first_channel = _locate(height, width, channels, COLS, CHANNELS)
    col = first_col + tl.arange(0, COLS)
    channel = first_channel + tl.arange(0, CHANNELS)
    col_mask = col < width
    channel_mask = channel < channels
    mask = col_mask[:, None] & channel_mask[None, :]
    offset = image * x_image + row * x_row
    offsets = col[:, None] * x_col + channel[None, :] * x_channel
    grad_offsets = image * grad_image + row * grad_row + col[:, None] * grad_col + channel[None, :] * grad_channel
    attention += (image * BANDS * height + row) * width + col
    sums += (first_channel // CHANNELS).to(tl.int64) * sums_size + (image * (BANDS + 1) * height + row) * width + col
    values = tl.load(x + offset + offsets, mask=mask, other=0.0).to(tl.float32)
    grads = tl.load(grad + grad_offsets, mask=mask, other=0.0).to(tl.float32)
    coefficients += (image * height + row) * num_waves * channels
    tl.store(sums, tl.sum(grads * values, 1), mask=col_mask)
    for band in tl.static_range(BANDS):
        low_pass = _synthesize(coefficients + band * source_size, basis, passing[band], padded_waves, col,
                               channel, channel_mask, channels, COLS, CHANNELS, WAVES, PRECISION)  # fmt: skip
        tl.store(sums + (band + 1) * height * width, tl.sum(grads * low_pass, 1), mask=col_mask)
    total = _synthesize(coefficients + BANDS * source_size, basis, passing[0], padded_waves, col,
                        channel, channel_mask, channels, COLS, CHANNELS, WAVES, PRECISION)  # fmt: skip
    total += grads * tl.load(attention, mask=col_mask, other=0.0)[:, None]
    tl.store(grad_x + offset + offsets, total.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size", "plane", "shares", "sums_size"])
def finish(sums, grad_attention, size, plane, shares, sums_size, BANDS: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of A (B, M, H, W): differences of neighbours among the sums, added up over blocks of channels."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    # One image has M results and M + 1 sums.
    sums += element + element // (BANDS * plane) * plane
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(shares):
        total += tl.load(sums, mask=mask, other=0.0) - tl.load(sums + plane, mask=mask, other=0.0)
        sums += sums_size
    tl.store(grad_attention + element, total, mask=mask)
