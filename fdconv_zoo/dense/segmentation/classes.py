"""What the values of a mask mean: a class, nothing to learn from, or an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fdconv_zoo.errors import DataError

IGNORE = 255  # the class number of pixels that neither train nor count
OUTSIDE = 254  # that of values which mean nothing; the checks let none of them through


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: K of them, in the order of the class numbers.
        numbers: the class number 0..K-1, `IGNORE` or `OUTSIDE` of each mask value, uint8 (256,).
    """

    names: list[str]
    numbers: np.ndarray

    def renamed(self, names: Sequence[str] | None) -> "Classes":
        """With other names, where there are some. Raises DataError where they are too many or too few."""
        if names is None:
            return self
        if len(names) != len(self.names):
            raise DataError(f"{len(names)} class names are given, but this dataset has {len(self.names)} classes.")
        return replace(self, names=list(names))


def classes_by_value(names: Sequence[str], ignore_index: int) -> Classes:
    """Classes numbered as mask values are; those above an ignored value move down by one.

    Args:
        names: of the values 0, 1, ...; the one of the ignored value, if it comes so far, is left out.
        ignore_index: the value of pixels that neither train nor count, 0..255.

    Raises:
        DataError: a name that occurs twice, or more classes than 8 bits tell apart.
    """
    values = [value for value in range(len(names)) if value != ignore_index]
    if len(values) > OUTSIDE:
        raise DataError(f"{len(values)} classes, but masks of 8 bits tell {OUTSIDE} apart.")
    kept = [names[value] for value in values]
    if twice := sorted({name for name in kept if kept.count(name) > 1}):
        raise DataError(f"Class names that occur more than once: {', '.join(twice)}. Make them differ.")
    return Classes(kept, _table(dict(zip(values, range(len(values)), strict=True)) | {ignore_index: IGNORE}))


def numbered_classes(largest: int, ignore_index: int) -> Classes:
    """Classes called after their mask values, 0 up to the largest. Raises DataError for more than 8 bits tell apart."""
    return classes_by_value([f"class {value}" for value in range(largest + 1)], ignore_index)


def named_classes(names: Sequence[str], ignore_index: int) -> Classes:
    """The inverse of `classes_by_value(...).names`: names of classes only, in the order of the class numbers."""
    by_value = list(names)
    if ignore_index < len(names):
        by_value.insert(ignore_index, "ignored")
    return classes_by_value(by_value, ignore_index)


def read_class_names(file: Path) -> list[str]:
    """One name a line, line n (from 0) for mask value n. Raises DataError for a file missing, empty or with gaps."""
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: class names cannot be read ({error}). Check the path.") from error
    if not all(names) or not names:
        raise DataError(f"{file}: a line without a class name. Write one name a line, the first for mask value 0.")
    return names


def ade20k_classes(object_info: Path | None) -> Classes:
    """ADE20K's 150 classes: mask value 0 is everything else, and ignored.

    Args:
        object_info: objectInfo150.txt, a table whose last column holds each class's synonyms; the first is taken. None
            calls the classes "class 1" to "class 150".
    """
    names = [f"class {value}" for value in range(1, 151)]
    if object_info is not None:
        rows = [line.split("\t") for line in object_info.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [row[-1].split(",")[0].strip() for row in rows[1:]]
        if [row[0].strip() for row in rows[1:]] != [str(value) for value in range(1, 151)]:
            raise DataError(f"{object_info}: not the table of 150 numbered classes. Take it from the archive again.")
    return Classes(names, _table({value: value - 1 for value in range(1, 151)} | {0: IGNORE, IGNORE: IGNORE}))


CITYSCAPES = {  # the ids that are trained and evaluated; all others up to 33 are ignored
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def cityscapes_classes(*, train_ids: bool) -> Classes:
    """Cityscapes' 19 classes, of masks with the published ids or with those numbered for training."""
    if train_ids:
        return classes_by_value(list(CITYSCAPES), IGNORE)
    ignored = dict.fromkeys([*range(34), IGNORE], IGNORE)
    return Classes(list(CITYSCAPES), _table(ignored | {value: n for n, value in enumerate(CITYSCAPES.values())}))


def _table(meaning: Mapping[int, int]) -> np.ndarray:
    numbers = np.full(256, OUTSIDE, np.uint8)
    numbers[list(meaning)] = list(meaning.values())
    return numbers
