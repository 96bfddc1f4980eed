"""What is found out about images and classes before training starts."""

import logging

import numpy as np
from datasets import Dataset

from fdconv_zoo.data.image import open_image, reason
from fdconv_zoo.errors import DataError, listed

_logger = logging.getLogger(__name__)

_IMAGES_PER_PROCESS = 1000  # fewer are not worth starting another process for


def check_classes(train: np.ndarray, validation: np.ndarray, class_names: list[str]) -> None:
    """Holds the class numbers of both sets, shapes (N,) and (M,), against each other.

    Raises:
        DataError: fewer than two classes to train, or some to validate that were not trained.
    """
    in_train, in_validation = set(train.tolist()), set(validation.tolist())
    if len(in_train) < 2:
        only = ", ".join(class_names[label] for label in in_train)
        raise DataError(f"All training images are of one class ({only}): there is nothing to learn. Add other classes.")
    if unknown := in_validation - in_train:
        raise DataError(
            f"Validation has classes without training images: {_names(unknown, class_names)}. Add training images "
            "of these classes, or remove them from validation."
        )
    if missing := in_train - in_validation:
        _logger.warning("No validation images of the classes %s.", _names(missing, class_names))


def _names(labels: set[int], class_names: list[str]) -> str:
    return ", ".join(class_names[label] for label in sorted(labels))


def readable_rows(source: Dataset, rows: np.ndarray, split: str, num_workers: int) -> tuple[np.ndarray, list[str]]:
    """Decodes every image; returns the rows that can be read, and a line naming each that cannot and why.

    Args:
        source: has a column `image`.
        rows: those of `source` to look at, shape (N,).
        split: its name, for the messages.
        num_workers: processes to decode with.
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
    lines = [f"{_place(part[position]['image'], split, rows[position])}: {problems[position]}" for position in bad]
    return np.delete(rows, bad), lines


def _problem(image: dict | None) -> dict[str, str]:
    try:
        open_image(image)
    except DataError as error:
        return {"problem": reason(error.__cause__)}
    return {"problem": ""}


def _place(image: dict | None, split: str, row: int) -> str:
    return (image or {}).get("path") or f"row {row} of split {split!r}"


def report_bad_images(lines: list[str], skip: bool) -> None:
    """Raises DataError with the first bad images and their number; only logs it where they are to be skipped."""
    if not lines:
        return
    listing = f"{len(lines)} images cannot be read:{listed(lines)}"
    if not skip:
        raise DataError(f"{listing}\nRepair or remove them, or leave them out with --skip-bad-images.")
    _logger.warning("Left out: %s", listing)
