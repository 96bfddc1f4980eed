"""Frequency Band Modulation without storing bands: image by image, with low-passes recomputed in the backward pass.

The ideal low-passes L_m are symmetric projections, so with D_m = A_{m+1} - A_m the gradients of
``y = A_1 * x + sum_m D_m * L_m(x)`` are

    dx = A_1 * dy + sum_m L_m(D_m * dy),    dD_m = sum over channels of dy * L_m(x),    dA_1 = ... of dy * x.

As the low-passes are nested, dx needs a single synthesis.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.bands_plain import LowPasses, count_passing, low_pass_basis
from fdconv_zoo.ops.operators import register_bands
from fdconv_zoo.ops.scratch import elements_at_once

_SMALL_MAP = 20 * 20  # positions up to which rows and columns are transformed at once


class _LowPasses(LowPasses):
    """Low-passes with the product that is fastest on a CPU."""

    def multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(N, H, W) times (W, V)."""
        # torch's convolutions (oneDNN) are two to three times as fast as its matrix products (MKL) on processors other
        # than Intel's, and no slower on Intel's.
        image = x.unsqueeze(0).permute(0, 3, 1, 2)  # W becomes the channels, innermost in memory
        return F.conv2d(image, matrix.T[:, :, None, None]).permute(0, 2, 3, 1).squeeze(0)


class _SmallLowPasses:
    """Low-passes for small maps, with rows and columns at once: one matrix product instead of many small ones.

    The coefficients are (N, P*Q), those of the lowest band first, so that those of a lower edge are a prefix here, too.

    Args:
        basis: (H*W, P*Q), as :func:`_plane_basis` orders it.
        size: (H, W).
        band_edges: M decreasing frequencies in cycles per sample.
    """

    def __init__(self, basis: Tensor, size: tuple[int, int], band_edges: Sequence[float]) -> None:
        self.basis, self.size = basis, size
        self.counts = [rows * cols for rows, cols in count_passing(size, band_edges)]

    def analyze(self, x: Tensor, band: int = 0) -> Tensor:
        """(N, H, W) to (N, P*Q)."""
        return x.flatten(1) @ self.basis[:, : self.counts[band]]

    def synthesize(self, coefficients: Tensor, band: int = 0) -> Tensor:
        """(N, P*Q) to (N, H, W)."""
        count = self.counts[band]
        return (coefficients[:, :count] @ self.basis[:, :count].T).unflatten(1, self.size)


# The bases are cached as NumPy arrays: a tensor created in one of torch's modes (inference, fake, ...) could not be
# used in all others.
@lru_cache(maxsize=256)
def _axis_basis(size: int, edge: float, dtype: torch.dtype) -> np.ndarray:
    return low_pass_basis(size, edge, device=torch.device("cpu"), dtype=dtype).numpy()


@lru_cache(maxsize=128)
def _plane_basis(size: tuple[int, int], band_edges: tuple[float, ...], dtype: torch.dtype) -> np.ndarray:
    """(H*W, P*Q): the products of the sinusoids of rows and columns, those that pass the most edges first."""
    rows, cols = (_axis_basis(length, band_edges[0], dtype) for length in size)
    row, col = np.arange(rows.shape[1])[:, None], np.arange(cols.shape[1])
    num_passed = sum(((row < p) & (col < q)).astype(int) for p, q in count_passing(size, band_edges))
    order = np.argsort(-num_passed.flatten(), kind="stable")
    basis = np.einsum("hp,wq->hwpq", rows, cols).reshape(size[0] * size[1], -1)
    return np.ascontiguousarray(basis[:, order])


def _low_passes(x: Tensor, band_edges: Sequence[float], dtype: torch.dtype) -> LowPasses | _SmallLowPasses:
    size, band_edges = tuple(x.shape[2:]), tuple(band_edges)
    if x.device.type != "cpu":
        # Computed on the device: a copy from the host would synchronize, and cannot be captured in a CUDA graph.
        bases = (low_pass_basis(n, band_edges[0], device=x.device, dtype=dtype) for n in size)
        return LowPasses(*bases, band_edges)
    if math.prod(size) <= _SMALL_MAP:
        return _SmallLowPasses(torch.from_numpy(_plane_basis(size, band_edges, dtype)), size, band_edges)
    return _LowPasses(*(torch.from_numpy(_axis_basis(n, band_edges[0], dtype)) for n in size), band_edges)


def _forward(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    low_passes = _low_passes(x, band_edges, attention.dtype)
    y, differences = torch.empty_like(x), _differences(attention)
    for images in _chunks(x):
        x_chunk = x[images].to(attention.dtype)
        y_chunk = attention[images, :1] * x_chunk
        coefficients = low_passes.analyze(x_chunk.flatten(0, 1))
        for band, difference in enumerate(differences[images].split(1, dim=1)):
            y_chunk.addcmul_(difference, low_passes.synthesize(coefficients, band).view(y_chunk.shape))
        y[images] = y_chunk
    return y


def _backward(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    low_passes = _low_passes(x, band_edges, attention.dtype)
    grad_x, grad_attention = torch.empty_like(x), torch.empty_like(attention)
    differences = _differences(attention)
    for images in _chunks(x):
        grad_x[images], grad_attention[images] = _backward_of_chunk(
            grad[images].to(attention.dtype),
            x[images].to(attention.dtype),
            attention[images, :1],
            differences[images].split(1, dim=1),
            low_passes,
        )
    return grad_x, grad_attention


def _backward_of_chunk(
    grad: Tensor, x: Tensor, highest: Tensor, differences: Sequence[Tensor], low_passes: LowPasses | _SmallLowPasses
) -> tuple[Tensor, Tensor]:
    """The gradients of x (b, C, H, W) and of attention (b, M, H, W); the maps of one band are (b, 1, H, W)."""
    coefficients = low_passes.analyze(x.flatten(0, 1))
    grad_coefficients = torch.zeros_like(coefficients)
    grad_attention = [(grad * x).sum(1)]
    for band, difference in enumerate(differences):
        sums = low_passes.synthesize(coefficients, band).view(grad.shape).mul_(grad).sum(1)
        grad_attention[-1] -= sums
        grad_attention.append(sums)
        part = low_passes.analyze((difference * grad).flatten(0, 1), band)
        grad_coefficients[tuple(map(slice, part.shape))] += part
    grad_x = low_passes.synthesize(grad_coefficients).view(grad.shape).addcmul_(highest, grad)
    return grad_x, torch.stack(grad_attention[:-1], dim=1)


def _chunks(x: Tensor) -> list[slice]:
    """The images to process at once."""
    step = max(elements_at_once(x.device.type) // math.prod(x.shape[1:]), 1)
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def _differences(attention: Tensor) -> Tensor:
    """D (B, M, H, W): the weight of the next band (1 after the lowest band) minus that of each band."""
    return torch.cat((attention[:, 1:] - attention[:, :-1], 1 - attention[:, -1:]), dim=1)


modulate_bands_rebuild = register_bands("rebuild", _forward, _backward)
