"""Frequency Band Modulation without keeping bands: image by image, the low-passes rebuilt in backward.

The ideal low-passes L_m are symmetric projections, so with D_m = A_{m+1} - A_m the gradients of
``y = A_1 * x + sum_m D_m * L_m(x)`` are

    dx = A_1 * dy + sum_m L_m(D_m * dy),    dD_m = sum over channels of dy * L_m(x),    dA_1 = ... of dy * x.

As the low-passes are nested, dx needs a single synthesis.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fdconv_zoo.ops.band_split import LowPasses


def modulate_bands_image_by_image(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    """:func:`fdconv_zoo.ops.modulate_bands` with less memory and time; its arguments and result.

    x may be of lower precision than ``attention``, which decides what is computed in; the result is of x's.
    Differentiable once.
    """
    height, width = x.shape[2:]
    low_passes = _low_passes(height, width, tuple(band_edges), x.device, attention.dtype)
    if not torch.is_grad_enabled():
        return _forward(x, attention, low_passes)
    return _ImageByImage.apply(x, attention, low_passes)


@lru_cache(maxsize=128)
def _low_passes(
    height: int, width: int, band_edges: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> LowPasses:
    with torch.inference_mode(False), torch.no_grad():  # it may be used in training later
        return LowPasses(height, width, band_edges, device=device, dtype=dtype)


class _ImageByImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, attention: Tensor, low_passes: LowPasses) -> Tensor:
        ctx.save_for_backward(x, attention)
        ctx.low_passes = low_passes
        return _forward(x, attention, low_passes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, attention = ctx.saved_tensors
        grad_x, grad_attention = torch.empty_like(x), torch.empty_like(attention)
        differences = _differences(attention)
        for image, (some_x, some_grad) in enumerate(zip(x, grad, strict=True)):
            grad_x[image], grad_attention[image] = _backward(
                some_grad.to(attention.dtype),
                some_x.to(attention.dtype),
                attention[image, 0],
                differences[image],
                ctx.low_passes,
            )
        return grad_x, grad_attention, None


def _differences(attention: Tensor) -> Tensor:
    """D (B, M, H, W): of each band's weight to the next band's, 1 for the lowest."""
    return torch.cat((attention[:, 1:] - attention[:, :-1], 1 - attention[:, -1:]), dim=1)


def _forward(x: Tensor, attention: Tensor, low_passes: LowPasses) -> Tensor:
    y, differences = torch.empty_like(x), _differences(attention)
    for image, some_x in enumerate(x):
        some_x = some_x.to(attention.dtype)
        result = attention[image, 0] * some_x
        coefficients = low_passes.analyze(some_x)
        for band, difference in enumerate(differences[image]):
            result.addcmul_(difference, low_passes.synthesize(coefficients, band))
        y[image] = result
    return y


def _backward(
    grad: Tensor, x: Tensor, highest: Tensor, differences: Tensor, low_passes: LowPasses
) -> tuple[Tensor, Tensor]:
    """The gradients of x (C, H, W) and of attention (M, H, W), for one image."""
    coefficients = low_passes.analyze(x)
    grad_coefficients = torch.zeros_like(coefficients)
    grad_attention = [(grad * x).sum(0)]
    for band, difference in enumerate(differences):
        sums = (low_passes.synthesize(coefficients, band) * grad).sum(0)
        grad_attention[-1] -= sums
        grad_attention.append(sums)
        part = low_passes.analyze(difference * grad, band)
        grad_coefficients[:, : part.shape[1], : part.shape[2]] += part
    grad_x = low_passes.synthesize(grad_coefficients).addcmul_(highest, grad)
    return grad_x, torch.stack(grad_attention[:-1])
