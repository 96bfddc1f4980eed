"""Frequency Band Modulation without keeping bands: image by image, the low-passes rebuilt in backward.

The ideal low-passes L_m are symmetric projections, so with D_m = A_{m+1} - A_m the gradients of
``y = A_1 * x + sum_m D_m * L_m(x)`` are

    dx = A_1 * dy + sum_m L_m(D_m * dy),    dD_m = sum over channels of dy * L_m(x),    dA_1 = ... of dy * x.

As the low-passes are nested, dx needs a single synthesis.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.bands_plain import LowPasses
from fdconv_zoo.ops.path import refuse_second_derivative
from fdconv_zoo.ops.scratch import elements_at_once

_SMALL_MAP = 20 * 20  # positions up to which rows and columns are transformed at once


def modulate_bands_image_by_image(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    """:func:`fdconv_zoo.ops.modulate_bands`; its arguments and result. Differentiable once."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _operator(x, attention, band_edges)
    return _forward(x, attention, band_edges)


class _LowPasses(LowPasses):
    """With the product that is fastest where the map is."""

    def multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(N, H, W) times (W, V)."""
        if x.device.type != "cpu":
            return x @ matrix
        # The library behind torch's convolutions multiplies two to three times as fast as the one behind its matrix
        # products on processors that the latter's maker has not made, and no slower on others.
        image = x.unsqueeze(0).permute(0, 3, 1, 2)  # W are the channels, last in memory
        return F.conv2d(image, matrix.T[:, :, None, None]).permute(0, 2, 3, 1).squeeze(0)


class _SmallLowPasses(LowPasses):
    """The same for small maps, rows and columns at once: one matrix product instead of many tiny ones.

    The coefficients are (N, P*Q), those of the lowest band first, so that here too a lower edge takes a prefix.
    """

    def __init__(
        self, height: int, width: int, band_edges: Sequence[float], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(height, width, band_edges, device=device, dtype=dtype)
        (num_rows, num_cols) = self.passing[0]
        row, col = torch.arange(num_rows, device=device)[:, None], torch.arange(num_cols, device=device)
        num_passed = sum(((row < rows) & (col < cols)).long() for rows, cols in self.passing)
        order = num_passed.flatten().argsort(descending=True, stable=True)
        basis = torch.einsum("hp,wq->hwpq", self.rows, self.cols).flatten(2).flatten(0, 1)
        self.basis = basis[:, order].contiguous()  # (H*W, P*Q)
        self.counts = [rows * cols for rows, cols in self.passing]

    def analyze(self, x: Tensor, band: int = 0) -> Tensor:
        """(N, H, W) to (N, P*Q)."""
        return x.flatten(1) @ self.basis[:, : self.counts[band]]

    def synthesize(self, coefficients: Tensor, band: int = 0) -> Tensor:
        """(N, P*Q) to (N, H, W)."""
        count = self.counts[band]
        return (coefficients[:, :count] @ self.basis[:, :count].T).unflatten(1, self.size)


@lru_cache(maxsize=128)
def _low_passes(
    height: int, width: int, band_edges: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> LowPasses:
    kind = _SmallLowPasses if height * width <= _SMALL_MAP else _LowPasses
    with torch.inference_mode(False), torch.no_grad():  # training may use it later
        return kind(height, width, band_edges, device=device, dtype=dtype)


def _forward(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    low_passes = _low_passes(*x.shape[2:], tuple(band_edges), x.device, attention.dtype)
    y, differences = torch.empty_like(x), _differences(attention)
    for images in _chunks(x):
        some_x = x[images].to(attention.dtype)
        result = attention[images, :1] * some_x
        coefficients = low_passes.analyze(some_x.flatten(0, 1))
        for band, difference in enumerate(differences[images].split(1, dim=1)):
            result.addcmul_(difference, low_passes.synthesize(coefficients, band).view(result.shape))
        y[images] = result
    return y


def _backward(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    low_passes = _low_passes(*x.shape[2:], tuple(band_edges), x.device, attention.dtype)
    grad_x, grad_attention = torch.empty_like(x), torch.empty_like(attention)
    differences = _differences(attention)
    for images in _chunks(x):
        grad_x[images], grad_attention[images] = _backward_of_images(
            grad[images].to(attention.dtype),
            x[images].to(attention.dtype),
            attention[images, :1],
            differences[images].split(1, dim=1),
            low_passes,
        )
    return grad_x, grad_attention


def _backward_of_images(
    grad: Tensor, x: Tensor, highest: Tensor, differences: Sequence[Tensor], low_passes: LowPasses
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
    """The images that are worked on at once."""
    step = max(elements_at_once(x.device.type) // math.prod(x.shape[1:]), 1)
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def _differences(attention: Tensor) -> Tensor:
    """D (B, M, H, W): of each band's weight to the next band's, 1 for the lowest."""
    return torch.cat((attention[:, 1:] - attention[:, :-1], 1 - attention[:, -1:]), dim=1)


# One opaque operator for torch.compile, for the reason given beside the one for the kernels.
_operator = torch.library.custom_op(
    "fdconv_zoo::modulate_bands",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor attention, float[] band_edges) -> Tensor",
)
_backward_operator = torch.library.custom_op(
    "fdconv_zoo::modulate_bands_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor attention, float[] band_edges) -> (Tensor, Tensor)",
)


@_operator.register_fake
def _(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    return torch.empty_like(x)


@_backward_operator.register_fake
def _(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(attention)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.band_edges = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward_operator(grad, *ctx.saved_tensors, ctx.band_edges), None


_operator.register_autograd(_differentiate, setup_context=_setup_context)
_backward_operator.register_autograd(refuse_second_derivative)
