"""The Triton kernels of :mod:`fdconv_zoo.ops.kernels_triton`, in its notation.

A program processes a block of a plane, for one image or for all images of a chunk. No sums use atomics, so results do
not depend on the order in which programs run. Kernels are not specialized for counts that depend on the batch, so that
a new batch size does not compile them again.
"""

import triton
import triton.language as tl


@triton.jit
def _load_complex(pointer, offsets, mask):
    """Load the real and imaginary parts of interleaved complex numbers."""
    parts = tl.arange(0, 2)
    pairs = tl.load(pointer + 2 * offsets[:, None] + parts[None, :], mask=mask[:, None], other=0.0)
    return tl.split(pairs)


@triton.jit(do_not_specialize=["images"])
def weigh(spectrum, group_index, attention, out, rows, half, num_groups, images, scale, IMAGES: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """Compute the spectra of R x C/2 complex numbers: the planes' even columns, plus i times their odd columns.

    With X the half spectrum ``D * attention[group]``, (R, half + 1), half = C/2, and E, O the spectra of the even and
    odd columns, ``X[u, k] = E[u, k] + t O[u, k]`` and ``conj(X[-u, half - k]) = E[u, k] - t O[u, k]``, with
    t = exp(-2 pi i k / C). The results are E + i O, from these equations. The columns k = 0 and k = half are first made
    Hermitian, since a real plane depends only on their Hermitian part.

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
def _quarters(x):
    """Split x into four tensors of every fourth column. A thread holds four adjacent columns and exchanges none."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _join_quarters(first, second, third, fourth):
    """The inverse of :func:`_quarters`."""
    pairs = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(pairs, [first.shape[0], 4 * first.shape[1]])


@triton.jit
def _transpose_elements(tensors, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Transpose the ROWS x COLS elements that a thread holds in tensors (rows, channels), four in a row in each."""
    elements = ()
    for tensor in tl.static_range(ROWS * COLS // 4):
        elements += _quarters(tensors[tensor])
    transposed = ()
    for first in tl.static_range(0, ROWS * COLS, 4):
        transposed += (
            _join_quarters(
                elements[first % ROWS * COLS + first // ROWS],
                elements[(first + 1) % ROWS * COLS + (first + 1) // ROWS],
                elements[(first + 2) % ROWS * COLS + (first + 2) // ROWS],
                elements[(first + 3) % ROWS * COLS + (first + 3) // ROWS],
            ),
        )
    return transposed


@triton.jit
def _split_columns(vectors, WIDTH: tl.constexpr):
    """Rearrange vectors, see :func:`_vector`, into a tensor (ROWS, channels) for each column of taps."""
    if WIDTH == 1:
        return vectors
    return _transpose_elements(vectors, 4, WIDTH)


@triton.jit
def _join_columns(columns, WIDTH: tl.constexpr):
    """The inverse of :func:`_split_columns`."""
    if WIDTH == 1:
        return columns
    return _transpose_elements(columns, WIDTH, 4)


@triton.jit
def _vector(vector, row, row_mask, col_block, in_channels, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """Offsets of a vector's elements in a plane, (ROWS, COLS), and their mask.

    Four channels have 4 * WIDTH adjacent elements, of which a vector holds four: each thread reads adjacent memory.
    """
    channel = tl.arange(0, COLS)
    place = col_block * (COLS * WIDTH) + channel // 4 * (4 * WIDTH) + 4 * vector + channel % 4
    mask = row_mask[:, None] & (place < in_channels * WIDTH)[None, :]
    return (row * (in_channels * WIDTH))[:, None] + place[None, :], mask


@triton.jit
def _kernel_place(row, channel, col, filter_stride, channel_stride, row_stride, col_stride, HEIGHT: tl.constexpr):
    """Offsets of a column of taps in a kernel with any strides, (ROWS, COLS), for rows and channels of the plane."""
    row_offset = (row // HEIGHT) * filter_stride + (row % HEIGHT) * row_stride + col * col_stride
    return row_offset[:, None] + (channel * channel_stride)[None, :]


@triton.jit
def _block(rows_of_group, row_blocks, col_blocks, steps, ROWS: tl.constexpr):
    """Group, row block, column block, and the range of row tiles (its end excluded) of the program on grid axis 0."""
    block = tl.program_id(0)
    row_block = block // col_blocks % row_blocks
    first = row_block * steps
    last = tl.minimum(first + steps, tl.cdiv(rows_of_group, ROWS))
    return block // (col_blocks * row_blocks), row_block, block % col_blocks, first, last


@triton.jit
def _load_windows(pointers, mask, tap_stride, TAPS: tl.constexpr):
    """Load a tensor (1, COLS) for each tap."""
    windows = ()
    for tap in tl.static_range(TAPS):
        windows += (tl.load(pointers + tap * tap_stride, mask=mask, other=0.0)[None, :],)
    return windows


@triton.jit
def _load_taps(pointers, mask, TAPS: tl.constexpr):
    """Load a tensor (ROWS, 1) for each tap."""
    taps = ()
    for tap in tl.static_range(TAPS):
        taps += (tl.load(pointers + tap, mask=mask, other=0.0)[:, None],)
    return taps


@triton.jit
def _gate(taps, windows, TAPS: tl.constexpr):
    """The sigmoid of the local branch's logits, (ROWS, COLS)."""
    logits = taps[0] * windows[0]
    for tap in tl.static_range(1, TAPS):
        logits += taps[tap] * windows[tap]
    return tl.sigmoid(logits)


@triton.jit
def _stack(tensors, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """Stack 2**LEVELS tensors (ROWS,) into one (ROWS, 2**LEVELS)."""
    for level in tl.static_range(LEVELS):
        joined = ()
        for left in tl.static_range(1 << (LEVELS - level - 1)):
            joined += (tl.join(tensors[left], tensors[left + (1 << (LEVELS - level - 1))]),)
        tensors = joined
    return tl.reshape(tensors[0], [ROWS, 1 << LEVELS])


@triton.jit(do_not_specialize=["row_blocks", "col_blocks", "steps"])
def modulate(plane, taps, windows, channel_factors, filter_factors, spatial_factors, out,
             groups, rows_of_group, in_channels, row_blocks, col_blocks, steps, plane_stride,
             window_image, window_group, window_channel, window_tap,
             out_image, out_filter, out_channel, out_row, out_col,
             HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
             FILTER: tl.constexpr, SPATIAL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Multiply planes by all modulators, and store them as kernels of any strides and dtype.

    A program processes COLS input channels of a group, in ``steps`` tiles of ROWS rows.

    Grid: blocks of each group's rows and input channels, images.
    """
    image = tl.program_id(1)
    group, _, col_block, first, last = _block(rows_of_group, row_blocks, col_blocks, steps, ROWS)
    channel = col_block * COLS + tl.arange(0, COLS)
    channel_mask = channel < in_channels
    rows = groups * rows_of_group
    plane += image.to(tl.int64) * plane_stride
    out += image.to(tl.int64) * out_image
    right = tl.full([COLS], 1.0, tl.float32)
    if CHANNEL:
        channel_factors += (image * groups + group) * in_channels
        right *= tl.load(channel_factors + channel, mask=channel_mask, other=0.0)
    window = image * window_image + group * window_group + channel * window_channel
    window_values = _load_windows(windows + window, channel_mask, window_tap, TAPS)
    for step in range(first, last):
        row = step * ROWS + tl.arange(0, ROWS)
        row_mask = row < rows_of_group
        mask = row_mask[:, None] & channel_mask[None, :]
        row += group * rows_of_group
        left = tl.full([ROWS], 1.0, tl.float32)
        if FILTER:
            left *= tl.load(filter_factors + image * (rows // HEIGHT) + row // HEIGHT, mask=row_mask, other=0.0)
        vectors = ()
        for vector in tl.static_range(WIDTH):
            place, vector_mask = _vector(vector, row, row_mask, col_block, in_channels, WIDTH, COLS)
            vectors += (tl.load(plane + place, mask=vector_mask, other=0.0),)
        columns = _split_columns(vectors, WIDTH)
        for col in tl.static_range(WIDTH):
            factors = left
            if SPATIAL:
                factors *= tl.load(spatial_factors + (image * HEIGHT + row % HEIGHT) * WIDTH + col)
            values = columns[col] * (factors[:, None] * right[None, :])
            if TAPS:
                tap_values = _load_taps(taps + (row * WIDTH + col) * TAPS, row_mask, TAPS)
                values *= 2 * _gate(tap_values, window_values, TAPS)
            place = _kernel_place(row, channel, col, out_filter, out_channel, out_row, out_col, HEIGHT)
            tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["row_blocks", "col_blocks", "steps"])
def modulate_backward(source, grad, taps, windows, channel_factors, filter_factors, spatial_factors,
                      grad_plane, tap_shares, row_shares, col_shares,
                      groups, rows_of_group, in_channels, row_blocks, col_blocks, steps,
                      source_image, source_filter, source_channel, source_row, source_col,
                      window_image, window_group, window_channel, window_tap,
                      grad_image, grad_filter, grad_channel, grad_row, grad_col,
                      HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
                      FILTER: tl.constexpr, SPATIAL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                      LEVELS: tl.constexpr, KEPT: tl.constexpr):  # fmt: skip
    """Compute the gradient of the planes, and each program's share of the sums that :func:`finish` adds up.

    ``source`` holds the planes, with only their stride over images in use, or, if KEPT, the kernels K.

    With P = K * dL/dK, the shares are

    - ``tap_shares`` (B, col_blocks, R*b, T): dL/dlogit times each tap's window, summed over channels;
    - ``row_shares`` (B, col_blocks, R*b): P, summed over channels;
    - ``col_shares`` (B, G, row_blocks, T + 1, I): dL/dlogit times each tap and, as the last entry, P, summed over rows.

    Shares that no factor needs are not stored. ``grad_plane`` may be ``source`` if it holds planes. Each thread
    accumulates its sums over rows, and threads exchange them once, at the end. 2**LEVELS is at least T.

    Blocks and grid are those of :func:`modulate`.
    """
    image = tl.program_id(1)
    group, row_block, col_block, first, last = _block(rows_of_group, row_blocks, col_blocks, steps, ROWS)
    channel = col_block * COLS + tl.arange(0, COLS)
    channel_mask = channel < in_channels
    rows = groups * rows_of_group
    source += image.to(tl.int64) * source_image
    grad += image.to(tl.int64) * grad_image
    grad_plane += image.to(tl.int64) * (rows * in_channels * WIDTH)
    tap_shares += (image * col_blocks + col_block) * (rows * WIDTH * TAPS)
    row_shares += (image * col_blocks + col_block) * (rows * WIDTH)
    col_shares += ((image * groups + group) * row_blocks + row_block) * ((TAPS + CHANNEL) * in_channels)
    right = tl.full([COLS], 1.0, tl.float32)
    if CHANNEL:
        channel_factors += (image * groups + group) * in_channels
        right *= tl.load(channel_factors + channel, mask=channel_mask, other=0.0)
    window = image * window_image + group * window_group + channel * window_channel
    window_values = _load_windows(windows + window, channel_mask, window_tap, TAPS)
    product_sums = tl.zeros([ROWS, COLS], tl.float32)
    logit_sums = ()
    for _ in tl.static_range(TAPS):
        logit_sums += (tl.zeros([ROWS, COLS], tl.float32),)
    for step in range(first, last):
        row = step * ROWS + tl.arange(0, ROWS)
        row_mask = row < rows_of_group
        mask = row_mask[:, None] & channel_mask[None, :]
        row += group * rows_of_group
        left = tl.full([ROWS], 1.0, tl.float32)
        if FILTER:
            left *= tl.load(filter_factors + image * (rows // HEIGHT) + row // HEIGHT, mask=row_mask, other=0.0)
        sources = ()
        grads = ()
        for col in tl.static_range(WIDTH):
            if KEPT:
                place = _kernel_place(row, channel, col, source_filter, source_channel, source_row, source_col, HEIGHT)
                sources += (tl.load(source + place, mask=mask, other=0.0).to(tl.float32),)
            else:
                place, vector_mask = _vector(col, row, row_mask, col_block, in_channels, WIDTH, COLS)
                sources += (tl.load(source + place, mask=vector_mask, other=0.0),)
            place = _kernel_place(row, channel, col, grad_filter, grad_channel, grad_row, grad_col, HEIGHT)
            grads += (tl.load(grad + place, mask=mask, other=0.0).to(tl.float32),)
        columns = sources if KEPT else _split_columns(sources, WIDTH)
        grad_columns = ()
        for col in tl.static_range(WIDTH):
            factors = left
            if SPATIAL:
                factors *= tl.load(spatial_factors + (image * HEIGHT + row % HEIGHT) * WIDTH + col)
            grad_column = grads[col] * (factors[:, None] * right[None, :])
            tap_row = row * WIDTH + col
            if TAPS:
                tap_values = _load_taps(taps + tap_row * TAPS, row_mask, TAPS)
                gate = _gate(tap_values, window_values, TAPS)
                grad_column *= 2 * gate
            product = columns[col] * (grads[col] if KEPT else grad_column)
            if TAPS:
                grad_logits = product * (1 - gate)
                sums = ()
                new_sums = ()
                for tap in tl.static_range(TAPS):
                    sums += (tl.sum(grad_logits * window_values[tap], 1),)
                    new_sums += (logit_sums[tap] + grad_logits * tap_values[tap],)
                logit_sums = new_sums
                for _ in tl.static_range(TAPS, 1 << LEVELS):
                    sums += (tl.zeros([ROWS], tl.float32),)
                tap = tl.arange(0, 1 << LEVELS)[None, :]
                share_mask = row_mask[:, None] & (tap < TAPS)
                tl.store(tap_shares + tap_row[:, None] * TAPS + tap, _stack(sums, ROWS, LEVELS), mask=share_mask)
            if FILTER or SPATIAL:
                tl.store(row_shares + tap_row, tl.sum(product, 1), mask=row_mask)
            if CHANNEL:
                product_sums += product
            grad_columns += (grad_column,)
        vectors = _join_columns(grad_columns, WIDTH)
        for vector in tl.static_range(WIDTH):
            place, vector_mask = _vector(vector, row, row_mask, col_block, in_channels, WIDTH, COLS)
            tl.store(grad_plane + place, vectors[vector], mask=vector_mask)
    for tap in tl.static_range(TAPS):
        tl.store(col_shares + tap * in_channels + channel, tl.sum(logit_sums[tap], 0), mask=channel_mask)
    if CHANNEL:
        tl.store(col_shares + TAPS * in_channels + channel, tl.sum(product_sums, 0), mask=channel_mask)


@triton.jit
def _sum_terms(pointer, offsets, mask, count, inner, outer_stride, inner_stride, TERMS: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """Sum ``count`` terms for each offset: runs of ``inner`` at ``inner_stride``, which repeat at ``outer_stride``."""
    total = tl.zeros([TERMS, BLOCK], tl.float32)
    for start in range(0, count, TERMS):
        term = start + tl.arange(0, TERMS)
        pointers = pointer + (term // inner * outer_stride + term % inner * inner_stride)[:, None] + offsets[None, :]
        total += tl.load(pointers, mask=(term < count)[:, None] & mask[None, :], other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _divide(sums, factors):
    """Compute sums / factors; 0 where a factor has underflowed to 0, as its own derivative is 0 there as well."""
    return tl.where(factors == 0, 0.0, sums / tl.where(factors == 0, 1.0, factors))


@triton.jit
def _finish_cols(block, col_shares, channel_factors, grad_windows, grad_channel, in_channels, row_blocks,
                 TAPS: tl.constexpr, CHANNEL: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    size = (TAPS + CHANNEL) * in_channels  # of one image, group and row block
    per_image = tl.cdiv(size, BLOCK)
    image_group = block // per_image
    output = block % per_image * BLOCK + tl.arange(0, BLOCK)
    mask = output < size
    pointer = col_shares + image_group * (row_blocks * size)
    sums = _sum_terms(pointer, output, mask, row_blocks, 1, size, 0, TERMS, BLOCK)
    tap = output // in_channels
    position = image_group * in_channels + output % in_channels
    if TAPS:
        tl.store(grad_windows + position * TAPS + tap, sums, mask=mask & (tap < TAPS))
    if CHANNEL:
        mask &= tap == TAPS
        factors = tl.load(channel_factors + position, mask=mask, other=1.0)
        tl.store(grad_channel + position, _divide(sums, factors), mask=mask)


@triton.jit
def _finish_filter(block, row_shares, filter_factors, grad_filter, out_channels, col_blocks,
                   SIZE: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    per_image = tl.cdiv(out_channels, BLOCK)
    image = block // per_image
    output = block % per_image * BLOCK + tl.arange(0, BLOCK)
    mask = output < out_channels
    row_size = out_channels * SIZE  # of one image and column block
    pointer = row_shares + image * (col_blocks * row_size)
    sums = _sum_terms(pointer, output * SIZE, mask, col_blocks * SIZE, SIZE, row_size, 1, TERMS, BLOCK)
    position = image * out_channels + output
    factors = tl.load(filter_factors + position, mask=mask, other=1.0)
    tl.store(grad_filter + position, _divide(sums, factors), mask=mask)


@triton.jit
def _finish_spatial(block, row_shares, spatial_factors, grad_spatial, out_channels, col_blocks,
                    SIZE: tl.constexpr, TERMS: tl.constexpr):  # fmt: skip
    one = tl.arange(0, 1)
    count = col_blocks * out_channels
    pointer = row_shares + block // SIZE * (count * SIZE)
    sums = _sum_terms(pointer, block % SIZE + one, one == 0, count, count, 0, SIZE, TERMS, 1)
    factors = tl.load(spatial_factors + block + one)
    tl.store(grad_spatial + block + one, _divide(sums, factors))


@triton.jit
def _finish_sum(block, shares, gradient, size, count, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the sum of ``count`` shares to ``gradient``, all of ``size`` elements."""
    output = block * BLOCK + tl.arange(0, BLOCK)
    mask = output < size
    tl.store(gradient + output, _sum_terms(shares, output, mask, count, 1, size, 0, TERMS, BLOCK), mask=mask)


@triton.jit(do_not_specialize=["images", "row_blocks", "col_blocks", "share_size", "share_blocks"])
def finish(tap_shares, row_shares, col_shares, attention_shares, channel_factors, filter_factors, spatial_factors,
           grad_taps, grad_windows, grad_channel, grad_filter, grad_spatial, grad_attention,
           images, groups, rows, in_channels, row_blocks, col_blocks, share_size, share_blocks,
           HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, CHANNEL: tl.constexpr,
           FILTER: tl.constexpr, SPATIAL: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr):  # fmt: skip
    """Add up, for all images, the shares from :func:`modulate_backward` and :func:`spectrum_backward`.

    A program processes MANY outputs with FEW terms at a time, or the other way around if there are more terms.

    Grid: programs for windows and channel, then for taps, for filter, for spatial, and for attention.
    """
    block = tl.program_id(0)
    elements = rows * WIDTH
    out_channels = rows // HEIGHT
    tap_block = block - images * groups * tl.cdiv((TAPS + CHANNEL) * in_channels, MANY)
    filter_block = tap_block - tl.cdiv(TAPS * elements, FEW)
    spatial_block = filter_block - FILTER * images * tl.cdiv(out_channels, MANY)
    attention_block = spatial_block - SPATIAL * images * HEIGHT * WIDTH
    if tap_block < 0:
        _finish_cols(block, col_shares, channel_factors, grad_windows, grad_channel, in_channels, row_blocks,
                     TAPS, CHANNEL, FEW, MANY)  # fmt: skip
    elif filter_block < 0:
        if TAPS:
            _finish_sum(tap_block, tap_shares, grad_taps, TAPS * elements, images * col_blocks, MANY, FEW)
    elif spatial_block < 0:
        if FILTER:
            _finish_filter(filter_block, row_shares, filter_factors, grad_filter, out_channels, col_blocks,
                           HEIGHT * WIDTH, FEW, MANY)  # fmt: skip
    elif attention_block < 0:
        if SPATIAL:
            _finish_spatial(spatial_block, row_shares, spatial_factors, grad_spatial, out_channels, col_blocks,
                            HEIGHT * WIDTH, MANY * FEW // 2)  # fmt: skip
    else:
        _finish_sum(attention_block, attention_shares, grad_attention, share_size, share_blocks, MANY, FEW)


@triton.jit
def _add_sums_by_group(is_of_group, values, total):
    """Add the product of zeros and ones (n, k) with float32 values (b, k) to ``total`` (n, b).

    Each value is the sum of three bfloat16 numbers, with float32's accuracy. Their products with 0 and 1 are exact.
    """
    high = values.to(is_of_group.dtype)
    rest = values - high.to(tl.float32)
    middle = rest.to(is_of_group.dtype)
    low = (rest - middle.to(tl.float32)).to(is_of_group.dtype)
    total = tl.dot(is_of_group, tl.trans(low), total)
    total = tl.dot(is_of_group, tl.trans(middle), total)
    return tl.dot(is_of_group, tl.trans(high), total)


@triton.jit(do_not_specialize=["images", "steps"])
def spectrum_backward(grad, spectrum, group_index, attention, grad_spectrum, shares,
                      coefficients, half, cols, num_groups, share_size, images, steps, scale,
                      ACCUMULATE: tl.constexpr, IMAGES: tl.constexpr, BLOCK: tl.constexpr,
                      GROUPS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Compute the gradients of D and attention (``shares``) from the spectra (B, R, half, 2) of the planes' gradients.

    ``shares`` (blocks, B, n) holds each program's sum over its coefficients of every group; blocks are ``share_size``
    elements apart. If there are more than IMAGES images, the thread that has written a sum for D adds the next one to
    it. DTYPE is the dtype of the factors of matrix products.

    Grid: blocks of ``steps * BLOCK`` coefficients, blocks of groups.
    """
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None]
    for start in range(0, images, IMAGES):
        image = start + tl.arange(0, IMAGES)
        is_image = image < images
        total = tl.zeros([GROUPS, IMAGES], tl.float32)
        for step in range(steps):
            coefficient = (tl.program_id(0) * steps + step) * BLOCK + tl.arange(0, BLOCK)
            mask = coefficient < coefficients
            col = coefficient % half
            # All other coefficients count twice, for their conjugates too.
            counts = tl.where((col == 0) | (2 * col == cols), scale, 2 * scale)[:, None]
            pairs = 2 * coefficient[:, None] + tl.arange(0, 2)[None, :]
            values = tl.load(spectrum + pairs, mask=mask[:, None], other=0.0) * counts
            own_group = tl.load(group_index + coefficient, mask=mask, other=0).to(tl.int32)
            number = (tl.program_id(0) * steps + step) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)[None, :]
            grad_mask = is_image[:, None] & (number < 2 * coefficients)
            grads = tl.load(grad + (image * (2 * coefficients))[:, None] + number, mask=grad_mask, other=0.0)
            grads = tl.reshape(grads, [IMAGES, BLOCK, 2])
            # The real part of gradients times conjugate coefficients.
            products = tl.sum(grads * values[None, :, :], 2)
            is_of_group = tl.where(own_group[None, :] == group, 1.0, 0.0).to(DTYPE)
            total = _add_sums_by_group(is_of_group, products, total)
            if tl.program_id(1) == 0:
                # In one dimension, since the compiler then gives neighbors, most of which share a group, to one warp.
                place = tl.reshape((image * num_groups)[:, None] + own_group[None, :], [IMAGES * BLOCK])
                weight = tl.load(attention + place, mask=place < images * num_groups, other=0.0)
                sums = tl.sum(grads * tl.reshape(weight, [IMAGES, BLOCK, 1]), 0) * counts
                is_added = mask & (start + ACCUMULATE > 0)
                sums += tl.load(grad_spectrum + pairs, mask=is_added[:, None], other=0.0)
                tl.store(grad_spectrum + pairs, sums, mask=mask[:, None])
        share_pointers = shares + tl.program_id(0) * share_size + (image * num_groups)[None, :] + group
        tl.store(share_pointers, total, mask=is_image[None, :] & (group < num_groups))
