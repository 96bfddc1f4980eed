"""Results of a classifier for each class: a table, and the confusion matrix as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fdconv_zoo.store.files import remove, replacing
from fdconv_zoo.training.confusion import draw_confusion, write_confusion

FILES = ("classes.csv", "confusion.csv", "confusion.png")
_COLUMNS = ("class", "images", "right", "recall %", "precision %", "F1 %", "most often taken for", "times")
_IN_A_MATRIX = 1000  # classes, at most
_IN_A_PICTURE = 200


def write_class_results(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], class_names: Sequence[str], folder: Path
) -> None:
    """Write `FILES`: the table of classes, and the confusion matrix unless there are too many classes.

    The matrix is written for at most 1000 classes, and drawn for at most 200.

    Args:
        labels: True class of each image, (N,).
        predictions: Predicted class of each image, (N,).
        class_names: Names of the K classes.
        folder: Created if needed; files in it are replaced.
    """
    for name in FILES:
        remove(folder / name)
    with replacing(folder / FILES[0]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(class_table(labels, predictions, class_names))
    count = len(class_names)
    if count <= _IN_A_MATRIX:
        matrix = np.bincount(labels * count + predictions, minlength=count**2).reshape(count, count)
        write_confusion(matrix, class_names, folder / FILES[1])
        if count <= _IN_A_PICTURE:
            draw_confusion(matrix, class_names, folder / FILES[2])


def class_table(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], class_names: Sequence[str]
) -> list[list[str]]:
    """Compute the table of classes.

    Args:
        labels, predictions, class_names: As in `write_class_results`.

    Returns:
        For each class: its name, its number of images, how many of them are predicted correctly, recall, precision and
        F1 in percent, the wrong class that is predicted most often, and how often. Cells without a value are empty.
    """
    count = len(class_names)
    images, predicted = (np.bincount(numbers, minlength=count) for numbers in (labels, predictions))
    right = np.bincount(labels[labels == predictions], minlength=count)
    wrong = labels != predictions
    pairs, times = np.unique(labels[wrong] * count + predictions[wrong], return_counts=True)
    ascending = np.argsort(times, kind="stable")
    taken = {
        pair // count: (class_names[pair % count], str(number))
        for pair, number in zip(pairs[ascending].tolist(), times[ascending].tolist(), strict=True)
    }
    rows = []
    for number, name in enumerate(class_names):
        shares = (
            _percent(right[number], images[number]),
            _percent(right[number], predicted[number]),
            _percent(2 * right[number], images[number] + predicted[number]),
        )
        rows.append([name, str(images[number]), str(right[number]), *shares, *taken.get(number, ("", ""))])
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""
