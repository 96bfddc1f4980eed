"""A confusion matrix as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fdconv_zoo.store.files import replacing

_LONGEST = 40  # characters of a name in the picture
_WRITTEN = 25  # most classes at which cells have room for a number


def write_confusion(matrix: NDArray[np.integer], class_names: Sequence[str], path: Path) -> None:
    """Write the numbers of pixels or images as CSV: a row for each true class, a column for each predicted one.

    Args:
        matrix: Pixels or images by true and predicted class, (K, K).
        class_names: Names of the K classes.
        path: Path of the file.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth / prediction", *class_names])
        writer.writerows([name, *row] for name, row in zip(class_names, matrix.tolist(), strict=True))


def draw_confusion(matrix: NDArray[np.integer], class_names: Sequence[str], path: Path) -> None:
    """Draw the share of each true class that is predicted as each class, in percent.

    Args:
        matrix, class_names: As in `write_confusion`.
        path: Path of the PNG file.
    """
    true = matrix.sum(1, keepdims=True)
    percent = 100 * matrix / np.where(true, true, 1)
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in class_names]
    size = 8 if len(names) <= _WRITTEN else 5
    margin = 0.01 * size * max(map(len, names))  # of the names, in inches
    names = [name.replace("$", r"\$") for name in names]  # otherwise matplotlib reads formulas
    side = min(max(0.4 * len(names), 2.5), 22) + margin
    figure = Figure(figsize=(side + 2, side + 0.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the true class", shrink=0.7)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    if len(names) <= _WRITTEN:
        for row, column in np.ndindex(*percent.shape):
            if percent[row, column] >= 0.5:
                colour = "white" if percent[row, column] > 60 else "black"
                text = f"{percent[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight")
