"""The training curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fdconv_zoo.training.files import replacing


def draw_curves(history: Sequence[dict], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        history: The rows of metrics.jsonl, one an epoch.
        path: Where the PNG goes.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)

    loss.plot(epochs, [row["train_loss"] for row in history], label="training", marker=".")
    loss.plot(epochs, [row["loss"] for row in history], label="validation", marker=".")
    loss.set_title("Cross-entropy loss")
    loss.legend()

    best = max(history, key=lambda row: row["top1"])
    accuracy.plot(epochs, [row["top1"] for row in history], label="top-1", marker=".")
    if best["top5"] is not None:
        accuracy.plot(epochs, [row["top5"] for row in history], label="top-5", marker=".")
    accuracy.scatter(best["epoch"], best["top1"], s=60, facecolors="none", edgecolors="black", zorder=3)
    accuracy.set_title(f"Validation accuracy (%), best top-1 {best['top1']:.2f} at epoch {best['epoch']}")
    accuracy.legend()

    rate.plot(epochs, [row["lr"] for row in history], marker=".")
    rate.set_title("Learning rate at the end of the epoch")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
