"""The Triton kernels of :mod:`fdconv_zoo.ops.modulators_triton`.

Matrix products are computed in float32, without tensor cores: tiles (images, rows, cols) are summed in registers. No
result depends on the order in which programs run.

``state`` holds, one after another: the normalized hidden units (B, h) and their activations (B, h); the mean (h,) and
the inverse standard deviation (h,) of their normalization; the same of the local branch's normalization, (B,) and (B,).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["batch", "width", "hidden_blocks"])
def predict_hidden(
    pooled, reduce, weight, bias, mean, variance, count, star_scale, star_bias, layer_weight, layer_bias,
    state, windows, batch, channels, hidden, width, hidden_blocks, eps, momentum, layer_eps,
    TRAINING: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Compute the hidden units of the global branch and the windows of the local branch.

    Grid: blocks of hidden units, each for all images; then blocks of windows of the first image, of the second, ...
    """
    block = tl.program_id(0)
    if block < hidden_blocks:
        _hidden_units(
            pooled, reduce, weight, bias, mean, variance, count, star_scale, star_bias, state,
            block, batch, channels, hidden, eps, momentum, TRAINING, IMAGES, UNITS, CHANNELS,
        )  # fmt: skip
    else:
        statistics = state + 2 * batch * hidden + 2 * hidden
        block -= hidden_blocks
        _windows(
            pooled, layer_weight, layer_bias, statistics, windows, block, batch, channels, width, layer_eps, ELEMENTS
        )


