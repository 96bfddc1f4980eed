"""Chooses the training and validation images."""

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from fdconv_zoo.errors import DataError

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "test")
SPLIT_NAME = re.compile(rf"({'|'.join(TRAIN_NAMES + VALIDATION_NAMES)})(?![a-z])", re.IGNORECASE)


def choose_splits(available: Iterable[str], train: str | None, validation: str | None) -> tuple[str | None, str | None]:
    """Choose the training and the validation split: the given ones, or else those with usual names.

    Without a usual name, the only split left is the training split.

    Returns:
        The names of the training and the validation split. Training is None if no split can be chosen, validation if
        there is no other split.

    Raises:
        DataError: a given split does not exist, or the validation split is ambiguous.
    """
    available = list(available)
    listing = f"The splits are {', '.join(available)}."
    for wanted in (train, validation):
        if wanted is not None and wanted not in available:
            raise DataError(f"There is no split {wanted!r}. {listing}")
    if train is not None and train == validation:
        raise DataError(f"Split {train!r} cannot be used for both training and validation. {listing}")
    if train is None:
        others = [name for name in available if name != validation]
        train = _usual(TRAIN_NAMES, others) or (others[0] if len(others) == 1 else None)
    if validation is None:
        validation = _usual(VALIDATION_NAMES, [name for name in available if name != train])
    if validation is None and len(available) > 1:
        raise DataError(f"The validation split is ambiguous. {listing} Choose one with --validation-split.")
    return train, validation


def resolve_splits(
    available: Iterable[str],
    train: str | None,
    validation: str | None,
    wanted: Literal["both", "validation", "held out"],
) -> tuple[str | None, str | None]:
    """Choose the splits to load, as `choose_splits` does.

    If `wanted` is "validation", a single split is the validation split. Otherwise, the validation split is None if a
    part of the training split must be held out.

    Raises:
        DataError: as `choose_splits`, or both splits are wanted and the training split is ambiguous.
    """
    available = list(available)
    train, validation = choose_splits(available, train, validation)
    if wanted == "validation" and validation is None:
        return None, train
    if wanted == "both" and train is None:
        listing = f"The splits are {', '.join(available)}."
        raise DataError(f"The training split is ambiguous. {listing} Choose one with --train-split.")
    return train, validation


def _usual(names: tuple[str, ...], available: list[str]) -> str | None:
    return next((split for name in names for split in available if split.lower() == name), None)


def split_rows(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `fraction` of each class for validation, but at least one image, and leave at least one for training.

    A class with a single image is used for training only.

    Args:
        labels: Class indices, shape (N,).
        fraction: Share to hold out, between 0 and 1.
        seed: Determines which rows are held out.

    Returns:
        Training rows and validation rows, both ascending.

    Raises:
        DataError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"The fraction of validation images must be between 0 and 1, not {fraction}.")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[rows[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def limit_rows(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Draw at most `limit` of the rows at random, and return them in ascending order."""
    if limit is None:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
