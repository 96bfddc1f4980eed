"""The Triton kernels of :mod:`fdconv_zoo.ops.bands_triton`.

Maps x are (B, C, H, W) with any strides; M bands have weights A (B, M, H, W). The coefficients of the columns' Q
sinusoids, (B, H, Q, C), have the channels innermost, so that those that pass a lower edge are a prefix. ``passing``
holds the number of sinusoids of the columns that pass each edge, Q first; ``row_passing`` that of the rows.

With b_m, the part of x between edge m and the next lower one, and A_{M+1} = 1, the weighted sum of the bands is
``A_1 * x + sum_m (A_{m+1} - A_1) * b_m``. Each part is rounded by itself: differences of low-passes would lose digits.
"""

import triton
import triton.language as tl

_PI = tl.constexpr(3.141592653589793)
_SQRT_2 = tl.constexpr(1.4142135623730951)


@triton.jit(do_not_specialize=["height", "width", "num_waves", "padded_height", "padded_width", "padded_waves"])
def make_bases(basis, projectors, height, width, num_waves, padded_height, padded_width, padded_waves, row_passing,
               BANDS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Compute the sinusoids of the columns (W, Q), of norm sqrt(W), and the low-passes of the rows (M, H, H).

    See ``low_pass_basis``; the constant is 1, which is exact in all dtypes. Both are padded with zeros to multiples of
    the block sizes, so that loads are aligned and need no masks. Phases are reduced as integers, which is exact.
    Grid: blocks of the basis, then of one projector.
    """
    basis_blocks = tl.cdiv(padded_width * padded_waves, BLOCK)
    block = tl.program_id(0)
    if block < basis_blocks:
        element = block * BLOCK + tl.arange(0, BLOCK)
        time = element // padded_waves
        wave = element % padded_waves
        cycles = time * ((wave + 1) // 2) % width
        angle = cycles.to(tl.float32) * (2 * _PI / width)
        value = tl.where(wave % 2 == 1, tl.cos(angle), tl.sin(angle)) * _SQRT_2
        value = tl.where(wave == 0, 1.0, value)
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
    """Image, row, and first position and channel of the block of the program on axis 0 of the grid."""
    channel_blocks = tl.cdiv(channels, CHANNELS)
    blocks = tl.cdiv(length, LENGTH) * channel_blocks
    line = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first = block // channel_blocks * LENGTH
    return (line // height).to(tl.int64), line % height, first, block % channel_blocks * CHANNELS


@triton.jit
def _load_next(attention, band, plane, mask, BANDS: tl.constexpr):
    """Load A_{m+1}, with A_{M+1} = 1, at the positions that ``attention`` points to in band 0."""
    return tl.load(attention + (band + 1) * plane, mask=mask & (band + 1 < BANDS), other=1.0)


@triton.jit
def _analyze(x, x_col, attention, band, plane, basis, wave, channel_mask, width, padded_waves,
             IS_WEIGHED: tl.constexpr, BANDS: tl.constexpr, WAVES: tl.constexpr, CHANNELS: tl.constexpr,
             COLS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute the coefficients of one row of a map, or of ``(A_{m+1} - A_m)`` times it."""
    total = tl.zeros([WAVES, CHANNELS], tl.float32)
    for first in range(0, width, COLS):
        col = first + tl.arange(0, COLS)
        col_mask = col < width
        left = tl.load(basis + col[None, :] * padded_waves + wave[:, None])
        right = tl.load(x[None, :] + col[:, None] * x_col, mask=col_mask[:, None] & channel_mask[None, :], other=0.0)
        if IS_WEIGHED:
            weight = _load_next(attention + col, band, plane, col_mask, BANDS)
            weight -= tl.load(attention + band * plane + col, mask=col_mask, other=0.0)
            right = right.to(tl.float32) * weight[:, None]
        total = tl.dot(left.to(DTYPE), right.to(DTYPE), total, input_precision=PRECISION)
    return total / width


@triton.jit(do_not_specialize=["height", "width", "num_waves"])
def analyze(x, grad, attention, basis, out, channels, height, width, num_waves, padded_waves, passing,
            x_image, x_channel, x_row, x_col, grad_image, grad_channel, grad_row, grad_col, out_source,
            BANDS: tl.constexpr, WAVES: tl.constexpr, CHANNELS: tl.constexpr, COLS: tl.constexpr,
            DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute the coefficients of x (source 0) and ``(A_{m+1} - A_m) * grad`` (source m), (sources, B, H, Q, C).

    Grid: blocks of waves and channels of each image's rows, sources.
    """
    image, row, first_wave, first_channel = _locate(height, num_waves, channels, WAVES, CHANNELS)
    wave = first_wave + tl.arange(0, WAVES)
    channel = first_channel + tl.arange(0, CHANNELS)
    channel_mask = channel < channels
    source = tl.program_id(1)
    wave_count = num_waves
    for band in tl.static_range(1, BANDS):
        wave_count = tl.where(source == band + 1, passing[band], wave_count)
    attention += (image * BANDS * height + row) * width
    if first_wave < wave_count:
        if source == 0:
            total = _analyze(x + image * x_image + row * x_row + channel * x_channel, x_col,
                             attention, 0, height * width, basis, wave, channel_mask, width, padded_waves,
                             False, BANDS, WAVES, CHANNELS, COLS, DTYPE, PRECISION)  # fmt: skip
        else:
            total = _analyze(grad + image * grad_image + row * grad_row + channel * grad_channel, grad_col,
                             attention, source - 1, height * width, basis, wave, channel_mask, width, padded_waves,
                             True, BANDS, WAVES, CHANNELS, COLS, DTYPE, PRECISION)  # fmt: skip
        out += source.to(tl.int64) * out_source + (image * height + row) * num_waves * channels
        pointers = out + (wave[:, None] * channels + channel[None, :])
        tl.store(pointers, total.to(out.dtype.element_ty), mask=(wave < wave_count)[:, None] & channel_mask[None, :])


@triton.jit(do_not_specialize=["height", "num_waves"])
def project(coefficients, projectors, out, channels, height, padded_height, num_waves, passing, source_size,
            BANDS: tl.constexpr, ROWS: tl.constexpr, COEFFICIENTS: tl.constexpr, INNER: tl.constexpr,
            DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Apply the low-passes along the rows, (M + 1, B, H, Q, C): x's parts between the edges, and the gradients' sum.

    Grid: blocks of rows and of an image's coefficients, images, and 1 in forward, 2 in backward.
    """
    size = num_waves * channels  # of one row
    blocks = tl.cdiv(size, COEFFICIENTS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % blocks * COEFFICIENTS
    column = first + tl.arange(0, COEFFICIENTS)
    image = tl.program_id(1).to(tl.int64)
    is_sum = tl.program_id(2) == 1
    coefficients += image * height * size
    out += image * height * size
    offsets = row[:, None] * size + column[None, :]
    mask = (row < height)[:, None] & (column < size)[None, :]
    total = tl.zeros([ROWS, COEFFICIENTS], tl.float32)  # the sum over lower edges, or x's low-pass at the next
    for band in tl.static_range(BANDS - 1, -1, -1):
        if first < passing[band] * channels:
            low_pass = tl.where(is_sum, total, 0.0)
            start = coefficients + tl.where(is_sum, band + 1, 0).to(tl.int64) * source_size
            column_mask = column < passing[band] * channels
            for begin in range(0, height, INNER):
                inner = begin + tl.arange(0, INNER)
                left = tl.load(projectors + (band * padded_height + row[:, None]) * padded_height + inner[None, :])
                right = tl.load(start + (inner[:, None] * size + column[None, :]),
                                mask=(inner < height)[:, None] & column_mask[None, :], other=0.0)  # fmt: skip
                low_pass = tl.dot(left.to(DTYPE), right.to(DTYPE), low_pass, input_precision=PRECISION)
            if not is_sum:
                part = (low_pass - total).to(out.dtype.element_ty)
                tl.store(out + band * source_size + offsets, part, mask=mask & column_mask[None, :])
            total = low_pass
    if is_sum:
        tl.store(out + BANDS * source_size + offsets, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _synthesize(coefficients, basis, wave_count, padded_waves, col, channel, channel_mask, channels,
                COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr,
                DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute one row of a map, (COLS, CHANNELS), from its first ``wave_count`` coefficients."""
    total = tl.zeros([COLS, CHANNELS], tl.float32)
    for first in range(0, wave_count, WAVES):
        wave = first + tl.arange(0, WAVES)
        left = tl.load(basis + col[:, None] * padded_waves + wave[None, :])
        right = tl.load(coefficients + (wave[:, None] * channels + channel[None, :]),
                        mask=(wave < wave_count)[:, None] & channel_mask[None, :], other=0.0)  # fmt: skip
        total = tl.dot(left.to(DTYPE), right.to(DTYPE), total, input_precision=PRECISION)
    return total


@triton.jit
def _locate_columns(height, width, channels, COLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, row, columns, channels, and the mask of columns and channels, of the block of the program on axis 0."""
    image, row, first_col, first_channel = _locate(height, width, channels, COLS, CHANNELS)
    col = first_col + tl.arange(0, COLS)
    channel = first_channel + tl.arange(0, CHANNELS)
    return image, row, col, channel, (col < width)[:, None] & (channel < channels)[None, :]


@triton.jit
def _point(x, image, row, col, channel, x_image, x_channel, x_row, x_col):
    """Pointers to one row of a map, (columns, channels)."""
    return x + image * x_image + row * x_row + (col[:, None] * x_col + channel[None, :] * x_channel)


@triton.jit(do_not_specialize=["height", "width", "num_waves"])
def synthesize(x, attention, coefficients, basis, out, channels, height, width, num_waves, padded_waves, passing,
               x_image, x_channel, x_row, x_col, source_size,
               BANDS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr,
               DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute the weighted sum of the bands of x, with x's strides, from the coefficients (M, B, H, Q, C) of its parts.

    Grid: blocks of columns and channels of each image's rows.
    """
    image, row, col, channel, mask = _locate_columns(height, width, channels, COLS, CHANNELS)
    attention += (image * BANDS * height + row) * width + col
    coefficients += (image * height + row) * num_waves * channels
    first_weight = tl.load(attention, mask=col < width, other=0.0)
    total = tl.load(_point(x, image, row, col, channel, x_image, x_channel, x_row, x_col), mask=mask, other=0.0)
    total = total.to(tl.float32) * first_weight[:, None]
    for band in tl.static_range(BANDS):
        part = _synthesize(coefficients + band * source_size, basis, passing[band], padded_waves, col, channel,
                           channel < channels, channels, COLS, CHANNELS, WAVES, DTYPE, PRECISION)  # fmt: skip
        weight = _load_next(attention, band, height * width, col < width, BANDS) - first_weight
        total += weight[:, None] * part
    pointers = _point(out, image, row, col, channel, x_image, x_channel, x_row, x_col)
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "num_waves"])
def synthesize_backward(grad, x, attention, coefficients, basis, grad_x, sums,
                        channels, height, width, num_waves, padded_waves, passing,
                        x_image, x_channel, x_row, x_col, grad_image, grad_channel, grad_row, grad_col,
                        source_size, sums_size,
                        BANDS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr, WAVES: tl.constexpr,
                        DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute the gradient of x, with x's strides, and shares of A's gradient, (channel blocks, B, M, H, W).

    The grid is that of :func:`synthesize`.
    """
    image, row, col, channel, mask = _locate_columns(height, width, channels, COLS, CHANNELS)
    attention += (image * BANDS * height + row) * width + col
    coefficients += (image * height + row) * num_waves * channels
    sums += (tl.min(channel, 0) // CHANNELS).to(tl.int64) * sums_size + (image * BANDS * height + row) * width + col
    high = tl.load(_point(x, image, row, col, channel, x_image, x_channel, x_row, x_col), mask=mask, other=0.0)
    high = high.to(tl.float32)
    pointers = _point(grad, image, row, col, channel, grad_image, grad_channel, grad_row, grad_col)
    grads = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    for band in tl.static_range(BANDS):
        part = _synthesize(coefficients + band * source_size, basis, passing[band], padded_waves, col, channel,
                           channel < channels, channels, COLS, CHANNELS, WAVES, DTYPE, PRECISION)  # fmt: skip
        high -= part
        if band + 1 < BANDS:
            tl.store(sums + (band + 1) * height * width, tl.sum(grads * part, 1), mask=col < width)
    tl.store(sums, tl.sum(grads * high, 1), mask=col < width)
    total = _synthesize(coefficients + BANDS * source_size, basis, passing[0], padded_waves, col, channel,
                        channel < channels, channels, COLS, CHANNELS, WAVES, DTYPE, PRECISION)  # fmt: skip
    total += grads * tl.load(attention, mask=col < width, other=0.0)[:, None]
    pointers = _point(grad_x, image, row, col, channel, x_image, x_channel, x_row, x_col)
    tl.store(pointers, total.to(grad_x.dtype.element_ty), mask=mask)
