"""The Triton kernels of :mod:`fdconv_zoo.ops.modulators_triton`.

Products are sums of float32 products, without tensor cores: tiles (images, rows, cols) are added up in registers.
No result depends on the order in which programs run.

``state`` holds, one after another: the normalized hidden units (B, h) and their activations (B, h); what their
normalization subtracts (h,) and multiplies by (h,); the same of the local branch's, (B,) and (B,).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["batch", "width", "hidden_blocks"])
def predict_hidden(
    pooled, reduce, weight, bias, mean, variance, count, star_scale, star_bias, layer_weight, layer_bias,
    state, windows, batch, channels, hidden, width, hidden_blocks, eps, momentum, layer_eps,
    TRAINING: tl.constexpr, IMAGES: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The hidden units of the global branch, and the windows of the local branch.

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
    values = tl.where(values < 0, 0.0, values)  # and NaN stays
    return scale * values * values + offset


@triton.jit(do_not_specialize=["batch", "kernel_size", "channel_size", "filter_size", "spatial_size"])
def predict_heads(
    state, kernel_weight, kernel_bias, kernel, channel_weight, channel_bias, channel,
    filter_weight, filter_bias, filter, spatial_weight, spatial_bias, spatial,
    batch, hidden, kernel_size, channel_size, filter_size, spatial_size, kernel_temperature, temperature,
    IMAGES: tl.constexpr, OUTPUTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The modulators of the global branch, ``scale * sigmoid((W @ hidden + bias) / temperature)``.

    Grid: blocks of outputs of the first head, of the second, ...; blocks of images. A head of size 0 is not there.
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
