"""Frequency Band Modulation for GPUs: all bands at once, in four launches forward and four or five backward.

Columns are transformed with a basis of sinusoids. Rows are multiplied by the low-passes themselves, which takes little
more arithmetic than a basis, and one pass less. The bases are computed on the device in every call: a launch costs less
than a cache that would have to handle CUDA graphs, other modes of torch, and memory for sizes that occur only once.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fdconv_zoo.ops.bands_plain import count_passing
from fdconv_zoo.ops.image_convolution import is_channels_last
from fdconv_zoo.ops.operators import register_bands
from fdconv_zoo.ops.triton_support import cdiv, is_interpreted, on_device_of, power_of_two, triton, with_fallback

if triton is not None:
    import triton.language as tl

    from fdconv_zoo.ops import bands_jit

_BLOCK = 64  # the largest side of a block; twice that for rows of bfloat16
_INNER_BLOCK = 32  # the length over which a product sums at once; twice that for bfloat16
_PADDING = 128  # a multiple of all sides of blocks
_IMAGES_AT_ONCE = 2**15  # the axes of a grid are limited
_ELEMENTS_AT_ONCE = 2**24  # of feature maps; several float32 tensors of this size exist at the same time


class _Bands:
    """Launches the kernels for one size of feature map."""

    def __init__(self, x: Tensor, band_edges: Sequence[float]) -> None:
        _, self.channels, self.height, self.width = x.shape
        self.num_bands = len(band_edges)
        rows, cols = zip(*count_passing((self.height, self.width), band_edges), strict=True)
        self.passing, self.num_waves = cols, cols[0]
        # For bfloat16 maps, coefficients and factors are bfloat16; together they round about as much as the result
        # itself. Otherwise they are float32, and tensor cores compute each product as three of lower precision: as
        # accurate as float32 for float32 maps, and more accurate than the maps themselves for float16. The interpreter
        # does not multiply bfloat16.
        is_bfloat16 = x.dtype == torch.bfloat16
        self.coefficient_dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        self.options = {
            "BANDS": self.num_bands,
            "DTYPE": tl.bfloat16 if is_bfloat16 and not is_interpreted() else tl.float32,
            "PRECISION": "bf16x3" if x.dtype == torch.float16 and not is_interpreted() else "tf32x3",
        }
        self.inner_block = 2 * _INNER_BLOCK if is_bfloat16 else _INNER_BLOCK
        self.cols_block = power_of_two(self.width, 16, _BLOCK)
        self.waves_block = power_of_two(self.num_waves, 16, _BLOCK)
        self.channels_block = power_of_two(self.channels, 16, _BLOCK)
        padded = [cdiv(size, _PADDING) * _PADDING for size in (self.height, self.width, self.num_waves)]
        self.padded_height, padded_width, self.padded_waves = padded
        self.sizes = (self.channels, self.height, self.width, self.num_waves, self.padded_waves)
        self.basis = self._empty_coefficients(x, padded_width, self.padded_waves)
        self.projectors = self._empty_coefficients(x, self.num_bands, self.padded_height, self.padded_height)
        block = 256
        grid = (cdiv(padded_width * self.padded_waves, block) + cdiv(self.padded_height**2, block),)
        bands_jit.make_bases[grid](
            self.basis,
            self.projectors,
            self.height,
            self.width,
            self.num_waves,
            *padded,
            rows,
            BANDS=self.num_bands,
            BLOCK=block,
        )

    def low_pass(self, x: Tensor, grad: Tensor | None, attention: Tensor) -> Tensor:
        """Compute the coefficients (M, b, H, Q, C) of the parts of x between the edges.

        With ``grad``, there is one more, (M + 1, b, H, Q, C): the sum of the low-passes of the weighted gradient. The
        coefficients of sinusoids that do not pass their edge are not set.
        """
        batch, num_bands = len(x), self.num_bands
        num_sources = 1 if grad is None else 1 + num_bands
        grad = x if grad is None else grad
        coefficients = self._empty_coefficients(x, num_sources, batch, self.height, self.num_waves, self.channels)
        channel_blocks = cdiv(self.channels, self.channels_block)
        grid = (cdiv(self.num_waves, self.waves_block) * channel_blocks * batch * self.height, num_sources)
        bands_jit.analyze[grid](
            x,
            grad,
            attention,
            self.basis,
            coefficients,
            *self.sizes,
            self.passing,
            *x.stride(),
            *grad.stride(),
            coefficients.stride(0),
            WAVES=self.waves_block,
            CHANNELS=self.channels_block,
            COLS=power_of_two(self.width, 16, self.inner_block),
            **self.options,
        )
        num_sums = int(num_sources > 1)
        results = self._empty_coefficients(x, num_bands + num_sums, batch, self.height, self.num_waves, self.channels)
        rows = power_of_two(self.height, 16, 2 * self.inner_block)
        columns = power_of_two(self.num_waves * self.channels, 16, _BLOCK)
        grid = (cdiv(self.height, rows) * cdiv(self.num_waves * self.channels, columns), batch, 1 + num_sums)
        bands_jit.project[grid](
            coefficients,
            self.projectors,
            results,
            self.channels,
            self.height,
            self.padded_height,
            self.num_waves,
            self.passing,
            coefficients.stride(0),
            ROWS=rows,
            COEFFICIENTS=columns,
            INNER=power_of_two(self.height, 16, self.inner_block),
            **self.options,
        )
        return results

    def weigh(self, x: Tensor, attention: Tensor, y: Tensor) -> None:
        """Write the weighted sum of the bands to y, which has x's strides."""
        coefficients = self.low_pass(x, None, attention)
        bands_jit.synthesize[self._synthesis_grid(x)](
            x,
            attention,
            coefficients,
            self.basis,
            y,
            *self.sizes,
            self.passing,
            *x.stride(),
            coefficients.stride(0),
            **self._synthesis_blocks(),
        )

    def weigh_backward(
        self, grad: Tensor, x: Tensor, attention: Tensor, grad_x: Tensor, grad_attention: Tensor
    ) -> None:
        """Write the gradients of x, with x's strides, and of attention."""
        coefficients = self.low_pass(x, grad, attention)
        shares = cdiv(self.channels, self.channels_block)
        sums = grad_attention[None] if shares == 1 else attention.new_empty(shares, *attention.shape)
        bands_jit.synthesize_backward[self._synthesis_grid(x)](
            grad,
            x,
            attention,
            coefficients,
            self.basis,
            grad_x,
            sums,
            *self.sizes,
            self.passing,
            *x.stride(),
            *grad.stride(),
            coefficients.stride(0),
            sums.stride(0),
            **self._synthesis_blocks(),
        )
        if shares > 1:
            torch.sum(sums, 0, out=grad_attention)

    def _synthesis_grid(self, x: Tensor) -> tuple[int]:
        blocks = cdiv(self.width, self.cols_block) * cdiv(self.channels, self.channels_block)
        return (blocks * len(x) * self.height,)

    def _synthesis_blocks(self) -> dict[str, Any]:
        return {
            "COLS": self.cols_block,
            "CHANNELS": self.channels_block,
            "WAVES": power_of_two(self.num_waves, 16, self.inner_block),
            **self.options,
        }

    def _empty_coefficients(self, x: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.coefficient_dtype, device=x.device)