@triton.jit
def _hidden_units(
    pooled, reduce, weight, bias, mean, variance, count, star_scale, star_bias, state,
    block, batch, channels, hidden, eps, momentum,
    TRAINING: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    unit = block * UNITS + tl.arange(0, UNITS)
    unit_mask = unit < hidden
    factor = tl.load(weight + unit, mask=unit_mask, other=0.0)
    shift = tl.load(bias + unit, mask=unit_mask, other=0.0)
    scale = tl.load(star_scale)
    offset = tl.load(star_bias)
    if not TRAINING:
        center = tl.load(mean + unit, mask=unit_mask, other=0.0)
        inverse = 1 / tl.sqrt(tl.load(variance + unit, mask=unit_mask, other=1.0) + eps)
    total = tl.zeros([UNITS], tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        products = tl.zeros([IMAGES, UNITS, CHANNELS], tl.float32)
        for first in range(0, channels, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)[None, None, :]
            left_mask = (image[:, None, None] < batch) & (channel < channels)
            left = tl.load(pooled + image[:, None, None] * channels + channel, mask=left_mask, other=0.0)
            right_mask = unit_mask[None, :, None] & (channel < channels)
            right = tl.load(reduce + unit[None, :, None] * channels + channel, mask=right_mask, other=0.0)
            products += left * right
        values = tl.sum(products, 2)
        total += tl.sum(values, 0)
        place = image[:, None] * hidden + unit[None, :]
        mask = (image < batch)[:, None] & unit_mask[None, :]
        if TRAINING:
            tl.store(state + place, values, mask=mask)
        else:
            values = (values - center[None, :]) * inverse[None, :]
            tl.store(state + place, values, mask=mask)
            values = _star_relu(values * factor[None, :] + shift[None, :], scale, offset)
            tl.store(state + batch * hidden + place, values, mask=mask)
    if TRAINING:
        tl.debug_barrier()  # all threads of the program read what any of them has stored
        center = total / batch
        squares = tl.zeros([UNITS], tl.float32)
        for start in range(0, batch, IMAGES):
            image = start + tl.arange(0, IMAGES)
            mask = (image < batch)[:, None] & unit_mask[None, :]
            values = tl.load(state + image[:, None] * hidden + unit[None, :], mask=mask, other=0.0)
            values = tl.where(mask, values - center[None, :], 0.0)
            squares += tl.sum(values * values, 0)
        inverse = 1 / tl.sqrt(squares / batch + eps)
        for start in range(0, batch, IMAGES):
            image = start + tl.arange(0, IMAGES)
            place = image[:, None] * hidden + unit[None, :]
            mask = (image < batch)[:, None] & unit_mask[None, :]
            values = tl.load(state + place, mask=mask, other=0.0)
            values = (values - center[None, :]) * inverse[None, :]
            tl.store(state + place, values, mask=mask)
            values = _star_relu(values * factor[None, :] + shift[None, :], scale, offset)
            tl.store(state + batch * hidden + place, values, mask=mask)
        before = tl.load(mean + unit, mask=unit_mask, other=0.0)
        tl.store(mean + unit, before + momentum * (center - before), mask=unit_mask)
        before = tl.load(variance + unit, mask=unit_mask, other=0.0)
        tl.store(variance + unit, before + momentum * (squares / (batch - 1) - before), mask=unit_mask)
        if block == 0:
            tl.store(count, tl.load(count) + 1)
    statistics = state + 2 * batch * hidden + unit
    tl.store(statistics, center, mask=unit_mask)
    tl.store(statistics + hidden, inverse, mask=unit_mask)


@triton.jit
def _windows(pooled, weight, bias, statistics, windows, block, batch, channels, width, eps, ELEMENTS: tl.constexpr):
    blocks = tl.cdiv(channels * width, ELEMENTS)
    image = block // blocks
    row = pooled + image * channels
    sums = tl.zeros([ELEMENTS], tl.float32)
    for first in range(0, channels, ELEMENTS):
        channel = first + tl.arange(0, ELEMENTS)
        sums += tl.load(row + channel, mask=channel < channels, other=0.0)
    center = tl.sum(sums, 0) / channels
    squares = tl.zeros([ELEMENTS], tl.float32)
    for first in range(0, channels, ELEMENTS):
        channel = first + tl.arange(0, ELEMENTS)
        values = tl.load(row + channel, mask=channel < channels, other=0.0)
        values = tl.where(channel < channels, values - center, 0.0)
        squares += values * values
    inverse = 1 / tl.sqrt(tl.sum(squares, 0) / channels + eps)
    if block % blocks == 0:
        tl.store(statistics + image, center)
        tl.store(statistics + batch + image, inverse)
    element = block % blocks * ELEMENTS + tl.arange(0, ELEMENTS)
    channel = element // width + element % width - width // 2
    mask = (element < channels * width) & (channel >= 0) & (channel < channels)
    values = (tl.load(row + channel, mask=mask, other=0.0) - center) * inverse
    factor = tl.load(weight + channel, mask=mask, other=0.0)
    values = tl.where(mask, values * factor + tl.load(bias + channel, mask=mask, other=0.0), 0.0)
    tl.store(windows + image * channels * width + element, values, mask=element < channels * width)


@triton.jit
def _star_relu(values, scale, offset):
    values = tl.where(values < 0, 0.0, values)  # keeps NaN
    return scale * values * values + offset


@triton.jit(do_not_specialize=["batch", "kernel_size", "channel_size", "filter_size", "spatial_size"])
def predict_heads(
    state, kernel_weight, kernel_bias, kernel, channel_weight, channel_bias, channel,
    filter_weight, filter_bias, filter, spatial_weight, spatial_bias, spatial,
    batch, hidden, kernel_size, channel_size, filter_size, spatial_size, kernel_temperature, temperature,
    IMAGES: tl.constexpr, OUTPUTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Compute the modulators of the global branch, ``scale * sigmoid((W @ hidden + bias) / temperature)``.

    Grid: blocks of outputs of the first head, of the second, ...; blocks of images. A missing head has size 0.
    """
    block = tl.program_id(0)
    second = tl.cdiv(kernel_size, OUTPUTS)
    third = second + tl.cdiv(channel_size, OUTPUTS)
    fourth = third + tl.cdiv(filter_size, OUTPUTS)
    scale, divisor = 2.0, temperature
    if block < second:
        weight, bias, out, size = kernel_weight, kernel_bias, kernel, kernel_size
        scale, divisor = 2.0 / kernel_size, kernel_temperature
    elif block < third:
        weight, bias, out, size = channel_weight, channel_bias, channel, channel_size
        block -= second
    elif block < fourth:
        weight, bias, out, size = filter_weight, filter_bias, filter, filter_size
        block -= third
    else:
        weight, bias, out, size = spatial_weight, spatial_bias, spatial, spatial_size
        block -= fourth
    output = block * OUTPUTS + tl.arange(0, OUTPUTS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    activated = state + batch * hidden
    products = tl.zeros([IMAGES, OUTPUTS, UNITS], tl.float32)
    for first in range(0, hidden, UNITS):
        unit = first + tl.arange(0, UNITS)[None, None, :]
        left_mask = (image[:, None, None] < batch) & (unit < hidden)
        left = tl.load(activated + image[:, None, None] * hidden + unit, mask=left_mask, other=0.0)
        right_mask = (output[None, :, None] < size) & (unit < hidden)
        right = tl.load(weight + output[None, :, None] * hidden + unit, mask=right_mask, other=0.0)
        products += left * right
    logits = tl.sum(products, 2) + tl.load(bias + output, mask=output < size, other=0.0)[None, :]
    mask = (image < batch)[:, None] & (output < size)[None, :]
    tl.store(out + image[:, None] * size + output[None, :], scale * tl.sigmoid(logits / divisor), mask=mask)


@triton.jit(
    do_not_specialize=["batch", "width", "kernel_size", "channel_size", "filter_size", "spatial_size", "head_blocks"]
)
def backward_heads(
    kernel_grad, kernel, kernel_weight, kernel_weight_grad, kernel_bias_grad,
    channel_grad, channel, channel_weight, channel_weight_grad, channel_bias_grad,
    filter_grad, filter, filter_weight, filter_weight_grad, filter_bias_grad,
    spatial_grad, spatial, spatial_weight, spatial_weight_grad, spatial_bias_grad,
    windows_grad, pooled, layer_weight, state, scratch, batch, channels, hidden, width,
    kernel_size, channel_size, filter_size, spatial_size, head_blocks, kernel_temperature, temperature,
    IMAGES: tl.constexpr, OUTPUTS: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the heads, and partial results for those of the hidden units and the local features.

    ``scratch`` holds, one after another: the shares of the gradient of the hidden units (head blocks, B, h); the
    gradient of the hidden units before their normalization (B, h); the gradient of the normalized local features
    (B, C), and two means for each image (2, B), for the backward pass of their normalization; shares of the gradients
    of StarReLU's scale and of its bias, one of each for every block of :func:`backward_hidden`.

    Grid: for each block of outputs as in :func:`predict_heads`, blocks of hidden units; then images.
    """
    block = tl.program_id(0)
    parts = tl.cdiv(hidden, UNITS)
    if block < head_blocks * parts:
        part = block % parts
        share = scratch + (block // parts * batch).to(tl.int64) * hidden
        block = block // parts
        second = tl.cdiv(kernel_size, OUTPUTS)
        third = second + tl.cdiv(channel_size, OUTPUTS)
        fourth = third + tl.cdiv(filter_size, OUTPUTS)
        scale, divisor = 2.0, temperature
        if block < second:
            grad, out, size = kernel_grad, kernel, kernel_size
            weight, weight_grad, bias_grad = kernel_weight, kernel_weight_grad, kernel_bias_grad
            scale, divisor = 2.0 / kernel_size, kernel_temperature
        elif block < third:
            grad, out, size = channel_grad, channel, channel_size
            weight, weight_grad, bias_grad = channel_weight, channel_weight_grad, channel_bias_grad
            block -= second
        elif block < fourth:
            grad, out, size = filter_grad, filter, filter_size
            weight, weight_grad, bias_grad = filter_weight, filter_weight_grad, filter_bias_grad
            block -= third
        else:
            grad, out, size = spatial_grad, spatial, spatial_size
            weight, weight_grad, bias_grad = spatial_weight, spatial_weight_grad, spatial_bias_grad
            block -= fourth
        _head_gradients(
            grad, out, weight, weight_grad, bias_grad, state + batch * hidden, share, scale, divisor,
            block, part, batch, hidden, size, IMAGES, OUTPUTS, UNITS,
        )  # fmt: skip
    else:
        image = block - head_blocks * parts
        statistics = state + 2 * batch * hidden + 2 * hidden + image
        features_grad = scratch + (head_blocks * batch + batch).to(tl.int64) * hidden
        sums = features_grad + batch * channels + image
        _neighbors_backward(
            windows_grad + image * channels * width, pooled + image * channels, layer_weight,
            features_grad + image * channels, statistics, sums, batch, channels, width, CHANNELS,
        )  # fmt: skip


@triton.jit
def _head_gradients(
    grad, out, weight, weight_grad, bias_grad, activated, share, scale, divisor,
    block, part, batch, hidden, size, IMAGES: tl.constexpr, OUTPUTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    output = block * OUTPUTS + tl.arange(0, OUTPUTS)
    unit = part * UNITS + tl.arange(0, UNITS)
    weight_place = output[:, None] * hidden + unit[None, :]
    weight_mask = (output < size)[:, None] & (unit < hidden)[None, :]
    weights = tl.load(weight + weight_place, mask=weight_mask, other=0.0)
    weight_sums = tl.zeros([OUTPUTS, UNITS], tl.float32)
    bias_sums = tl.zeros([OUTPUTS], tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        place = image[:, None] * size + output[None, :]
        mask = (image < batch)[:, None] & (output < size)[None, :]
        factors = tl.load(out + place, mask=mask, other=0.0)
        logits_grad = tl.load(grad + place, mask=mask, other=0.0) * factors * (1 - factors / scale) / divisor
        bias_sums += tl.sum(logits_grad, 0)
        place = image[:, None] * hidden + unit[None, :]
        mask = (image < batch)[:, None] & (unit < hidden)[None, :]
        units = tl.load(activated + place, mask=mask, other=0.0)
        weight_sums += tl.sum(logits_grad[:, :, None] * units[:, None, :], 0)
        # In the opposite order, Triton's compiler turns the sum of products into a matrix product in tf32.
        tl.store(share + place, tl.sum(weights[None, :, :] * logits_grad[:, :, None], 1), mask=mask)
    tl.store(weight_grad + weight_place, weight_sums, mask=weight_mask)
    if part == 0:
        tl.store(bias_grad + output, bias_sums, mask=output < size)


@triton.jit
def _neighbors_backward(
    grad, row, weight, features_grad, statistics, sums, batch, channels, width, CHANNELS: tl.constexpr
):
    """The backward pass of the windows of one image."""
    center = tl.load(statistics)
    inverse = tl.load(statistics + batch)
    first_sums = tl.zeros([CHANNELS], tl.float32)
    second_sums = tl.zeros([CHANNELS], tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = channel < channels
        total = tl.zeros([CHANNELS], tl.float32)
        for tap in range(0, width):
            seen_by = channel + width // 2 - tap
            is_inside = mask & (seen_by >= 0) & (seen_by < channels)
            total += tl.load(grad + seen_by * width + tap, mask=is_inside, other=0.0)
        tl.store(features_grad + channel, total, mask=mask)
        total *= tl.load(weight + channel, mask=mask, other=0.0)
        first_sums += total
        second_sums += total * (tl.load(row + channel, mask=mask, other=0.0) - center) * inverse
    tl.store(sums, tl.sum(first_sums, 0) / channels)
    tl.store(sums + batch, tl.sum(second_sums, 0) / channels)


@triton.jit(do_not_specialize=["batch", "channels", "head_blocks"])
def backward_hidden(
    state, weight, bias, star_scale, scratch, weight_grad, bias_grad, batch, channels, hidden, head_blocks,
    TRAINING: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the hidden units before normalization, of its weight and bias; and StarReLU's shares.

    ``scratch`` is that of :func:`backward_heads`. Grid: blocks of hidden units.
    """
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    unit_mask = unit < hidden
    factor = tl.load(weight + unit, mask=unit_mask, other=0.0)
    shift = tl.load(bias + unit, mask=unit_mask, other=0.0)
    inverse = tl.load(state + 2 * batch * hidden + hidden + unit, mask=unit_mask, other=0.0)
    slope = 2 * tl.load(star_scale)
    hidden_grad = scratch + (head_blocks * batch).to(tl.int64) * hidden
    star_shares = hidden_grad + batch * hidden + batch * channels + 2 * batch + tl.program_id(0)
    scale_sums = tl.zeros([IMAGES, UNITS], tl.float32)
    offset_sums = tl.zeros([IMAGES, UNITS], tl.float32)
    weight_sums = tl.zeros([IMAGES, UNITS], tl.float32)
    bias_sums = tl.zeros([IMAGES, UNITS], tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        place = image[:, None] * hidden + unit[None, :]
        mask = (image < batch)[:, None] & unit_mask[None, :]
        # Rows are shares; each column is a pair of an image and a unit.
        column = tl.arange(0, IMAGES * UNITS)[None, :]
        column_image = start + column // UNITS
        column_unit = tl.program_id(0) * UNITS + column % UNITS
        column_mask = (column_image < batch) & (column_unit < hidden)
        pointers = scratch + column_image * hidden + column_unit
        total = tl.zeros([SHARES, IMAGES * UNITS], tl.float32)
        for first in range(0, head_blocks, SHARES):
            share = first + tl.arange(0, SHARES)[:, None]
            share_mask = (share < head_blocks) & column_mask
            total += tl.load(pointers + (share * batch).to(tl.int64) * hidden, mask=share_mask, other=0.0)
        grad = tl.reshape(tl.sum(total, 0), [IMAGES, UNITS])
        normalized = tl.load(state + place, mask=mask, other=0.0)
        values = normalized * factor[None, :] + shift[None, :]
        values = tl.where(values < 0, 0.0, values)
        scale_sums += grad * values * values
        offset_sums += grad
        grad = slope * values * grad
        weight_sums += grad * normalized
        bias_sums += grad
        if not TRAINING:
            grad = grad * (factor * inverse)[None, :]
        tl.store(hidden_grad + place, grad, mask=mask)
    weight_sums = tl.sum(weight_sums, 0)
    bias_sums = tl.sum(bias_sums, 0)
    if TRAINING:
        tl.debug_barrier()  # all threads of the program read what any of them has stored
        for start in range(0, batch, IMAGES):
            image = start + tl.arange(0, IMAGES)
            place = image[:, None] * hidden + unit[None, :]
            mask = (image < batch)[:, None] & unit_mask[None, :]
            normalized = tl.load(state + place, mask=mask, other=0.0)
            grad = tl.load(hidden_grad + place, mask=mask, other=0.0)
            grad = grad - (bias_sums[None, :] + normalized * weight_sums[None, :]) / batch
            tl.store(hidden_grad + place, grad * (factor * inverse)[None, :], mask=mask)
    tl.store(weight_grad + unit, weight_sums, mask=unit_mask)
    tl.store(bias_grad + unit, bias_sums, mask=unit_mask)
    tl.store(star_shares, tl.sum(tl.sum(scale_sums, 0), 0))
    tl.store(star_shares + tl.cdiv(hidden, UNITS), tl.sum(tl.sum(offset_sums, 0), 0))


@triton.jit(do_not_specialize=["batch", "head_blocks", "star_shares", "reduce_programs", "layer_programs"])
def backward_inputs(
    pooled, reduce, layer_weight, state, scratch, pooled_grad, reduce_grad, layer_weight_grad, layer_bias_grad,
    scale_grad, offset_grad, batch, channels, hidden, head_blocks, star_shares, reduce_programs, layer_programs,
    IMAGES: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ``reduce``, the local branch's normalization, StarReLU's parameters, and pooled.

    ``scratch`` is that of :func:`backward_heads`. Grid: for each block of channels, blocks of hidden units; then, with
    a local branch, blocks of channels; then, for each block of images, blocks of channels.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    hidden_grad = scratch + (head_blocks * batch).to(tl.int64) * hidden
    features_grad = hidden_grad + batch * hidden
    sums = features_grad + batch * channels
    statistics = state + 2 * batch * hidden + 2 * hidden
    if program < reduce_programs:
        parts = tl.cdiv(hidden, UNITS)
        _reduce_gradient(
            pooled, hidden_grad, reduce_grad, program // parts, program % parts, batch, channels, hidden,
            IMAGES, UNITS, CHANNELS,
        )  # fmt: skip
        if program == 0:
            share = tl.arange(0, CHANNELS)
            scale_sums = tl.zeros([CHANNELS], tl.float32)
            offset_sums = tl.zeros([CHANNELS], tl.float32)
            for first in range(0, star_shares, CHANNELS):
                mask = first + share < star_shares
                pointers = sums + 2 * batch + first + share
                scale_sums += tl.load(pointers, mask=mask, other=0.0)
                offset_sums += tl.load(pointers + star_shares, mask=mask, other=0.0)
            tl.store(scale_grad, tl.sum(scale_sums, 0))
            tl.store(offset_grad, tl.sum(offset_sums, 0))
    elif program < reduce_programs + layer_programs:
        _layer_gradients(
            pooled, features_grad, statistics, layer_weight_grad, layer_bias_grad,
            program - reduce_programs, batch, channels, IMAGES, CHANNELS,
        )  # fmt: skip
    else:
        program -= reduce_programs + layer_programs
        channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
        channel_mask = channel < channels
        image = program // blocks * IMAGES + tl.arange(0, IMAGES)
        place = image[:, None] * channels + channel[None, :]
        mask = (image < batch)[:, None] & channel_mask[None, :]
        products = tl.zeros([IMAGES, UNITS, CHANNELS], tl.float32)
        for first in range(0, hidden, UNITS):
            unit = first + tl.arange(0, UNITS)
            left_mask = (image < batch)[:, None] & (unit < hidden)[None, :]
            left = tl.load(hidden_grad + image[:, None] * hidden + unit[None, :], mask=left_mask, other=0.0)
            right_mask = (unit < hidden)[:, None] & channel_mask[None, :]
            right = tl.load(reduce + unit[:, None] * channels + channel[None, :], mask=right_mask, other=0.0)
            products += left[:, :, None] * right[None, :, :]
        grad = tl.sum(products, 1)
        if layer_programs > 0:
            center = tl.load(statistics + image, mask=image < batch, other=0.0)[:, None]
            inverse = tl.load(statistics + batch + image, mask=image < batch, other=0.0)[:, None]
            normalized = (tl.load(pooled + place, mask=mask, other=0.0) - center) * inverse
            first_mean = tl.load(sums + image, mask=image < batch, other=0.0)[:, None]
            second_mean = tl.load(sums + batch + image, mask=image < batch, other=0.0)[:, None]
            factor = tl.load(layer_weight + channel, mask=channel_mask, other=0.0)[None, :]
            local_grad = tl.load(features_grad + place, mask=mask, other=0.0) * factor
            grad += (local_grad - first_mean - normalized * second_mean) * inverse
        tl.store(pooled_grad + place, grad, mask=mask)


@triton.jit
def _reduce_gradient(
    pooled, hidden_grad, reduce_grad, block, part, batch, channels, hidden,
    IMAGES: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    unit = part * UNITS + tl.arange(0, UNITS)
    total = tl.zeros([UNITS, CHANNELS], tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        left_mask = (image < batch)[:, None] & (unit < hidden)[None, :]
        left = tl.load(hidden_grad + image[:, None] * hidden + unit[None, :], mask=left_mask, other=0.0)
        right_mask = (image < batch)[:, None] & (channel < channels)[None, :]
        right = tl.load(pooled + image[:, None] * channels + channel[None, :], mask=right_mask, other=0.0)
        total += tl.sum(left[:, :, None] * right[:, None, :], 0)
    mask = (unit < hidden)[:, None] & (channel < channels)[None, :]
    tl.store(reduce_grad + unit[:, None] * channels + channel[None, :], total, mask=mask)


@triton.jit
def _layer_gradients(
    pooled, features_grad, statistics, weight_grad, bias_grad, block, batch, channels,
    IMAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    weight_sums = tl.zeros([IMAGES, CHANNELS], tl.float32)
    bias_sums = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        place = image[:, None] * channels + channel[None, :]
        mask = (image < batch)[:, None] & (channel < channels)[None, :]
        center = tl.load(statistics + image, mask=image < batch, other=0.0)[:, None]
        inverse = tl.load(statistics + batch + image, mask=image < batch, other=0.0)[:, None]
        grad = tl.load(features_grad + place, mask=mask, other=0.0)
        weight_sums += grad * (tl.load(pooled + place, mask=mask, other=0.0) - center) * inverse
        bias_sums += grad
    tl.store(weight_grad + channel, tl.sum(weight_sums, 0), mask=channel < channels)
    tl.store(bias_grad + channel, tl.sum(bias_sums, 0), mask=channel < channels)
