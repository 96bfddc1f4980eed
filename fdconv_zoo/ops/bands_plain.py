"""Band split: ideal low-passes of a feature map, and the weighted sum of the bands between them.

The pass band is a box in frequency (``max(|u|, |v|) < cutoff``), so an ideal low-pass is separable and real:
project the rows and the columns onto the sinusoids that pass. Two small matrix products replace a forward and an
inverse FFT. The sinusoids are ordered by frequency, so a lower cutoff is a prefix of a higher one and a single
analysis of the map serves all bands.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.context import is_free


def low_pass_basis(size: int, cutoff: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal sinusoids of ``size`` samples with a frequency strictly below ``cutoff``, lowest first.

    Args:
        size: number of samples.
        cutoff: cycles per sample, above 0 and at most 0.5.

    Returns:
        (size, 2*K + 1) with K the number of passing frequencies above 0: the constant, then a cosine and a sine
        for each frequency. ``basis @ basis.T`` is the ideal low-pass.
    """
    num_frequencies = _num_frequencies(size, cutoff)
    time = torch.arange(size, device=device)
    frequency = torch.arange(1, num_frequencies + 1, device=device)
    # The phase is reduced in integers, where it is exact: large angles lose digits in float32.
    cycles = (time[:, None] * frequency) % size
    angle = cycles.to(dtype) * (2 * math.pi / size)
    waves = torch.stack((angle.cos(), angle.sin()), dim=-1).flatten(1) * math.sqrt(2 / size)
    return torch.cat((waves.new_full((size, 1), math.sqrt(1 / size)), waves), dim=1)


