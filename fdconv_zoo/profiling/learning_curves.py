"""Draws how several models learn, each from several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fdconv_zoo.store.files import replacing
from fdconv_zoo.training.curves import style_epochs

# Okabe and Ito's colours, which colour-blind people can tell apart; without the yellow, which is faint on white. Lines
# beyond them repeat the colours with another pattern.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PATTERNS = ("-", "--", ":", "-.")
_START = 0.2  # fraction of the epochs, from the first on, whose values may lie outside a panel
_SHORT = 55  # characters that fit below one panel

History = Sequence[Mapping[str, Any]]  # the rows of a run's metrics.jsonl


def draw_learning_curves(models: Mapping[str, Sequence[History]], path: Path, metrics: Mapping[str, str]) -> None:
    """Draw validation metrics and training loss over the epochs: the mean over the seeds, and their range as a band.

    Panels show the range of values after the first fifth of the epochs, so that the end can be read.

    Args:
        models: By name, the histories of a model's runs.
        path: Path of the PNG.
        metrics: Names of figures in percent, by their key in a row. Keys that no row has are left out.
    """
    panels = {key: f"Validation: {name} (%)" for key, name in metrics.items()} | {"train_loss": "Training loss"}
    bands = {key: {model: mean_and_range(runs, key) for model, runs in models.items()} for key in panels}
    panels = {key: title for key, title in panels.items() if any(len(band[0]) for band in bands[key].values())}
    columns = len(panels) if max(map(len, models)) <= _SHORT else 1
    legend_height = 0.3 + 0.22 * -(-len(models) // columns)
    figure = Figure(figsize=(5.5 * len(panels), 4 + legend_height), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_panel(axes, bands[key])
        axes.set_title(title)
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower left", ncols=columns, frameon=False)
    figure.suptitle(_describe_runs(models), fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def mean_and_range(runs: Sequence[History], key: str) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Summarize a figure over the runs of a model.

    Args:
        runs: Histories of the runs.
        key: Key of the figure in a row.

    Returns:
        The epochs in which every run has the figure, and its mean, least and largest value in them, float64 (N,).
    """
    values = [{row["epoch"]: row[key] for row in run if row.get(key) is not None} for run in runs]
    epochs = sorted(set.intersection(*map(set, values)))
    table = np.array([[run[epoch] for epoch in epochs] for run in values], dtype=float).reshape(len(runs), len(epochs))
    return np.array(epochs, dtype=float), table.mean(0), table.min(0), table.max(0)


def _draw_panel(axes: Axes, bands: Mapping[str, tuple[NDArray, NDArray, NDArray, NDArray]]) -> None:
    for number, (model, (epochs, mean, low, high)) in enumerate(bands.items()):
        style = {"color": COLOURS[number % len(COLOURS)]}
        pattern = PATTERNS[number // len(COLOURS) % len(PATTERNS)]
        marker = "." if len(epochs) <= 20 else None
        axes.plot(epochs, mean, pattern, label=model, marker=marker, linewidth=1.5, **style)
        axes.fill_between(epochs, low, high, alpha=0.15, linewidth=0, **style)
    style_epochs(axes)
    shown = [(low[_after_start(epochs)], high[_after_start(epochs)]) for epochs, _, low, high in bands.values()]
    least, largest = min(low.min() for low, _ in shown if len(low)), max(high.max() for _, high in shown if len(high))
    margin = 0.05 * (largest - least) or 0.5
    axes.set_ylim(least - margin, largest + margin)


def _after_start(epochs: NDArray) -> slice:
    return slice(int(_START * len(epochs)), None)


def _describe_runs(models: Mapping[str, Sequence[History]]) -> str:
    seeds = {len(runs) for runs in models.values()}
    if seeds == {1}:
        return "One seed"
    return f"Mean over {' or '.join(map(str, sorted(seeds)))} seeds; the band is from the least to the largest"
