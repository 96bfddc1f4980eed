"""Checks of images and classes before training starts."""

import logging

import numpy as np
from datasets import Dataset

from fdconv_zoo.data.image import open_image, reason
from fdconv_zoo.errors import DataError, listed

_logger = logging.getLogger(__name__)

_IMAGES_PER_PROCESS = 1000  # starting a process does not pay off for fewer


def check_classes(train: np.ndarray, validation: np.ndarray, class_names: list[str]) -> None:
    """Compare the classes of both splits, and log classes without validation images.

    Args:
        train: Class indices of the training images, shape (N,).
        validation: Class indices of the validation images, shape (M,).
        class_names: Names of the classes, in the order of their indices.

    Raises:
        DataError: fewer than two training classes, or validation classes without training images.
    """
    in_train, in_validation = set(train.tolist()), set(validation.tolist())
    if len(in_train) < 2:
        only = _names(in_train, class_names)
        raise DataError(f"All training images belong to one class ({only}). Add images of other classes.")
    if unknown := in_validation - in_train:
        raise DataError(
            f"Validation has classes without training images: {_names(unknown, class_names)}. Add training images "
            "of these classes, or remove them from validation."
        )
    if missing := in_train - in_validation:
        _logger.warning("No validation images of the classes %s.", _names(missing, class_names))


def _names(labels: set[int], class_names: list[str]) -> str:
    return ", ".join(class_names[label] for label in sorted(labels))


def find_readable_rows(source: Dataset, rows: np.ndarray, split: str, num_workers: int) -> tuple[np.ndarray, list[str]]:
    """Decode every image, to find those that cannot be read.

    Args:
        source: Dataset with a column `image`.
        rows: Rows of `source` to check, shape (N,).
        split: Name of the split, for messages.
        num_workers: Processes to decode with.

    Returns:
        The readable rows, shape (M,), and for each other row a line that names the image and the problem.
    """
    part = source.select(rows)
    processes = min(num_workers, len(rows) // _IMAGES_PER_PROCESS)
    problems = part.map(
        _problem,
        input_columns="image",
        remove_columns=part.column_names,
        num_proc=processes if processes > 1 else None,
        desc=f"Checking {split} images",
    )[:]["problem"]
    bad = [position for position, problem in enumerate(problems) if problem]
    lines = [f"{_describe(part[position]['image'], split, rows[position])}: {problems[position]}" for position in bad]
    return np.delete(rows, bad), lines


def _problem(image: dict | None) -> dict[str, str]:
    try:
        open_image(image)
    except DataError as error:
        return {"problem": reason(error.__cause__)}
    return {"problem": ""}


def _describe(image: dict | None, split: str, row: int) -> str:
    return (image or {}).get("path") or f"row {row} of split {split!r}"


def report_bad_images(lines: list[str], skip: bool) -> None:
    """Raise DataError that counts the unreadable images and lists the first ones; if `skip`, log a warning instead."""
    if not lines:
        return
    listing = f"{len(lines)} images cannot be read:{listed(lines)}"
    if not skip:
        raise DataError(f"{listing}\nRepair or remove them, or skip them with --skip-bad-images.")
    _logger.warning("Skipped: %s", listing)
