"""Band split: ideal low-passes of a feature map, and the weighted sum of the bands between them.

The pass band is a box in frequency (``max(|u|, |v|) < cutoff``), so an ideal low-pass is separable and real:
project the rows and the columns onto the sinusoids that pass. Two small matrix products replace a forward and an
inverse FFT. The sinusoids are ordered by frequency, so those of a lower cutoff are a prefix of those of a higher one,
and the feature map is analyzed once for all bands.
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
        device, dtype: device and dtype of the result.

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
    """The ideal low-passes as matrices (size, size), one for each cutoff, for programs with a dynamic ``size``.

    Unlike the shape of a basis, theirs does not depend on how many sinusoids pass. For the arguments, see
    :func:`low_pass_basis`.
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
    """A low-pass (size, size) that is differentiable with respect to its edge.

    The response to frequency f is ``1 / (1 + (f / edge)^8)``, the power response of a Butterworth filter of order 4: 1
    at frequency 0, 1/2 at the edge, and less than 0.4 % one octave above it. In octaves, all edges are equally steep.

    Args:
        size: number of samples.
        edge: (), in cycles per sample, above 0.
    """
    time, length = _axis(size, edge.device)
    frequency = torch.minimum(time, length - time).to(edge.dtype) / length.to(edge.dtype)
    # Written as a sigmoid, which does not overflow and has no NaN gradient, even at frequency 0, whose log is -inf.
    return _circulant(torch.sigmoid(8 * (edge.log() - frequency.log())), time, length)


def _axis(size: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor]:
    """0, 1, ..., size - 1, and the size as a tensor: ONNX exporters support few operations on dynamic sizes."""
    time = torch.arange(size, device=device)
    return time, torch.ones_like(time).sum()


def _circulant(response: Tensor, time: Tensor, length: Tensor) -> Tensor:
    """The filter (N, N) with the response (N,) to the frequencies 0, 1/N, ..., which is equal for f and 1 - f."""
    angle = torch.remainder(time[:, None] * time, length).to(response.dtype) * (2 * math.pi / length.to(response.dtype))
    impulse_response = (angle.cos() * response).sum(1) / length.to(response.dtype)
    return impulse_response[torch.remainder(time[:, None] - time, length)]


class LowPasses:
    """The ideal low-passes of a feature map (H, W) at decreasing cutoffs; the map is analyzed once for all of them.

    Args:
        rows, cols: the sinusoids of H and W samples that pass the first edge, as returned by :func:`low_pass_basis`.
        band_edges: M decreasing frequencies in cycles per sample.
    """

    def __init__(self, rows: Tensor, cols: Tensor, band_edges: Sequence[float]) -> None:
        self.rows, self.cols = rows, cols
        self.passing = count_passing((len(rows), len(cols)), band_edges)

    def analyze(self, x: Tensor, band: int = 0) -> Tensor:
        """Compute the coefficients (N, P, Q) of x (N, H, W) for the sinusoids that pass edge ``band``."""
        rows, cols = self.passing[band]
        return self.rows[:, :rows].T @ self.multiply(x, self.cols[:, :cols])

    def synthesize(self, coefficients: Tensor, band: int = 0) -> Tensor:
        """Compute the low-pass (N, H, W) at edge ``band`` from coefficients (N, P, Q) of that edge or a higher one."""
        rows, cols = self.passing[band]
        return self.multiply(self.rows[:, :rows] @ coefficients[:, :rows, :cols], self.cols[:, :cols].T)

    def multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Multiply (N, H, W) by (W, V): one product over the rows of all maps."""
        return x @ matrix


def modulate_bands_plain(x: Tensor, attention: Tensor, band_edges: Sequence[float]) -> Tensor:
    """The plain path of :func:`fdconv_zoo.ops.modulate_bands`, differentiated by autograd.

    With the low-passes L_1, L_2, ... of x at the band edges, L_0 = x, and the lowest band unweighted, the sum is
    ``A_1 * x + sum_m (A_{m+1} - A_m) * L_m`` with A_{M+1} = 1.

    The arguments and the result are those of :func:`fdconv_zoo.ops.modulate_bands`.
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
    """Frequency Band Modulation with the paper authors' masks, which are stretched to the size of the map's spectrum.

    The pass bands are correct only for maps of ``mask_size``. Use this for checkpoints trained with the authors' code.
    The arguments and the result are those of :func:`modulate_bands_plain`, with ``mask_size``, the side of the square
    map for which the masks are exact.

    Raises:
        RuntimeError: the model is exported with the tracing ONNX exporter.
    """
    if torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
        raise RuntimeError(
            'The tracing ONNX exporter does not support Fourier transforms, which band_mask="reference" needs: export '
            "with torch.onnx.export(..., dynamo=True)."
        )
    height, width = x.shape[-2:]
    spectrum = torch.fft.rfft2(x)

    def low_pass(edge: float) -> Tensor:
        mask = _stretched_mask((height, width // 2 + 1), edge, mask_size, x.device)
        return torch.fft.irfft2(spectrum * mask, s=(height, width))

    return weigh_bands(x, attention, map(low_pass, band_edges))


def modulate_bands_softly(x: Tensor, attention: Tensor, edges: Tensor) -> Tensor:
    """Frequency Band Modulation with soft masks: :func:`soft_low_pass` along rows and columns.

    The bands sum to x for any edges. The arguments and the result are those of :func:`modulate_bands_plain`, but with
    ``edges`` (M,), which can be learned, instead of ``band_edges``.
    """
    height, width = x.shape[2:]
    maps = (soft_low_pass(height, edge) @ (x @ soft_low_pass(width, edge)) for edge in edges.unbind())
    return weigh_bands(x, attention, maps)


def weigh_bands(x: Tensor, attention: Tensor, low_passes: Iterable[Tensor]) -> Tensor:
    """Compute the sum of :func:`modulate_bands_plain` from the low-passes (B, C, H, W) of x, one at a time."""
    weights = attention.unsqueeze(2).unbind(1)
    result = weights[0] * x
    for low_pass, weight, next_weight in zip(low_passes, weights, (*weights[1:], 1.0), strict=True):
        result = result + (next_weight - weight) * low_pass
    return result


def count_passing(size: tuple[int, int], band_edges: Sequence[float]) -> list[tuple[int, int]]:
    """Count the sinusoids of H and of W samples that pass each edge, for maps of ``size`` (H, W)."""
    return [tuple(2 * _num_frequencies(length, edge) + 1 for length in size) for edge in band_edges]


def _num_frequencies(size: int, cutoff: float) -> int:
    """The number of frequencies 1/size, 2/size, ... below ``cutoff``."""
    # The small term excludes k/size == cutoff if rounding makes the product larger than k, as for 0.2 * 35.
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
