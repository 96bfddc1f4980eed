"""Spectra of a layer's input before and after Frequency Band Modulation."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from fdconv_zoo.analysis.observe import find_band_modulations, observe

Array = NDArray[np.floating]


@dataclass(frozen=True)
class BandSpectrum:
    """The power of a layer's input before and after its Frequency Band Modulation (FBM).

    Attributes:
        frequencies: (K,), in cycles per sample, from 0 to 0.5.
        before, after: (B, K), the mean power of the coefficients of each frequency.
        band_edges: edges of FBM's bands, in cycles per sample, in descending order.
    """

    frequencies: Array
    before: Array
    after: Array
    band_edges: tuple[float, ...]


def radial_power(x: Tensor) -> tuple[Array, Array]:
    """Compute the power of feature maps over frequency.

    The frequency of a coefficient (u, v) is max(|u|, |v|), as in FBM, so each band of FBM is an interval. For an N x N
    map, the frequencies are 0, 1/N, ..., 1/2; for other maps, they are rounded to multiples of 1/min(H, W).

    Args:
        x: (B, C, H, W).

    Returns:
        Frequencies (K,) in cycles per sample, and power (B, K): the squared magnitude of the 2-D DFT divided by H*W,
        averaged over the channels and over the coefficients of each frequency.
    """
    height, width = x.shape[2:]
    power = torch.fft.fft2(x.double()).abs().square().mean(1) / (height * width)
    u, v = (torch.fft.fftfreq(size, dtype=torch.float64, device=x.device).abs() for size in (height, width))
    steps = min(height, width)
    ring = (torch.maximum(u[:, None], v) * steps).round().long().flatten()
    counts = ring.bincount()
    sums = power.new_zeros(len(x), len(counts)).index_add_(1, ring, power.flatten(1))
    frequencies = np.arange(len(counts)) / steps
    return frequencies[counts.cpu() > 0], (sums / counts)[:, counts > 0].cpu().numpy()


def band_spectra(model: nn.Module, images: Tensor, layers: Collection[str] | None = None) -> dict[str, BandSpectrum]:
    """Compute the spectra before and after FBM, by layer.

    Args:
        model: a model; it is not changed.
        images: (B, C, H, W), preprocessed for the model.
        layers: names of layers; None: all layers with FBM.
    """
    chosen = {name: fbm for name, fbm in find_band_modulations(model).items() if layers is None or name in layers}
    seen = observe(model, images, chosen.values())
    spectra = {}
    for name, fbm in chosen.items():
        if fbm in seen:
            (frequencies, before), (_, after) = map(radial_power, seen[fbm])
            spectra[name] = BandSpectrum(frequencies, before, after, fbm.edges())
    return spectra


def draw_spectrum(spectrum: BandSpectrum, image: int = 0) -> Figure:
    """Draw the power before and after FBM, and their ratio below; dashed lines are the edges of the bands.

    Args:
        spectrum: the spectrum of a layer.
        image: index in the batch.
    """
    before, after = spectrum.before[image], spectrum.after[image]
    figure = Figure(figsize=(4.5, 4.0), layout="constrained")
    power, ratio = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    power.semilogy(spectrum.frequencies, before, marker=".", label="before FBM")
    power.semilogy(spectrum.frequencies, after, marker=".", label="after FBM")
    power.set_ylabel("power")
    power.legend()
    gain = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    ratio.plot(spectrum.frequencies, gain, marker=".", color="C1")
    ratio.axhline(1, color="grey", linewidth=1)
    ratio.set_ylabel("after / before")
    ratio.set_xlabel("frequency, cycles per sample")
    _mark_edges((power, ratio), spectrum.band_edges)
    return figure


def _mark_edges(panels: Sequence[Axes], band_edges: Sequence[float]) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
        for edge in band_edges:
            panel.axvline(edge, color="black", linestyle="--", linewidth=1)
