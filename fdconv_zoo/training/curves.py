"""The training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fdconv_zoo.store.files import replacing


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path, metrics: Mapping[str, str]) -> None:
    """Draw losses, metrics and learning rate by epoch.

    Args:
        history: The rows of metrics.jsonl, one per epoch.
        path: Path of the PNG file.
        metrics: As in `Task`; metrics whose value is None are left out.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, quality, rate = figure.subplots(1, 3)

    trained = [row for row in history if row["train_loss"] is not None]  # the row before training has no loss
    loss.plot([row["epoch"] for row in trained], [row["train_loss"] for row in trained], label="training", marker=".")
    if "loss" in history[0]:
        loss.plot(epochs, [row["loss"] for row in history], label="validation", marker=".")
    loss.set_title("Loss")
    loss.legend()

    chosen_by, name = next(iter(metrics.items()))
    best = max(history, key=lambda row: row[chosen_by])
    for key, label in metrics.items():
        if best[key] is not None:
            quality.plot(epochs, [row[key] for row in history], label=label, marker=".")
    quality.scatter(best["epoch"], best[chosen_by], s=60, facecolors="none", edgecolors="black", zorder=3)
    quality.set_title(f"Validation (%), best {name} {best[chosen_by]:.2f} at epoch {best['epoch']}")
    quality.legend()

    rate.plot(epochs, [row["lr"] for row in history], marker=".")
    rate.set_title("Learning rate at the end of the epoch")
    for axes in (loss, quality, rate):
        style_epochs(axes)

    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def style_epochs(axes: Axes) -> None:
    """Give a panel a grid, and an axis of whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
