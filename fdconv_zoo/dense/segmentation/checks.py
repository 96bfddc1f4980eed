"""Judges what was found in images and masks, before training starts."""

import logging
from collections.abc import Sequence

import numpy as np

from fdconv_zoo.dense.segmentation.classes import IGNORE, OUTSIDE, Classes
from fdconv_zoo.dense.segmentation.findings import Findings
from fdconv_zoo.errors import DataError, first_of, listed

_logger = logging.getLogger(__name__)

_REMEDIES = {
    "image": ("images cannot be read", "Repair them, or remove them with their masks."),
    "mask": (
        "masks cannot be used",
        "A mask is a PNG, 8-bit grayscale or palette, whose pixels are class numbers. Repair, convert or remove them.",
    ),
    "size": (
        "masks differ in size from their images",
        "A mask has a pixel for each pixel of its upright image. Make them anew, or resize them by nearest neighbour.",
    ),
}


def check_files(splits: Sequence[Findings]) -> None:
    """Raises DataError for images and masks that cannot be read or do not fit, naming the first of each kind.

    Where an EXIF tag turns an image and the mask fits both ways, that is logged.
    """
    messages = []
    for kind, (problem, remedy) in _REMEDIES.items():
        lines = [
            f"{split.references.place(index, 'image' if kind == 'image' else 'mask')}: {words}"
            for split in splits
            for index, words in enumerate(split.problems[kind])
            if words
        ]
        if lines:
            messages.append(f"{len(lines)} {problem}:{listed(lines)}\n{remedy}")
    if messages:
        raise DataError("\n".join(messages))
    if turned := [split.references.place(index, "image") for split in splits for index in split.ambiguous]:
        _logger.warning(
            "%d images are turned upright by an EXIF tag, and their masks fit both ways. They are taken as drawn on "
            "the upright image; look at some:%s",
            len(turned),
            listed(turned),
        )


def check_values(splits: Sequence[Findings], classes: Classes) -> None:
    """Holds the values of masks against the classes.

    Masks without a labelled pixel are logged.

    Raises:
        DataError: values that mean nothing, or a split without a labelled pixel.
    """
    outside = classes.numbers == OUTSIDE
    lines = [
        f"{split.references.place(index, 'mask')}: {_ranges(split.present[index] & outside)}"
        for split in splits
        for index in np.flatnonzero(split.present[:, outside].any(axis=1))
    ]
    if lines:
        raise DataError(
            f"{len(lines)} masks have values that are no class:{listed(lines)}\nKnown are {_ranges(~outside)}, of "
            f"which {_ranges(classes.numbers == IGNORE)} ignored. Correct the masks, name the class of every value in "
            "classes.txt or --class-names-file, or ignore a value with --ignore-index."
        )
    for split in splits:
        empty = np.flatnonzero(~split.present[:, classes.numbers < OUTSIDE].any(axis=1))
        if len(empty) == len(split.references):
            raise DataError(
                f"Split {split.references.split!r}: not one pixel of its {len(empty)} masks belongs to a class; their "
                f"values, {_ranges(split.present.any(axis=0))}, are all ignored. Check --ignore-index, or choose "
                "another split."
            )
        if len(empty):
            names = [split.references.place(index, "mask") for index in empty]
            _logger.warning("%d masks have no labelled pixel:%s", len(empty), listed(names))


def check_training_classes(train: Findings, classes: Classes) -> None:
    """Logs the classes that never occur in training. Raises DataError where there is but one class to learn."""
    seen = set(classes.numbers[train.present.any(axis=0)].tolist()) - {IGNORE}
    if len(seen) < 2:
        raise DataError(
            f"All labelled pixels to train on are of one class ({classes.names[seen.pop()]}): there is nothing to "
            "learn. Add masks of other classes, or check --ignore-index."
        )
    if missing := [name for number, name in enumerate(classes.names) if number not in seen]:
        _logger.warning(
            "No training pixels of %d of %d classes: %s.", len(missing), len(classes.names), first_of(missing, 10)
        )


def _ranges(chosen: np.ndarray) -> str:
    values = np.flatnonzero(chosen)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
