"""The measurements of `--watch` as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fdconv_zoo.layers.parameter_parts import PARTS
from fdconv_zoo.store.files import replacing
from fdconv_zoo.training.watch import totals

# Okabe and Ito's colours, which people with colour blindness can distinguish; markers distinguish the rest.
_COLOURS = ["black", "0.55", "#0072B2", "0.55", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#332288"]
_MARKERS = "o.sx^vD*P<"
_MARKED = 12  # markers on each line

_LABELS = {
    "plain": "plain weights",
    "vector": "biases and norms",
    "spectrum": "spectra",
    "trunk": "KSM's trunk",
    **{name: f"{name} modulator" for name in PARTS[4:]},
}


def draw_learning(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw gradients and movement of each part, and statistics of the modulators, by update.

    Args:
        rows: Rows of `learning.jsonl`, at least one.
        path: Path of the PNG file.
    """
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    (gradient, update, legend), (distance, variation, saturated) = figure.subplots(2, 3)
    found = [totals(row) for row in rows]
    updates = [row["update"] for row in rows]
    for axes, name, title in (
        (gradient, "gradient", "Norm of the gradient, before clipping"),
        (update, "update", "Movement in an update, as a part of the weights' norm"),
        (distance, "distance", "Modulators' distance from neutral (at most 1)"),
        (variation, "variation", "Modulators' variation between images"),
        (saturated, "saturated", "Saturated modulators"),
    ):
        _draw(axes, updates, [figures[name] for figures in found])
        axes.set_title(title)
        axes.set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for axes in (gradient, update):
        if axes.lines:
            axes.set_yscale("log", nonpositive="mask")
    for axes in (distance, variation, saturated):
        highest = max((max(line.get_ydata()) for line in axes.lines), default=0)
        axes.set_ylim(0, max(1.1 * highest, 0.01))
    saturated.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    labels = [_LABELS[part] for part in PARTS if _LABELS[part] in lines]
    legend.axis("off")
    legend.legend([lines[label] for label in labels], labels, loc="center left")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Axes, updates: Sequence[int], figures: Sequence[Mapping[str, float]]) -> None:
    for part, colour, marker in zip(PARTS, _COLOURS, _MARKERS, strict=True):
        points = [(update, of[part]) for update, of in zip(updates, figures, strict=True) if part in of]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markevery=max(len(points) // _MARKED, 1),
                linewidth=2 if part in ("plain", "spectrum") else 1.2,
                linestyle="--" if part in ("vector", "trunk") else "-",
                label=_LABELS[part],
            )