def low_pass_projectors(
    size: Tensor | int, cutoffs: Sequence[float], *, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The ideal low-passes (size, size) themselves, for programs whose ``size`` is known only when they run.

    Their shapes, unlike the basis's, do not depend on how many sinusoids pass. Arguments: see :func:`low_pass_basis`.
    """
    time, length = _axis(size, device)
    frequency = torch.minimum(time, length - time)
    projectors = []
    for cutoff in cutoffs:
        passes = (frequency < cutoff * length.double() - 1e-9) | (frequency == 0)
        # In float64, since a cutoff can lie closer to a frequency than float32 resolves.
        projectors.append(_circulant(passes.double(), time, length).to(dtype))
    return projectors


def soft_low_pass(size: Tensor | int, edge: Tensor) -> Tensor:
    """A low-pass (size, size) that can be differentiated by its edge.

    Frequency f passes by ``1 / (1 + (f / edge)^8)``, the power that a Butterworth filter of order 4 lets through: all
    of 0, half at the edge, less than 0.4 % an octave above it. So it is as steep at every edge, in octaves.

    Args:
        size: number of samples.
        edge: (), in cycles per sample, above 0.
    """
    time, length = _axis(size, edge.device)
    frequency = torch.minimum(time, length - time).to(edge.dtype) / length.to(edge.dtype)
    # The same as a sigmoid: it neither overflows nor makes NaN of the gradient, for frequency 0 (log: -inf) as well.
    return _circulant(torch.sigmoid(8 * (edge.log() - frequency.log())), time, length)


def _axis(size: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor]:
    """0, 1, ..., size - 1, and the size itself as a tensor: exporters to ONNX know few operations on free sizes."""
    time = torch.arange(size, device=device)
    return time, torch.ones_like(time).sum()


def _circulant(response: Tensor, time: Tensor, length: Tensor) -> Tensor:
    """The filter (N, N) with a response (N,) to the frequencies 0, 1/N, ..., the same for f and 1 - f."""
    angle = torch.remainder(time[:, None] * time, length).to(response.dtype) * (2 * math.pi / length.to(response.dtype))
    impulse_response = (angle.cos() * response).sum(1) / length.to(response.dtype)
    return impulse_response[torch.remainder(time[:, None] - time, length)]


class LowPasses:
    """The ideal low-passes of a feature map (H, W) at falling cutoffs; one analysis of the map serves them all.

    Args:
        rows, cols: the sinusoids of H and of W samples that pass the first edge, as :func:`low_pass_basis` gives them.
        band_edges: M falling frequencies in cycles per sample.
    """

    def __init__(self, rows: Tensor, cols: Tensor, band_edges: Sequence[float]) -> None:
        self.rows, self.cols = rows, cols
        self.passing = count_passing((len(rows), len(cols)), band_edges)

    def analyze(self, x: Tensor, band: int = 0) -> Tensor:
        """The coefficients (N, P, Q) of the sinusoids that pass edge ``band`` in x (N, H, W)."""
        rows, cols = self.passing[band]
        return self.rows[:, :rows].T @ self.multiply(x, self.cols[:, :cols])

    def synthesize(self, coefficients: Tensor, band: int = 0) -> Tensor:
        """Low-pass at edge ``band``, (N, H, W), from the coefficients (N, P, Q) of that edge or a higher one."""
        rows, cols = self.passing[band]
        return self.multiply(self.rows[:, :rows] @ coefficients[:, :rows, :cols], self.cols[:, :cols].T)

    def multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(N, H, W) times (W, V): one product over the rows of all maps."""
        return x @ matrix


def modulate_bands_plain(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    """The plain path of :func:`fdconv_zoo.ops.modulate_bands`, differentiated by autograd.

    With the low-passes L_1, L_2, ... of x at the band edges, L_0 = x, and the lowest band unweighted, the sum is
    ``A_1 * x + sum_m (A_{m+1} - A_m) * L_m`` with A_{M+1} = 1.

    Arguments and result are those of :func:`fdconv_zoo.ops.modulate_bands`.
    """
    dtype, x = x.dtype, x.to(attention.dtype)
    factory = {"device": x.device, "dtype": x.dtype}
    height, width = x.shape[2:]
    if is_free(height) or is_free(width):
        rows, cols = (low_pass_projectors(size, band_edges, **factory) for size in (height, width))
        maps = (row @ (x @ col) for row, col in zip(rows, cols, strict=True))
    else:
        bases = (low_pass_basis(size, band_edges[0], **factory) for size in (height, width))
        low_passes = LowPasses(*bases, band_edges)
        coefficients = low_passes.analyze(x.flatten(0, 1))
        maps = (low_passes.synthesize(coefficients, band).view(x.shape) for band in range(len(band_edges)))
    return weigh_bands(x, attention, maps).to(dtype)


def modulate_bands_stretched(x: Tensor, attention: Tensor, band_edges: Sequence[float], mask_size: int) -> Tensor:
    """Frequency Band Modulation with the paper authors' masks: made at one size and stretched to the map's spectrum.

    Their pass bands are only right for maps of ``mask_size``; for checkpoints trained with their code.
    Arguments and result are those of :func:`modulate_bands_plain`, and ``mask_size``: the side of the square map that
    the masks are exact for.
    """
    if torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
        raise RuntimeError(
            'The exporter to ONNX that traces has no Fourier transform, which band_mask="reference" needs: export with '
            "torch.onnx.export(..., dynamo=True)."
        )
    height, width = x.shape[-2:]
    spectrum = torch.fft.rfft2(x)

    def low_pass(edge: float) -> Tensor:
        mask = _stretched_mask((height, width // 2 + 1), edge, mask_size, x.device)
        return torch.fft.irfft2(spectrum * mask, s=(height, width))

    return weigh_bands(x, attention, map(low_pass, band_edges))


def modulate_bands_softly(x: Tensor, attention: Tensor, edges: Tensor) -> Tensor:
    """Frequency Band Modulation with soft masks: :func:`soft_low_pass` along rows and columns.

    The bands between the low-passes sum up to x, whatever the edges. Arguments and result are those of
    :func:`modulate_bands_plain`, and ``edges``: (M,) in place of ``band_edges``, to be learned.
    """
    height, width = x.shape[2:]
    maps = (soft_low_pass(height, edge) @ (x @ soft_low_pass(width, edge)) for edge in edges.unbind())
    return weigh_bands(x, attention, maps)


def weigh_bands(x: Tensor, attention: Tensor, low_passes: Iterable[Tensor]) -> Tensor:
    """The sum of :func:`modulate_bands_plain` over the low-passes (B, C, H, W) of x, one at a time."""
    weights = attention.unsqueeze(2).unbind(1)
    result = weights[0] * x
    for low_pass, weight, next_weight in zip(low_passes, weights, (*weights[1:], 1.0), strict=True):
        result = result + (next_weight - weight) * low_pass
    return result


def count_passing(size: tuple[int, int], band_edges: Sequence[float]) -> list[tuple[int, int]]:
    """How many sinusoids of the rows and of the columns of a map (H, W) pass each edge."""
    return [tuple(2 * _num_frequencies(length, edge) + 1 for length in size) for edge in band_edges]


def _num_frequencies(size: int, cutoff: float) -> int:
    """How many of the frequencies 1/size, 2/size, ... lie below ``cutoff``."""
    # The small term keeps out k/size == cutoff where rounding has lifted the product above k, as in 0.2 * 35.
    return max(math.ceil(cutoff * size - 1e-9) - 1, 0)


def _stretched_mask(shape: tuple[int, int], cutoff: float, mask_size: int, device: torch.device) -> Tensor:
    """Boolean (rows, columns): the box mask of a ``mask_size`` map, resampled to ``shape`` by nearest neighbour."""
    row_passes = torch.fft.fftfreq(mask_size, device=device, dtype=torch.float64).abs() < cutoff
    col_passes = torch.fft.rfftfreq(mask_size, device=device, dtype=torch.float64) < cutoff
    rows, cols = (
        F.interpolate(passes[None, None].float(), size, mode="nearest")[0, 0].bool()
        for size, passes in zip(shape, (row_passes, col_passes), strict=True)
    )
    return rows[:, None] & cols
