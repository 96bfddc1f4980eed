"""Which images train and which validate."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from fdconv_zoo.errors import DataError

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "test")


def choose_splits(available: Iterable[str], train: str | None, validation: str | None) -> tuple[str | None, str | None]:
    """Names of the training and the validation split: given, or else of usual names, or else the only one left.

    None stands for a split that is not there: validation in a dataset of one split, training among validation splits.

    Raises:
        DataError: a given split does not exist, or none can be told to be for validation.
    """
    available = list(available)
    listing = f"The splits are {', '.join(available)}."
    for wanted in (train, validation):
        if wanted is not None and wanted not in available:
            raise DataError(f"There is no split {wanted!r}. {listing}")
    if train is not None and train == validation:
        raise DataError(f"Split {train!r} cannot both train and validate. {listing}")
    if train is None:
        others = [name for name in available if name != validation]
        train = _usual(TRAIN_NAMES, others) or (others[0] if len(others) == 1 else None)
    if validation is None:
        validation = _usual(VALIDATION_NAMES, [name for name in available if name != train])
    if validation is None and len(available) > 1:
        raise DataError(f"Cannot tell which split is for validation. {listing} Choose one with --validation-split.")
    return train, validation


def used_splits(
    available: Iterable[str], train: str | None, validation: str | None, wanted: Literal["both", "validation"]
) -> tuple[str | None, str | None]:
    """`choose_splits` for what is wanted: for "validation" alone, a single split validates.

    Validation is None where a part of the training split is to be held out for it.

    Raises:
        DataError: as `choose_splits`, or both are wanted and none can be told to be for training.
    """
    available = list(available)
    train, validation = choose_splits(available, train, validation)
    if wanted == "validation" and validation is None:
        return None, train
    if wanted == "both" and train is None:
        listing = f"The splits are {', '.join(available)}"
        raise DataError(f"Cannot tell which split to train on. {listing}; use --train-split.")
    return train, validation


def _usual(names: tuple[str, ...], available: list[str]) -> str | None:
    return next((split for name in names for split in available if split.lower() == name), None)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on: `fraction` of each class, at least one image of it on either side.

    A class of a single image only trains. The choice is fixed by `seed`.

    Args:
        labels: class numbers, shape (N,).
        fraction: between 0 and 1.
        seed: any number.
    """
    if not 0 < fraction < 1:
        raise DataError(f"The fraction of images to validate on must lie between 0 and 1, not be {fraction}.")
    rng = np.random.default_rng(seed)
    validates = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        validates[rows[:count]] = True
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def limited(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of the rows, drawn by `seed`, in their order."""
    if limit is None:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
