"""Figures of what :mod:`fdconv_zoo.analysis.kernels` computes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]

_SIZE = (4.5, 3.8)  # inches: as wide as the page on a phone


def draw_groups(groups: NDArray[np.integer]) -> Figure:
    """Draw the map of groups on the plane of the real DFT, with frequency 0 at the left in the middle.

    Args:
        groups: (R, C//2 + 1), from :func:`fdconv_zoo.analysis.kernels.group_map`.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.fft.fftshift(groups, axes=0), extent=(0, 0.5, 0.5, -0.5), aspect="auto", cmap="viridis")
    figure.colorbar(picture, label="group")
    axes.set_xlabel("frequency along I·b, cycles per sample")
    axes.set_ylabel("frequency along O·a")
    return figure


def draw_plane_power(edges: Array, power: Array) -> Figure:
    """Draw how each kernel's power is distributed over intervals of radial frequency.

    Args:
        edges: (bins + 1,), in cycles per sample.
        power: (n, bins), from :func:`fdconv_zoo.analysis.kernels.plane_power`.
    """
    totals = power.sum(1, keepdims=True)
    share = 100 * np.divide(power, totals, out=np.zeros_like(power), where=totals > 0)
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(power) + 1) - 0.5
    picture = axes.pcolormesh(edges, rows, share, cmap="magma", vmin=0, rasterized=True)
    figure.colorbar(picture, label="% of the kernel's power")
    axes.set_xlabel("radial frequency, cycles per sample")
    axes.set_ylabel("kernel")
    return figure


def draw_spatial_response(response: Array, most: int = 6) -> Figure:
    """Draw the frequency responses of evenly spaced kernels, in decibels relative to the largest value of all.

    Args:
        response: (n, size, size), from :func:`fdconv_zoo.analysis.kernels.spatial_response`.
        most: number of kernels to draw.
    """
    chosen = np.unique(np.linspace(0, len(response) - 1, most).round().astype(int))
    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.5, 0.6 + 1.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    largest = max(response[chosen].max(), np.finfo(float).tiny)
    for panel, index in zip(panels, chosen, strict=False):
        decibels = 20 * np.log10(np.maximum(response[index] / largest, 1e-3))
        picture = panel.imshow(decibels, extent=(-0.5, 0.5, 0.5, -0.5), cmap="magma", vmin=-30, vmax=0)
        panel.set_title(f"kernel {index}", fontsize=10)
        panel.set_xticks([-0.5, 0.5])
        panel.set_yticks([-0.5, 0.5])
        panel.tick_params(labelsize=8)
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    figure.supxlabel("cycles per sample", fontsize=10)
    figure.colorbar(picture, ax=panels, label="dB", shrink=0.8)
    return figure


def draw_similarity(similarity: Array) -> Figure:
    """Draw the magnitude of the cosine similarity of each pair of kernels; the colours are logarithmic.

    Args:
        similarity: (n, n), from :func:`fdconv_zoo.analysis.kernels.kernel_similarity`.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.maximum(np.abs(similarity), 1e-4), cmap="viridis", norm=LogNorm(1e-4, 1))
    bar = figure.colorbar(picture, label="cosine similarity, magnitude", shrink=0.85)
    bar.set_ticks([1e-4, 1e-3, 1e-2, 0.1, 1], labels=["≤ 1e-4", "0.001", "0.01", "0.1", "1"])
    axes.set_xlabel("kernel")
    axes.set_ylabel("kernel")
    return figure


def draw_movement(movement: Mapping[str, float]) -> Figure:
    """Draw how far the kernel of each layer moves between two images, as a bar for each layer.

    Args:
        movement: from :func:`fdconv_zoo.analysis.kernels.kernel_movement`.
    """
    figure = Figure(figsize=(4.5, 0.9 + 0.22 * len(movement)), layout="constrained")
    axes = figure.subplots()
    names = [name.replace("$", r"\$") for name in movement]  # matplotlib reads text between dollar signs as a formula
    bars = axes.barh(range(len(names)), [100 * value for value in movement.values()], color="C0")
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 115 * max(movement.values()) or 1)
    axes.margins(y=0.01)
    axes.set_xlabel("% of the kernel's norm")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_filters(points: Array) -> Figure:
    """Draw projected filters, with one colour per kernel.

    Args:
        points: (n, O, 2), from :func:`fdconv_zoo.analysis.kernels.project_filters`.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    kernel = np.repeat(np.arange(len(points)), points.shape[1])
    x, y = points.reshape(-1, 2).T
    picture = axes.scatter(x, y, c=kernel, cmap="turbo", s=8, alpha=0.7, linewidths=0)
    figure.colorbar(picture, label="kernel")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure
