"""The Triton kernels of :mod:`fdconv_zoo.ops.kernels_triton`, in its notation.

A program works on a block of a plane, on one image or on all of a chunk. Nothing is summed with atomics, so results do
not depend on the order in which programs run. Counts that change with the batch are no reason to compile again.
"""

import triton
import triton.language as tl


@triton.jit
def _load_complex(pointer, offsets, mask):
    """Real and imaginary parts of interleaved complex numbers."""
    parts = tl.arange(0, 2)
    pairs = tl.load(pointer + 2 * offsets[:, None] + parts[None, :], mask=mask[:, None], other=0.0)
    return tl.split(pairs)


@triton.jit(do_not_specialize=["images"])
def weigh(spectrum, group_index, attention, out, rows, half, num_groups, images, scale, IMAGES: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """Coefficients of planes whose even and odd columns are the real and imaginary parts of R x C/2 complex numbers.

    With X the half spectrum ``D * attention[group]``, (R, half + 1), half = C/2, and E, O the spectra of the even and
    odd columns, ``X[u, k] = E[u, k] + t O[u, k]`` and ``conj(X[-u, half - k]) = E[u, k] - t O[u, k]``, with
    t = exp(-2 pi i k / C). Here those are solved for E + i O. The columns k = 0 and k = half are first made Hermitian:
    a real plane has no other part of them.

    Grid: blocks of the R * half results, blocks of images.
    """
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < rows * half
    u = element // half
    k = element % half
    is_first = mask & (k == 0)
    opposite = tl.where(u == 0, 0, rows - u)
    here = u * (half + 1) + k
    there = opposite * (half + 1) + half - k
    here_last = u * (half + 1) + half
    there_first = opposite * (half + 1)

    here_re, here_im = _load_complex(spectrum, here, mask)
    there_re, there_im = _load_complex(spectrum, there, mask)
    last_re, last_im = _load_complex(spectrum, here_last, is_first)
    first_re, first_im = _load_complex(spectrum, there_first, is_first)
    here_group = tl.load(group_index + here, mask=mask, other=0).to(tl.int32)
    there_group = tl.load(group_index + there, mask=mask, other=0).to(tl.int32)
    last_group = tl.load(group_index + here_last, mask=is_first, other=0).to(tl.int32)
    first_group = tl.load(group_index + there_first, mask=is_first, other=0).to(tl.int32)

    angle = k.to(tl.float32) * (3.141592653589793 / half)
    cos = tl.cos(angle)
    sin = tl.sin(angle)
    share = tl.where(k == 0, 0.5 * scale, scale)
    start = tl.program_id(1) * IMAGES
    for image in range(start, tl.minimum(start + IMAGES, images)):
        weights = attention + image * num_groups
        here_weight = tl.load(weights + here_group) * share
        there_weight = tl.load(weights + there_group) * share
        last_weight = tl.load(weights + last_group, mask=is_first, other=0.0) * share
        first_weight = tl.load(weights + first_group, mask=is_first, other=0.0) * share
        a_re = here_weight * here_re + first_weight * first_re
        a_im = here_weight * here_im - first_weight * first_im
        b_re = there_weight * there_re + last_weight * last_re
        b_im = last_weight * last_im - there_weight * there_im
        odd_re = a_re - b_re
        odd_im = a_im - b_im
        out_re = a_re + b_re - (cos * odd_im + sin * odd_re)
        out_im = a_im + b_im + (cos * odd_re - sin * odd_im)
        pairs = tl.join(out_re, out_im)
        pointers = out + image * (2 * rows * half) + 2 * element[:, None] + tl.arange(0, 2)[None, :]
        tl.store(pointers, pairs, mask=mask[:, None])


@triton.jit
def _block(group, rows_of_group, in_channels, col_blocks, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The block of program 0: its rows, counted from the group's first, and its input channels."""
    block = tl.program_id(0) % (tl.cdiv(rows_of_group, ROWS) * col_blocks)
    row = (block // col_blocks) * ROWS + tl.arange(0, ROWS)
    channel = (block % col_blocks) * COLS + tl.arange(0, COLS)
    return row, channel


@triton.jit
def _logits(taps, windows, tap_row, tap_mask, window, window_mask, tap_stride, TAPS: tl.constexpr, ROWS: tl.constexpr,
            COLS: tl.constexpr):  # fmt: skip
    """The local branch's, (ROWS, COLS)."""
    logits = tl.zeros([ROWS, COLS], tl.float32)
    for tap in tl.static_range(TAPS):
        left = tl.load(taps + tap_row * TAPS + tap, mask=tap_mask, other=0.0)
        right = tl.load(windows + window + tap * tap_stride, mask=window_mask, other=0.0)
        logits += left[:, None] * right[None, :]
    return logits


@triton.jit(do_not_specialize=["col_blocks"])
def modulate(plane, taps, windows, channel_factors, filter_factors, spatial_factors, out,
             groups, rows_of_group, in_channels, col_blocks, plane_stride,
             window_image, window_group, window_channel, window_tap,
             out_image, out_filter, out_channel, out_row, out_col,
             HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
             FILTER: tl.constexpr, SPATIAL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Planes times all modulators, as kernels of any strides and dtype.

    Grid: blocks of each group's rows and input channels, images.
    """
    image = tl.program_id(1)
    group = tl.program_id(0) // (tl.cdiv(rows_of_group, ROWS) * col_blocks)
    row, channel = _block(group, rows_of_group, in_channels, col_blocks, ROWS, COLS)
    row_mask = row < rows_of_group
    channel_mask = channel < in_channels
    mask = row_mask[:, None] & channel_mask[None, :]
    row += group * rows_of_group
    plane += image.to(tl.int64) * plane_stride
    out += image.to(tl.int64) * out_image
    window = image * window_image + group * window_group + channel * window_channel
    left = tl.full([ROWS], 1.0, tl.float32)
    right = tl.full([COLS], 1.0, tl.float32)
    if FILTER:
        left *= tl.load(filter_factors + image * (groups * rows_of_group // HEIGHT) + row // HEIGHT, mask=row_mask)
    if CHANNEL:
        right *= tl.load(channel_factors + (image * groups + group) * in_channels + channel, mask=channel_mask)
    for col in range(WIDTH):
        values = tl.load(plane + row[:, None] * (in_channels * WIDTH) + (channel * WIDTH + col)[None, :], mask=mask)
        if TAPS:
            logits = _logits(taps, windows, row * WIDTH + col, row_mask, window, channel_mask, window_tap,
                             TAPS, ROWS, COLS)  # fmt: skip
            values *= 2 * tl.sigmoid(logits)
        factors = left
        if SPATIAL:
            factors *= tl.load(spatial_factors + (image * HEIGHT + row % HEIGHT) * WIDTH + col)
        values *= factors[:, None] * right[None, :]
        row_offset = (row // HEIGHT) * out_filter + (row % HEIGHT) * out_row + col * out_col
        pointers = out + row_offset[:, None] + (channel * out_channel)[None, :]
        tl.store(pointers, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["col_blocks"])
def modulate_backward(plane, grad, taps, windows, channel_factors, filter_factors, spatial_factors,
                      grad_plane, row_sums, col_sums,
                      groups, rows_of_group, in_channels, col_blocks, plane_stride,
                      window_image, window_group, window_channel, window_tap,
                      grad_image, grad_filter, grad_channel, grad_row, grad_col,
                      HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
                      FILTER: tl.constexpr, SPATIAL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                      TERMS: tl.constexpr):  # fmt: skip
    """The gradient of the planes, and each block's share of what :func:`finish` sums up.

    With P = K * dL/dK: ``row_sums`` (B, col_blocks, T + 1, R*b) is of dL/dlogit times each tap's window, and of P;
    ``col_sums`` (B, G, row_blocks * b, T + 1, I) is of dL/dlogit times each tap, and of P. The last of T + 1 is there
    where a factor needs it. ``grad_plane`` may be the plane itself. The sums for all taps are two products, with the
    taps and windows filled up to TERMS; float32 factors are split into two of tf32 each, which has float32's accuracy.

    Grid: as of :func:`modulate`.
    """
    image = tl.program_id(1)
    row_blocks = tl.cdiv(rows_of_group, ROWS)
    group = tl.program_id(0) // (row_blocks * col_blocks)
    row, channel = _block(group, rows_of_group, in_channels, col_blocks, ROWS, COLS)
    row_mask = row < rows_of_group
    channel_mask = channel < in_channels
    mask = row_mask[:, None] & channel_mask[None, :]
    row += group * rows_of_group
    rows = groups * rows_of_group
    plane += image.to(tl.int64) * plane_stride
    grad += image.to(tl.int64) * grad_image
    grad_plane += image.to(tl.int64) * (rows * in_channels * WIDTH)
    window = image * window_image + group * window_group + channel * window_channel
    row_block = (tl.program_id(0) // col_blocks) % row_blocks
    col_block = tl.program_id(0) % col_blocks
    num_row_sums = TAPS + (1 if FILTER or SPATIAL else 0)
    num_col_sums = TAPS + CHANNEL
    row_sums += (image * col_blocks + col_block) * (num_row_sums * rows * WIDTH)
    col_sums += ((image * groups + group) * row_blocks + row_block) * (WIDTH * num_col_sums * in_channels)
    left = tl.full([ROWS], 1.0, tl.float32)
    right = tl.full([COLS], 1.0, tl.float32)
    if FILTER:
        left *= tl.load(filter_factors + image * (rows // HEIGHT) + row // HEIGHT, mask=row_mask, other=0.0)
    if CHANNEL:
        right *= tl.load(
            channel_factors + (image * groups + group) * in_channels + channel, mask=channel_mask, other=0.0
        )
    tap = tl.arange(0, TERMS)
    tap_mask = (tap < TAPS)[None, :]
    if TAPS:
        window_values = tl.load(windows + window[:, None] + tap[None, :] * window_tap,
                                mask=channel_mask[:, None] & tap_mask, other=0.0)  # fmt: skip
    for col in range(WIDTH):
        offsets = row[:, None] * (in_channels * WIDTH) + (channel * WIDTH + col)[None, :]
        values = tl.load(plane + offsets, mask=mask, other=0.0)
        row_offset = (row // HEIGHT) * grad_filter + (row % HEIGHT) * grad_row + col * grad_col
        grad_pointers = grad + row_offset[:, None] + (channel * grad_channel)[None, :]
        grads = tl.load(grad_pointers, mask=mask, other=0.0).to(tl.float32)
        factors = left
        if SPATIAL:
            factors *= tl.load(spatial_factors + (image * HEIGHT + row % HEIGHT) * WIDTH + col)
        grads *= factors[:, None] * right[None, :]
        tap_row = row * WIDTH + col
        if TAPS:
            tap_values = tl.load(taps + tap_row[:, None] * TAPS + tap[None, :],
                                 mask=row_mask[:, None] & tap_mask, other=0.0)  # fmt: skip
            gate = tl.sigmoid(tl.dot(tap_values, tl.trans(window_values), input_precision="tf32x3"))
            grads *= 2 * gate
            product = values * grads
            grad_logits = product * (1 - gate)
            sums = tl.dot(grad_logits, window_values, input_precision="tf32x3")
            pointers = row_sums + tap[None, :] * (rows * WIDTH) + tap_row[:, None]
            tl.store(pointers, sums, mask=row_mask[:, None] & tap_mask)
            sums_of_rows = tl.dot(tl.trans(grad_logits), tap_values, input_precision="tf32x3")
            pointers_of_rows = col_sums + (col * num_col_sums + tap[None, :]) * in_channels + channel[:, None]
            tl.store(pointers_of_rows, sums_of_rows, mask=channel_mask[:, None] & tap_mask)
        else:
            product = values * grads
        tl.store(grad_plane + offsets, grads, mask=mask)
        if FILTER or SPATIAL:
            tl.store(row_sums + TAPS * (rows * WIDTH) + tap_row, tl.sum(product, 1), mask=row_mask)
        if CHANNEL:
            products = col_sums + (col * num_col_sums + TAPS) * in_channels + channel
            tl.store(products, tl.sum(product, 0), mask=channel_mask)


@triton.jit
def _sum_terms(pointer, offsets, mask, count, inner, outer_stride, inner_stride, TERMS: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """For each offset, the sum of ``count`` terms: ``inner`` at a stride, those again and again at another."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, TERMS):
        term = start + tl.arange(0, TERMS)
        pointers = pointer + (term // inner * outer_stride + term % inner * inner_stride)[:, None] + offsets[None, :]
        total += tl.sum(tl.load(pointers, mask=(term < count)[:, None] & mask[None, :], other=0.0), 0)
    return total


@triton.jit
def _divide(sums, factors):
    """sums / factors, and 0 where a factor has underflowed to 0 (there its own derivative is 0 as well)."""
    return tl.where(factors == 0, 0.0, sums / tl.where(factors == 0, 1.0, factors))


@triton.jit
def _finish_cols(block, col_sums, channel_factors, grad_windows, grad_channel, in_channels, count,
                 TAPS: tl.constexpr, CHANNEL: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    size = (TAPS + CHANNEL) * in_channels  # of one image, group, row block and column of taps
    per_image = tl.cdiv(size, BLOCK)
    image_group = block // per_image
    output = block % per_image * BLOCK + tl.arange(0, BLOCK)
    mask = output < size
    sums = _sum_terms(col_sums + image_group * (count * size), output, mask, count, 1, size, 0, TERMS, BLOCK)
    tap = output // in_channels
    position = image_group * in_channels + output % in_channels
    if TAPS:
        tl.store(grad_windows + position * TAPS + tap, sums, mask=mask & (tap < TAPS))
    if CHANNEL:
        mask &= tap == TAPS
        factors = tl.load(channel_factors + position, mask=mask, other=1.0)
        tl.store(grad_channel + position, _divide(sums, factors), mask=mask)


@triton.jit
def _finish_taps(block, row_sums, grad_taps, elements, row_size, count, TAPS: tl.constexpr, TERMS: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    output = block * BLOCK + tl.arange(0, BLOCK)
    mask = output < TAPS * elements
    sums = _sum_terms(row_sums, output, mask, count, 1, row_size, 0, TERMS, BLOCK)
    tl.store(grad_taps + output % elements * TAPS + output // elements, sums, mask=mask)


@triton.jit
def _finish_filter(block, row_sums, filter_factors, grad_filter, out_channels, row_size, col_blocks,
                   SIZE: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    per_image = tl.cdiv(out_channels, BLOCK)
    image = block // per_image
    output = block % per_image * BLOCK + tl.arange(0, BLOCK)
    mask = output < out_channels
    pointer = row_sums + image * (col_blocks * row_size)
    sums = _sum_terms(pointer, output * SIZE, mask, col_blocks * SIZE, SIZE, row_size, 1, TERMS, BLOCK)
    position = image * out_channels + output
    factors = tl.load(filter_factors + position, mask=mask, other=1.0)
    tl.store(grad_filter + position, _divide(sums, factors), mask=mask)


@triton.jit
def _finish_spatial(block, row_sums, spatial_factors, grad_spatial, out_channels, row_size, col_blocks,
                    SIZE: tl.constexpr, TERMS: tl.constexpr):  # fmt: skip
    one = tl.arange(0, 1)
    pointer = row_sums + block // SIZE * (col_blocks * row_size)
    count = col_blocks * out_channels
    sums = _sum_terms(pointer, block % SIZE + one, one == 0, count, out_channels, row_size, SIZE, TERMS, 1)
    factors = tl.load(spatial_factors + block + one)
    tl.store(grad_spatial + block + one, _divide(sums, factors))


@triton.jit
def _finish_attention(block, shares, grad_attention, size, count, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    output = block * BLOCK + tl.arange(0, BLOCK)
    mask = output < size
    sums = _sum_terms(shares, output, mask, count, 1, size, 0, TERMS, BLOCK)
    tl.store(grad_attention + output, sums, mask=mask)


@triton.jit(do_not_specialize=["images", "row_blocks", "col_blocks", "share_size", "share_blocks"])
def finish(row_sums, col_sums, shares, channel_factors, filter_factors, spatial_factors,
           grad_taps, grad_windows, grad_channel, grad_filter, grad_spatial, grad_attention,
           images, groups, rows, in_channels, row_blocks, col_blocks, share_size, share_blocks,
           HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
           FILTER: tl.constexpr, SPATIAL: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Sum up, for all images, the shares that :func:`modulate_backward` and :func:`spectrum_backward` leave.

    Grid: programs for windows and channel, then for taps, for filter, for spatial, and for attention, 16 each.
    """
    block = tl.program_id(0)
    elements = rows * WIDTH
    out_channels = rows // HEIGHT
    row_size = (TAPS + (1 if FILTER or SPATIAL else 0)) * elements  # of one image and column block
    products = row_sums + TAPS * elements
    tap_block = block - images * groups * tl.cdiv((TAPS + CHANNEL) * in_channels, BLOCK)
    filter_block = tap_block - tl.cdiv(TAPS * elements, BLOCK)
    spatial_block = filter_block - FILTER * images * tl.cdiv(out_channels, BLOCK)
    attention_block = spatial_block - SPATIAL * images * HEIGHT * WIDTH
    if tap_block < 0:
        _finish_cols(block, col_sums, channel_factors, grad_windows, grad_channel, in_channels, row_blocks * WIDTH,
                     TAPS, CHANNEL, TERMS, BLOCK)  # fmt: skip
    elif filter_block < 0:
        if TAPS:
            _finish_taps(tap_block, row_sums, grad_taps, elements, row_size, images * col_blocks, TAPS, TERMS, BLOCK)
    elif spatial_block < 0:
        if FILTER:
            _finish_filter(filter_block, products, filter_factors, grad_filter, out_channels, row_size, col_blocks,
                           HEIGHT * WIDTH, TERMS, BLOCK)  # fmt: skip
    elif attention_block < 0:
        if SPATIAL:
            _finish_spatial(spatial_block, products, spatial_factors, grad_spatial, out_channels, row_size,
                            col_blocks, HEIGHT * WIDTH, TERMS * BLOCK // 2)  # fmt: skip
    else:
        _finish_attention(attention_block, shares, grad_attention, share_size, share_blocks, TERMS * BLOCK // 16, 16)


@triton.jit
def _load_gradient(grad, coefficient, half, cols, scale, mask):
    """Gradients with respect to coefficients, each of which stands for its conjugate, too."""
    real, imaginary = _load_complex(grad, coefficient, mask)
    col = coefficient % half
    counts = tl.where((col == 0) | (2 * col == cols), scale, 2 * scale)
    return real * counts, imaginary * counts


@triton.jit(do_not_specialize=["images", "steps"])
def spectrum_backward(grad, spectrum, group_index, attention, grad_spectrum, shares,
                      coefficients, half, cols, num_groups, share_size, images, steps, scale,
                      ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """From the spectra (B, R, half, 2) of the planes' gradients to those of D and, in ``shares``, of attention.

    ``shares`` (blocks, B, n) has each block's sum over its coefficients of every group; blocks are ``share_size``
    elements apart. It is taken by comparison, with an accumulator for every group and coefficient of a step: no
    atomics, and nothing is exchanged before the end.

    Grid: blocks of ``steps * BLOCK`` coefficients; images, and one more for the gradients of D; blocks of groups.
    """
    image = tl.program_id(1)
    first = tl.program_id(0) * steps * BLOCK
    if image < images:
        group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
        own_grad = grad + image.to(tl.int64) * (2 * coefficients)
        total = tl.zeros([BLOCK, GROUPS], tl.float32)
        for step in range(steps):
            coefficient = first + step * BLOCK + tl.arange(0, BLOCK)
            mask = coefficient < coefficients
            grad_re, grad_im = _load_gradient(own_grad, coefficient, half, cols, scale, mask)
            re, im = _load_complex(spectrum, coefficient, mask)
            index = tl.load(group_index + coefficient, mask=mask, other=0).to(tl.int32)
            product = grad_re * re + grad_im * im
            total += tl.where(index[:, None] == group[None, :], product[:, None], 0.0)
        pointers = shares + tl.program_id(0) * share_size + image * num_groups + group
        tl.store(pointers, tl.sum(total, 0), mask=group < num_groups)
    elif tl.program_id(2) == 0:
        for step in range(steps):
            place = first + step * BLOCK + tl.arange(0, BLOCK)
            inside = place < coefficients
            own_group = tl.load(group_index + place, mask=inside, other=0).to(tl.int32)
            sum_re = tl.zeros([BLOCK], tl.float32)
            sum_im = tl.zeros([BLOCK], tl.float32)
            for one in range(images):
                one_grad = grad + one * (2 * coefficients)
                one_re, one_im = _load_gradient(one_grad, place, half, cols, scale, inside)
                weight = tl.load(attention + one * num_groups + own_group)
                sum_re += one_re * weight
                sum_im += one_im * weight
            pointers_re = grad_spectrum + 2 * place
            if ACCUMULATE:
                sum_re += tl.load(pointers_re, mask=inside, other=0.0)
                sum_im += tl.load(pointers_re + 1, mask=inside, other=0.0)
            tl.store(pointers_re, sum_re, mask=inside)
            tl.store(pointers_re + 1, sum_im, mask=inside)
