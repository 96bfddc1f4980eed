"""Where in an image each frequency band is amplified: the maps of Frequency Band Modulation."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from fdconv_zoo.analysis.observe import find_band_modulations, observe

Array = NDArray[np.floating]


def modulation_maps(model: nn.Module, images: Tensor, layers: Collection[str] | None = None) -> dict[str, Array]:
    """Compute the factor of each band at every pixel: A_m of section 3.3 of https://arxiv.org/abs/2503.18783.

    Args:
        model: any model with Frequency Band Modulation (FBM); it is not changed.
        images: (B, C, H, W), preprocessed for the model.
        layers: names of layers; None: all layers with FBM.

    Returns:
        By layer, (B, M, h, w): factors between 0 and 2, where 1 is neutral, at the resolution of the layer's input. The
        M bands are in the order of :func:`band_names`, highest first. The lowest band, which FBM never changes, has no
        map.
    """
    chosen = {name: fbm for name, fbm in find_band_modulations(model).items() if layers is None or name in layers}
    seen = observe(model, images, [fbm.attention for fbm in chosen.values()])
    logits = {name: seen[fbm.attention][1] for name, fbm in chosen.items() if fbm.attention in seen}
    return {name: (2 * values.float().sigmoid()).cpu().numpy() for name, values in logits.items()}


def band_names(band_edges: Sequence[float]) -> list[str]:
    """Name the bands that FBM modulates by their frequencies in cycles per sample, highest first."""
    upper = (0.5, *band_edges)
    return [f"{low:.4g} to {high:.4g}" for high, low in zip(upper, band_edges, strict=False)]


def gradient_energy(images: Tensor, size: tuple[int, int] | None = None) -> Array:
    """Compute where images have edges and texture: the squared gradient, averaged over the area of each cell.

    The gradient is computed with Sobel's operator (I. Sobel and G. Feldman, 1968; here divided by 8, so that a ramp of
    1 per pixel has the gradient 1) and replicated borders. Its square is summed over the channels.

    Args:
        images: (B, C, H, W).
        size: (h, w) of the result; None: (H, W).

    Returns:
        (B, h, w), in squared units of the images' values per pixel.
    """
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    operators = torch.stack((smooth[:, None] * slope, slope[:, None] * smooth))[:, None] / 8
    planes = F.pad(images.cpu().float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    energy = F.conv2d(planes, operators).square().sum(1).unflatten(0, images.shape[:2]).sum(1)
    return F.adaptive_avg_pool2d(energy, size or energy.shape[1:]).numpy()


def edge_correlations(maps: Array, images: Tensor) -> Array:
    """Measure how strongly bands are amplified at edges of the image: Spearman's rank correlation over the pixels.

    Ranks are used because the gradient energy is small for most pixels and large for a few.

    Args:
        maps: (B, M, h, w) of a layer, from :func:`modulation_maps`.
        images: (B, C, H, W), the same B images.

    Returns:
        (B, M), from -1 to 1: the correlation of each map with :func:`gradient_energy`; NaN if either is constant.
    """
    energy = gradient_energy(images, maps.shape[2:])
    correlations = np.full(maps.shape[:2], np.nan)
    for image, band in np.ndindex(*correlations.shape):
        values, edges = maps[image, band].ravel(), energy[image].ravel()
        if np.ptp(values) > 0 and np.ptp(edges) > 0:
            correlations[image, band] = spearmanr(values, edges).statistic
    return correlations


def draw_maps(picture: Array, maps: Array, names: Sequence[str], correlations: Sequence[float] | None = None) -> Figure:
    """Draw an image and the maps of one layer, enlarged to the image's size.

    Args:
        picture: (H, W) or (H, W, 3), with values from 0 to 1.
        maps: (M, h, w), the factors of each band.
        names: names of the M bands.
        correlations: (M,), written below the names.
    """
    rows = -(-(len(maps) + 1) // 2)
    height, width = picture.shape[:2]
    figure = Figure(figsize=(4.5, 0.8 + rows * (0.45 + 2.05 * min(height / width, 2))), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    extent = (0, width, height, 0)
    axes[0].imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent)
    axes[0].set_title("image", fontsize=10)
    reach = max(float(np.abs(maps - 1).max()), 0.05)  # nearly neutral maps should not look strong
    for index, (panel, values, name) in enumerate(zip(axes[1:], maps, names, strict=False)):
        colours = panel.imshow(values, cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach, extent=extent)
        correlation = np.nan if correlations is None else correlations[index]
        panel.set_title(f"{name}\nedges {correlation:+.2f}" if np.isfinite(correlation) else name, fontsize=10)
    for panel in axes:
        panel.set_axis_off()
    bar = figure.colorbar(colours, ax=axes, orientation="horizontal", aspect=40, shrink=0.9)
    bar.set_label("factor of the band; 1 is neutral")
    return figure


def mean_correlations(correlations: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
    """Average the correlations of each layer over images, ignoring NaN.

    Args:
        correlations: by layer, arrays (B, M).

    Returns:
        By layer, (M,); NaN if the values of all images are NaN.
    """
    means = {}
    for name, arrays in correlations.items():
        values = np.concatenate(arrays)
        counts = np.isfinite(values).sum(0)
        means[name] = np.where(counts, np.nansum(values, 0) / np.maximum(counts, 1), np.nan)
    return means
