"""A slow, literal FDConv in NumPy's double precision, written from the paper's equations: the tests' oracle.

It shares nothing with the package but the parameters' names: n separate inverse DFTs are summed, bands come from full
2-D FFTs and masks, every image is convolved by itself.
"""

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F


def sigmoid2(logit):
    return 2 / (1 + np.exp(-logit))


def frequency_groups(rows, cols, n):
    """Sort coefficients by exact radius, ties in row-major order; cut into n consecutive groups."""
    radius = {}
    for r in range(rows):
        for c in range(cols // 2 + 1):
            radius[r, c] = Fraction(min(r, rows - r), rows) ** 2 + Fraction(c, cols) ** 2
    order = sorted(radius, key=lambda rc: (radius[rc], rc))
    group = np.empty((rows, cols // 2 + 1), dtype=int)
    for rank, rc in enumerate(order):
        group[rc] = rank * n // len(order)
    return group


def disjoint_weight(spectrum, kernel_shape, n, attention):
    """sum_j attention_j * IDFT(group j), for one image. attention: (n,). -> (O, I, a, b)"""
    out_channels, in_channels, a, b = kernel_shape
    rows, cols = out_channels * a, in_channels * b
    scale = max(min(out_channels, in_channels) // 2, 1) * n
    coefficients = (spectrum[..., 0] + 1j * spectrum[..., 1]) * scale
    group = frequency_groups(rows, cols, n)
    plane = sum(attention[j] * np.fft.irfft2(np.where(group == j, coefficients, 0), s=(rows, cols)) for j in range(n))
    return plane.reshape(out_channels, a, in_channels, b).transpose(0, 2, 1, 3)


def frequencies(size):
    """|cycles a sample| of each DFT coefficient, correctly rounded (``np.fft.fftfreq`` is not)."""
    k = np.arange(size)
    return np.minimum(k, size - k) / size


def low_pass(x, cutoff):
    """Ideal low-pass of (C, H, W): keep max(|u|, |v|) < cutoff of the full 2-D spectrum."""
    height, width = x.shape[-2:]
    mask = np.maximum(frequencies(height)[:, None], frequencies(width)) < cutoff
    return np.fft.ifft2(np.fft.fft2(x) * mask).real


def band_modulation(x, weight, bias, edges):
    """x: (C, H, W). Bands between successive low-passes, each times its map; the lowest band as it is."""
    logits = F.conv2d(torch.from_numpy(x)[None], torch.from_numpy(weight), torch.from_numpy(bias), padding=1)[0].numpy()
    result, previous = np.zeros_like(x), x
    for m, edge in enumerate(edges):
        low = low_pass(x, edge)
        result += sigmoid2(logits[m]) * (previous - low)
        previous = low
    return result + previous


def global_modulators(p, pooled, temperature, kernel_temperature, n):
    """BatchNorm in evaluation mode."""
    z = p["global_branch.reduce.weight"] @ pooled
    z = (z - p["global_branch.norm.running_mean"]) / np.sqrt(p["global_branch.norm.running_var"] + 1e-5)
    z = z * p["global_branch.norm.weight"] + p["global_branch.norm.bias"]
    z = p["global_branch.act.scale"] * np.maximum(z, 0) ** 2 + p["global_branch.act.bias"]

    def head(name, temp):
        key = f"global_branch.{name}.weight"
        return sigmoid2((p[key] @ z + p[f"global_branch.{name}.bias"]) / temp) if key in p else None

    kernel = head("kernel", kernel_temperature)
    return {
        "kernel": np.full(n, 1 / n) if kernel is None else kernel / n,
        "channel": head("channel", temperature),
        "filter": head("filter", temperature),
        "spatial": head("spatial", temperature),
    }


def local_modulator(p, pooled, kernel_shape, groups):
    out_channels, in_per_group, a, b = kernel_shape
    in_channels = in_per_group * groups
    taps = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1
    assert p["local_branch.conv.weight"].shape == (out_channels * a * b, 1, taps)
    normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)
    normed = normed * p["local_branch.norm.weight"] + p["local_branch.norm.bias"]
    padded = np.pad(normed, taps // 2)
    weight = p["local_branch.conv.weight"].reshape(out_channels, a, b, taps)
    logit = np.zeros(kernel_shape)
    for o in range(out_channels):
        for i in range(in_per_group):
            channel = (o // (out_channels // groups)) * in_per_group + i
            logit[o, i] = weight[o] @ padded[channel : channel + taps]
    return sigmoid2(logit)


def assembled_kernel(layer, pooled):
    """The kernel (O, I/groups, a, b) of an FDConv layer in evaluation mode for pooled features (I,)."""
    params = {key: value.detach().double().numpy() for key, value in layer.state_dict().items()}
    ksm = {key.removeprefix("ksm."): value for key, value in params.items() if key.startswith("ksm.")}
    n, shape = layer.fdw.num_kernels, layer.fdw.kernel_shape
    mods = {"kernel": np.full(n, 1 / n), "channel": None, "filter": None, "spatial": None}
    if "global_branch.reduce.weight" in ksm:
        branch = layer.ksm.global_branch
        mods = global_modulators(ksm, pooled, branch.temperature, branch.kernel_temperature, n)
    kernel = disjoint_weight(params["fdw.spectrum"], shape, n, mods["kernel"])
    if "local_branch.conv.weight" in ksm:
        kernel = kernel * local_modulator(ksm, pooled, shape, layer.groups)
    if mods["filter"] is not None:
        kernel = kernel * mods["filter"][:, None, None, None]
    if mods["channel"] is not None:
        per_group = mods["channel"].reshape(layer.groups, shape[1])
        kernel = kernel * np.repeat(per_group, shape[0] // layer.groups, axis=0)[:, :, None, None]
    if mods["spatial"] is not None:
        kernel = kernel * mods["spatial"].reshape(shape[2:])
    return kernel


def fdconv2d(layer, x):
    """The output of an ``FDConv2d`` in evaluation mode for x (B, I, H, W), in double precision."""
    params = {key: value.detach().double().numpy() for key, value in layer.state_dict().items()}
    outputs = []
    for image in x.double().numpy():
        kernel = assembled_kernel(layer, image.mean((1, 2)))
        if layer.fbm is not None:
            attention = params["fbm.attention.weight"], params["fbm.attention.bias"]
            image = band_modulation(image, *attention, layer.fbm.band_edges)
        bias = torch.from_numpy(params["bias"]) if "bias" in params else None
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        outputs.append(F.conv2d(torch.from_numpy(image)[None], torch.from_numpy(kernel), bias, *geometry)[0])
    return torch.stack(outputs)
