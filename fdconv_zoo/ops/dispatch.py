"""FDConv's performance-critical operations, each with one signature for all paths; only this module chooses paths."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops import native, triton_support
from fdconv_zoo.ops.bands_native import modulate_bands_native
from fdconv_zoo.ops.bands_plain import modulate_bands_plain
from fdconv_zoo.ops.bands_rebuild import modulate_bands_rebuild
from fdconv_zoo.ops.bands_triton import modulate_bands_triton
from fdconv_zoo.ops.context import is_exported, is_transformed
from fdconv_zoo.ops.convolution import Geometry, geometry_arguments
from fdconv_zoo.ops.kernels_native import convolve_native
from fdconv_zoo.ops.kernels_plain import DisjointWeights, KernelModulators, convolve_plain, mix_spectrum
from fdconv_zoo.ops.kernels_rebuild import convolve_rebuild
from fdconv_zoo.ops.kernels_triton import convolve_triton, convolve_triton_keeping
from fdconv_zoo.ops.modulation import (
    modulate_plain,
    modulate_triton,
    neighbors_plain,
    neighbors_triton,
    pool_plain,
    pool_triton,
    star_relu_plain,
    star_relu_triton,
)
from fdconv_zoo.ops.modulators_native import predict_modulators_native
from fdconv_zoo.ops.modulators_triton import predict_modulators_triton

Path = Literal["plain", "rebuild", "native", "triton"]

_CONVOLUTIONS = {
    "plain": convolve_plain,
    "rebuild": convolve_rebuild,
    "native": convolve_native,
    "triton": convolve_triton,
}
_BANDS = {
    "plain": modulate_bands_plain,
    "rebuild": modulate_bands_rebuild,
    "native": modulate_bands_native,
    "triton": modulate_bands_triton,
}


def choose_path(device: torch.device, dtype: torch.dtype, forced: Path | None = None) -> Path:
    """Choose the path to take; all paths compute the same.

    - ``"triton"``: Triton kernels, with few launches, for float32 on CUDA devices. Convolution kernels and bands are
      computed for many images at once, and again in the backward pass.
    - ``"native"``: C functions, for float32 on a CPU. Kernels are assembled image by image, and again in the backward
      pass.
    - ``"rebuild"``: like ``"native"``, but with torch's operations, on any device and in any dtype.
    - ``"plain"``: torch's operations on the whole batch, differentiated by autograd. Exported programs and functions
      that ``torch.func`` transforms always take this path, even if another one is forced.

    Args:
        device: device of the input.
        dtype: dtype in which kernels or bands are computed.
        forced: the path to take. If ``"triton"`` or ``"native"`` is not available, the path is ``"native"`` or
            ``"rebuild"`` instead. None takes the fastest path.
    """
    if is_exported() or is_transformed():
        return "plain"
    is_triton = forced == "triton" or (forced is None and device.type == "cuda")
    if is_triton and dtype == torch.float32 and _has_triton(device.type):
        return "triton"
    if forced in (None, "native", "triton"):
        is_native = device.type == "cpu" and dtype == torch.float32 and _has_native_code()
        return "native" if is_native else "rebuild"
    return forced


@torch.compiler.assume_constant_result
def _has_native_code() -> bool:
    return native.library() is not None


@torch.compiler.assume_constant_result
def _has_triton(device_type: str) -> bool:
    problem = triton_support.problem(device_type)
    if problem is not None:
        triton_support.warn_once(problem)
    return problem is None


def dynamic_convolution(
    x: Tensor,
    *,
    weights: DisjointWeights,
    modulators: KernelModulators,
    geometry: Geometry,
    path: Path | None = None,
    keeps_kernels: bool = False,
) -> Tensor:
    """Assemble the kernel of every image and convolve the image with it.

    Args:
        x: (B, G*I, H, W); the kernels are applied in its dtype.
        weights: the weights of FDW, before mixing.
        modulators: the predictions of KSM; ``local`` is a :class:`LocalFactors` or None.
        geometry: settings of the convolution.
        path: see :func:`choose_path`.
        keeps_kernels: keep the kernels for the backward pass, in x's dtype, instead of assembling them again. This
            affects only the path ``"triton"``, while gradients are recorded.

    Returns:
        (B, O, H', W').

    Raises:
        RuntimeError: the input is smaller than the kernel, even with padding.
    """
    images_share_kernel = all(modulator is None for modulator in modulators)
    # The tracing ONNX exporter does not know the shape of a computed kernel, which a convolution needs.
    if images_share_kernel and not (torch.onnx.is_in_onnx_export() and torch.jit.is_tracing()):
        return F.conv2d(x, mix_spectrum(weights)[0].to(x.dtype), None, *geometry_arguments(geometry))
    modulators = modulators.to(weights.spectrum.dtype)
    path = choose_path(x.device, weights.spectrum.dtype, path)
    if keeps_kernels and path == "triton" and torch.is_grad_enabled():
        return convolve_triton_keeping(x, weights, modulators, geometry)
    return _CONVOLUTIONS[path](x, weights, modulators, geometry)


def modulate_bands(x: Tensor, attention: Tensor, band_edges: Sequence[float], path: Path | None = None) -> Tensor:
    """Frequency Band Modulation: ``sum_m A_m * band_m + rest`` (section 3.3), exact at every feature size.

    If all weights are 1, the result equals x bit for bit.

    Args:
        x: (B, C, H, W), in any floating-point dtype.
        attention: (B, M, H, W), the weight of each band at each pixel, highest band first; float32 or float64. The
            bands are computed in its dtype.
        band_edges: M decreasing frequencies in cycles per sample; band m lies between edge m-1 (m > 0) and edge m.
        path: see :func:`choose_path`.

    Returns:
        (B, C, H, W), in x's dtype.
    """
    path = choose_path(x.device, attention.dtype, path)
    return _BANDS[path](x, attention, band_edges)


def modulate(
    logits: Sequence[Tensor],
    temperatures: Sequence[float],
    counts: Sequence[int],
    dtype: torch.dtype,
    path: Path | None = None,
) -> list[Tensor]:
    """Turn each tensor of logits into modulators, ``2 * sigmoid(logit / temperature) / count``.

    Args:
        logits: tensors of any shapes and floating-point dtypes.
        temperatures, counts: one number for each tensor.
        dtype: dtype of the results.
        path: see :func:`choose_path`.

    Returns:
        The modulators, one tensor for each of ``logits``, with its shape.
    """
    if choose_path(logits[0].device, dtype, path) == "triton":
        return modulate_triton(logits, temperatures, counts)
    return modulate_plain(logits, temperatures, counts, dtype)


def star_relu(x: Tensor, scale: Tensor, bias: Tensor, path: Path | None = None) -> Tensor:
    """``scale * relu(x)^2 + bias``, with scale and bias of shape (1,); path: see :func:`choose_path`."""
    if x.dtype == scale.dtype == bias.dtype and choose_path(x.device, x.dtype, path) == "triton":
        return star_relu_triton(x, scale, bias)
    return star_relu_plain(x, scale, bias)


def neighbors(x: Tensor, width: int, path: Path | None = None) -> Tensor:
    """Collect the channels around each channel, with zeros beyond the first and the last.

    Args:
        x: (B, C).
        width: number of channels to collect, odd.
        path: see :func:`choose_path`.

    Returns:
        (B, C, width), which may overlap in memory.
    """
    return neighbors_triton(x, width) if choose_path(x.device, x.dtype, path) == "triton" else neighbors_plain(x, width)


def pool(x: Tensor, dtype: torch.dtype, path: Path | None = None) -> Tensor:
    """Average each channel of x (B, C, H, W) to (B, C), computed in ``dtype``; path: see :func:`choose_path`."""
    return pool_triton(x) if choose_path(x.device, dtype, path) == "triton" else pool_plain(x, dtype)


def predict_modulators(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    numbers: Sequence[float],
    sizes: Sequence[int],
    *,
    batch_statistics: bool,
    path: Path,
) -> list[Tensor | None]:
    """Predict all of KSM's modulators in one call, from the tensors of its modules.

    All tensors are contiguous, in float32 and on one device.

    Args:
        pooled: (B, C), the mean of each channel.
        tensors: for the global branch, the weight of ``reduce`` (h, C), weight and bias (h,) of its normalization,
            StarReLU's scale and bias (1,), and weight (factors, h) and bias (factors,) of the kernel, channel, filter
            and spatial heads in turn; then for the local branch, weight and bias (C,) of its normalization. None in
            place of each missing tensor.
        statistics: for the global branch's normalization, the running mean and variance (h,), and the number of batches
            that they were computed from, (); all None without a global branch.
        numbers: temperature of the kernel head, temperature of the other heads, the epsilons of the two normalizations,
            and the momentum of the running statistics.
        sizes: number of taps T of the local branch (0 without it), its number of groups G, and the kernel's a and b.
        batch_statistics: normalize by the statistics of the batch, and update the running statistics. Only ``"triton"``
            supports this.
        path: ``"triton"``, or ``"native"`` if no gradients are needed.

    Returns:
        kernel (B, n), channel (B, C), filter (B, O), spatial (B, a, b) and windows (B, G, C/G, T). A missing modulator
        is None.
    """
    if path == "triton":
        return predict_modulators_triton(pooled, tensors, statistics, numbers, sizes, batch_statistics)
    return predict_modulators_native(pooled, tensors, statistics, numbers, sizes)
