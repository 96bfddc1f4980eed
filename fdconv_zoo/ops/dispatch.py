"""The two hot operations, each behind one signature for all its paths; the path is chosen here and nowhere else."""

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
    """Choose the path to take; all compute the same.

    - ``"triton"``: few launches, for float32 on CUDA devices. Kernels and bands are made for many images at once, and
      again in backward.
    - ``"native"``: C functions, for float32 on a CPU. Kernels are made image by image, and again in backward.
    - ``"rebuild"``: the same with torch's operations, on any device and in any type.
    - ``"plain"``: torch's operations on the whole batch, differentiated by autograd. Exported programs and what
      ``torch.func`` transforms consist of these, whatever is forced.

    Args:
        device: of the input.
        dtype: in which kernels or bands are computed.
        forced: the path to take where it is possible; None: the fastest.
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
        weights: FDW's, unmixed.
        modulators: KSM's, with local factors that are not assembled.
        geometry: of the convolution.
        path: see :func:`choose_path`.
        keeps_kernels: keep the kernels for backward, in x's dtype, where the path is ``"triton"`` and gradients are
            recorded. Other paths do as they always do.

    Returns:
        (B, O, H', W').
    """
    images_share_kernel = all(modulator is None for modulator in modulators)
    # The exporter to ONNX that traces does not know a computed kernel's shape, which a convolution needs.
    if images_share_kernel and not (torch.onnx.is_in_onnx_export() and torch.jit.is_tracing()):
        return F.conv2d(x, mix_spectrum(weights)[0].to(x.dtype), None, *geometry_arguments(geometry))
    modulators = modulators.to(weights.spectrum.dtype)
    path = choose_path(x.device, weights.spectrum.dtype, path)
    if keeps_kernels and path == "triton" and torch.is_grad_enabled():
        return convolve_triton_keeping(x, weights, modulators, geometry)
    return _CONVOLUTIONS[path](x, weights, modulators, geometry)


def modulate_bands(x: Tensor, attention: Tensor, band_edges: Sequence[float], path: Path | None = None) -> Tensor:
    """Frequency Band Modulation: ``sum_m A_m * band_m + rest`` (section 3.3), exact at every feature size.

    Where all weights are 1 this is x, bit for bit.

    Args:
        x: (B, C, H, W), of any floating type.
        attention: (B, M, H, W), the weight of each band at each pixel, highest band first; float32 or float64, which
            is what the bands are computed in.
        band_edges: M falling frequencies in cycles per sample; band m lies between edge m-1 (m > 0) and edge m.
        path: see :func:`choose_path`.

    Returns:
        (B, C, H, W), of x's type.
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
    """Turn logits into modulators, ``2 * sigmoid(logit / temperature) / count``, for each of some tensors.

    Args:
        logits: tensors of any shapes and floating types.
        temperatures, counts: for each of them.
        dtype: of the results.
        path: see :func:`choose_path`.
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
    """The ``width`` (odd) channels around each channel of x (B, C), 0 beyond the first and the last.

    Returns:
        (B, C, width), which may overlap in memory; path: see :func:`choose_path`.
    """
    return neighbors_triton(x, width) if choose_path(x.device, x.dtype, path) == "triton" else neighbors_plain(x, width)


def pool(x: Tensor, dtype: torch.dtype, path: Path | None = None) -> Tensor:
    """The mean of each channel of x (B, C, H, W), (B, C), computed in ``dtype``; path: see :func:`choose_path`."""
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
    """KSM at once, from the tensors of its modules: like pooled they are contiguous, on one device, in float32.

    Args:
        pooled: (B, C).
        tensors: of the global branch ``reduce`` (h, C), its normalization's weight and bias (h,), StarReLU's scale and
            bias (1,), and weight (factors, h) and bias (factors,) of the kernel, channel, filter and spatial heads; of
            the local branch its normalization's weight and bias (C,). None for each that is not there.
        statistics: of the global branch's normalization, running mean and variance (h,), and the number of batches
            they are of, (); None for each without the branch.
        numbers: the kernel head's temperature, that of the other heads, the epsilons of the two normalizations, and
            the momentum of the running statistics.
        sizes: T of the local branch (0 without it), G of its windows, and the kernel's a and b.
        batch_statistics: normalize by the statistics of the batch, and update the running ones; ``"triton"`` only.
        path: ``"triton"``, or without gradients ``"native"``.

    Returns:
        kernel (B, n), channel (B, C), filter (B, O), spatial (B, a, b) and windows (B, G, C/G, T), None for those that
        are not there.
    """
    if path == "triton":
        return predict_modulators_triton(pooled, tensors, statistics, numbers, sizes, batch_statistics)
    return predict_modulators_native(pooled, tensors, statistics, numbers, sizes)
