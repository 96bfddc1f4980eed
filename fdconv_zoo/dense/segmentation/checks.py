"""Checks of images, masks and classes before training starts."""

import logging
from collections.abc import Sequence

import numpy as np

from fdconv_zoo.dense.segmentation.classes import IGNORE, INVALID, Classes
from fdconv_zoo.dense.segmentation.findings import Findings
from fdconv_zoo.errors import DataError, first_of, listed

_logger = logging.getLogger(__name__)

_REMEDIES = {
    "image": ("images cannot be read", "Repair them, or remove them with their masks."),
    "mask": (
        "masks cannot be used",
        "A mask is a grayscale or palette PNG of at most 8 bits whose pixels are class indices. Repair or remove them, "
        "or save them as PNG from their source.",
    ),
    "size": (
        "masks differ in size from their images",
        "A mask has one pixel per pixel of its upright image. Regenerate them, or resize them by nearest neighbour.",
    ),
}


def check_files(splits: Sequence[Findings]) -> None:
    """Raise DataError for images and masks that cannot be read or do not match, and name the first of each kind.

    Logs the images that an EXIF tag rotates if their mask fits both before and after.
    """
    messages = []
    for kind, (summary, remedy) in _REMEDIES.items():
        lines = [
            f"{split.pairs.describe(index, 'image' if kind == 'image' else 'mask')}: {problem}"
            for split in splits
            for index, problem in enumerate(split.problems[kind])
            if problem
        ]
        if lines:
            messages.append(f"{len(lines)} {summary}:{listed(lines)}\n{remedy}")
    if messages:
        raise DataError("\n".join(messages))
    if rotated := [split.pairs.describe(index, "image") for split in splits for index in split.ambiguous]:
        _logger.warning(
            "%d images are rotated upright by an EXIF tag, and their masks fit both ways. The masks are assumed to "
            "match the upright images; check some of them:%s",
            len(rotated),
            listed(rotated),
        )


def check_values(splits: Sequence[Findings], classes: Classes) -> None:
    """Check that the values of all masks are classes or ignored, and log masks without labelled pixels.

    Raises:
        DataError: a value is not a class, or a split has no labelled pixels.
    """
    invalid = classes.lookup == INVALID
    lines = [
        f"{split.pairs.describe(index, 'mask')}: {_ranges(split.present[index] & invalid)}"
        for split in splits
        for index in np.flatnonzero(split.present[:, invalid].any(axis=1))
    ]
    if lines:
        raise DataError(
            f"{len(lines)} masks have values that are not a class:{listed(lines)}\nValid values are "
            f"{_ranges(~invalid)}, of which {_ranges(classes.lookup == IGNORE)} are ignored. Correct the masks, list "
            "the class of every value in classes.txt or --class-names-file, or ignore a value with --ignore-index."
        )
    for split in splits:
        empty = np.flatnonzero(~split.present[:, classes.lookup < INVALID].any(axis=1))
        if len(empty) == len(split.pairs):
            raise DataError(
                f"Split {split.pairs.split!r}: no pixel of its {len(empty)} masks belongs to a class, because their "
                f"values ({_ranges(split.present.any(axis=0))}) are all ignored. Check --ignore-index, or choose "
                "another split."
            )
        if len(empty):
            names = [split.pairs.describe(index, "mask") for index in empty]
            _logger.warning("%d masks have no labelled pixel:%s", len(empty), listed(names))


def check_training_classes(train: Findings, classes: Classes) -> None:
    """Log the classes that never occur in training. Raises DataError if there is only one training class."""
    seen = set(classes.lookup[train.present.any(axis=0)].tolist()) - {IGNORE}
    if len(seen) < 2:
        raise DataError(
            f"All labelled training pixels belong to one class ({classes.names[seen.pop()]}). Add masks of other "
            "classes, or check --ignore-index."
        )
    if missing := [name for index, name in enumerate(classes.names) if index not in seen]:
        _logger.warning(
            "%d of %d classes have no training pixels: %s.", len(missing), len(classes.names), first_of(missing, 10)
        )


def _ranges(chosen: np.ndarray) -> str:
    values = np.flatnonzero(chosen)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
