"""Precision-recall curves of a detector, as a table and as a picture."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fdconv_zoo.dense.colours import class_colour
from fdconv_zoo.dense.detection.metrics import CURVES_AT, RECALLS, Curves
from fdconv_zoo.store.files import replacing

_NAMED = 20  # largest number of classes that are drawn one by one


def write_curves(curves: Mapping[str, Curves], class_names: Sequence[str], path: Path) -> None:
    """Write the curves as CSV: a row for each kind, IoU, class and recall, without classes that have no objects.

    Args:
        curves: Curves by kind, ``box`` or ``mask``.
        class_names: Names of the K classes.
        path: Path of the file.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "iou", "class", "recall", "precision", "score"])
        for kind, of_kind in curves.items():
            for (place, iou), (index, name) in (
                (at, named) for at in enumerate(CURVES_AT) for named in enumerate(class_names)
            ):
                values = zip(RECALLS, of_kind.precision[place, :, index], of_kind.scores[place, :, index], strict=True)
                writer.writerows(
                    [kind, iou, name, f"{recall:.2f}", f"{precision:.4f}", f"{score:.4f}"]
                    for recall, precision, score in values
                    if not np.isnan(precision)
                )


def draw_curves(curves: Mapping[str, Curves], class_names: Sequence[str], path: Path) -> None:
    """Draw precision over recall, in a panel for each kind and IoU: the mean of all classes, and each of up to 20.

    With more than 20 classes, only the mean is drawn.

    Args:
        curves, class_names: As in `write_curves`.
        path: Path of the PNG file.
    """
    figure = Figure(figsize=(12, 5 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), len(CURVES_AT), squeeze=False)
    for row, (kind, of_kind) in zip(panels, curves.items(), strict=True):
        for axes, iou, precision in zip(row, CURVES_AT, of_kind.precision, strict=True):
            known = np.flatnonzero(~np.isnan(precision[0]))
            for index in known if len(known) <= _NAMED else ():
                values = precision[:, index]
                colour = np.array(class_colour(int(index) + 1)) / 255
                axes.plot(RECALLS, values, color=colour, linewidth=1, label=_label(class_names[index], values))
            if len(known):
                mean = precision[:, known].mean(1)
                axes.plot(RECALLS, mean, color="black", linewidth=2, label=_label("mean", mean))
                axes.legend(title="AP", fontsize=7, title_fontsize=7)
            axes.set(title=f"{kind}, IoU {iou:g}", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
            axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _label(name: str, precision: np.ndarray) -> str:
    name = name.replace("$", r"\$")  # otherwise matplotlib reads a formula
    return f"{100 * precision.mean():.1f} %  {name}"  # matplotlib leaves out labels that begin with "_"
