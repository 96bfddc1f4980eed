"""Draws the results of several models, each from several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fdconv_zoo.profiling.learning_curves import COLOURS
from fdconv_zoo.store.files import replacing

_LINE = 40  # characters of a label's line


def draw_results(models: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, metrics: Mapping[str, str]) -> None:
    """Draw a row per model: a dot for each seed, and a line at their mean.

    Dots of a seed have the same color for all models, so that differences can be compared seed by seed.

    Args:
        models: By name, the results of a model's runs, with their ``"seed"``; the first model is the reference.
        path: Path of the PNG.
        metrics: Names of figures in percent, by their key in a result.
    """
    labels = [fill(model, _LINE, break_on_hyphens=False) for model in models]
    lines = sum(max(label.count("\n") + 1, 2) for label in labels)
    figure = Figure(figsize=(3.2 + 4.3 * len(metrics), 1.2 + 0.17 * lines), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (key, name) in zip(panels, metrics.items(), strict=True):
        _draw_panel(axes, list(models.values()), key)
        axes.set_xlabel(f"{name} (%)")
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=7, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_panel(axes: Axes, models: Sequence[Sequence[Mapping[str, Any]]], key: str) -> None:
    values: dict[int, list[tuple[float, int]]] = {}  # by seed: value and row
    for row, results in enumerate(models):
        for result in results:
            values.setdefault(result["seed"], []).append((result[key], row))
        mean = sum(result[key] for result in results) / len(results)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color="black", label=None if row else "mean")
        if row == 0:
            axes.axvline(mean, color="black", linestyle=":", linewidth=1)
    for number, (seed, points) in enumerate(sorted(values.items())):
        color = COLOURS[1 + number % (len(COLOURS) - 1)]
        axes.plot(*zip(*points, strict=True), "o", color=color, markersize=5, alpha=0.8, label=f"seed {seed}")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", alpha=0.3)