def _forward(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    dense, attention = _dense(x), attention.contiguous()
    y = torch.empty_like(dense)
    with on_device_of(x):
        bands = _Bands(dense, band_edges)
        for images in _chunks(x):
            bands.weigh(dense[images], attention[images], y[images])
    return y


def _backward(grad: Tensor, x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> tuple[Tensor, Tensor]:
    dense, attention = _dense(x), attention.contiguous()
    grad_x, grad_attention = torch.empty_like(dense), torch.empty_like(attention)
    with on_device_of(x):
        bands = _Bands(dense, band_edges)
        for images in _chunks(x):
            bands.weigh_backward(grad[images], dense[images], attention[images], grad_x[images], grad_attention[images])
    return grad_x, grad_attention


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _chunks(x: Tensor) -> list[slice]:
    """The images to process at once."""
    step = min(max(_ELEMENTS_AT_ONCE // math.prod(x.shape[1:]), 1), _IMAGES_AT_ONCE)
    return [slice(start, start + step) for start in range(0, len(x), step)]


modulate_bands_triton = register_bands(
    "triton",
    with_fallback(_forward, torch.ops.fdconv_zoo.modulate_bands_rebuild),
    with_fallback(_backward, torch.ops.fdconv_zoo.modulate_bands_rebuild_backward),
)
