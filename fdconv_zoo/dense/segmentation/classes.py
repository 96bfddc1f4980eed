"""Maps mask values to classes: each value is a class, ignored or invalid."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fdconv_zoo.data.class_names import match_classes
from fdconv_zoo.errors import DataError

_logger = logging.getLogger(__name__)

IGNORE = 255  # class index of pixels that are excluded from training and evaluation
INVALID = 254  # class index of mask values that are not a class; the checks reject them


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: Names of the K classes, in the order of their indices.
        lookup: The class index 0..K-1, `IGNORE` or `INVALID` of each mask value, uint8 (256,).
    """

    names: list[str]
    lookup: np.ndarray

    def count(self, pixels: np.ndarray) -> np.ndarray:
        """Convert numbers of pixels by mask value, int32 (N, 256), to numbers by class, int64 (N, K)."""
        return np.stack([pixels[:, self.lookup == index].sum(axis=1) for index in range(len(self.names))], axis=1)

    def renamed(self, names: Sequence[str] | None) -> "Classes":
        """Return these classes with other names, unless None. Raises DataError if the number of names is wrong."""
        if names is None:
            return self
        if len(names) != len(self.names):
            raise DataError(f"Got {len(names)} class names, but this dataset has {len(self.names)} classes.")
        return replace(self, names=list(names))

    def numbered_as(self, model: str, trained: Sequence[str]) -> "Classes":
        """Return the classes of a model, assigned to the mask values of the same names.

        Args:
            model: Name of the model, for the message.
            trained: Class names of the model. If only the model or only the dataset has class names, classes are
                matched by their order.

        Raises:
            ConfigError: the model does not have a class of the dataset.
            DataError: classes are matched by their order, but their number differs.
        """
        if are_numbers(self.names) != are_numbers(trained):
            _logger.warning("Either %s or the dataset has no class names: classes are matched by their order.", model)
            return self.renamed(trained)
        numbers = match_classes(model, trained, self.names)
        lookup = self.lookup.copy()
        for index, number in enumerate(numbers):
            lookup[self.lookup == index] = number
        return Classes(list(trained), lookup)


def classes_of_model(model: str, names: Sequence[str], ignore_index: int) -> Classes:
    """Return the classes of a model for the masks of a dataset without class names.

    Args:
        model: Name of the model, for messages.
        names: Class names of the model. Names such as "class 7" belong to that mask value; other names belong to the
            mask values in order.
        ignore_index: Mask value, 0..255, of pixels that are excluded from evaluation.

    Raises:
        DataError: the ignored value is a class of the model.
    """
    if not are_numbers(names):
        _logger.warning(
            "The dataset has no class names: its mask values are read as the classes of %s, in order.", model
        )
        return named_classes(names, ignore_index)
    values = {int(name.removeprefix("class ")): index for index, name in enumerate(names)}
    if ignore_index in values:
        raise DataError(f"The ignored value {ignore_index} is a class of {model}. Choose another with --ignore-index.")
    return Classes(list(names), _lookup(values | {ignore_index: IGNORE}))


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether classes have no names of their own, but are named after their mask values."""
    return all(re.fullmatch(r"class (\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])", name) for name in names)


def classes_by_value(names: Sequence[str], ignore_index: int) -> Classes:
    """Build classes in the order of mask values; values above the ignored one move down by one.

    Args:
        names: Names of the values 0, 1, ...; a name for the ignored value is skipped.
        ignore_index: Mask value, 0..255, of pixels that are excluded from training and evaluation.

    Raises:
        DataError: a name occurs twice, or there are more classes than 8-bit masks can encode.
    """
    values = [value for value in range(len(names)) if value != ignore_index]
    if len(values) > INVALID:
        raise DataError(f"{len(values)} classes, but 8-bit masks support at most {INVALID}.")
    kept = [names[value] for value in values]
    if repeated := sorted({name for name in kept if kept.count(name) > 1}):
        raise DataError(f"Class names that occur more than once: {', '.join(repeated)}. Use unique names.")
    return Classes(kept, _lookup(dict(zip(values, range(len(values)), strict=True)) | {ignore_index: IGNORE}))


def numbered_classes(largest: int, ignore_index: int) -> Classes:
    """Build classes named after their mask values, 0 to `largest`. Raises DataError if there are too many."""
    return classes_by_value([f"class {value}" for value in range(largest + 1)], ignore_index)


def named_classes(names: Sequence[str], ignore_index: int) -> Classes:
    """Build classes from names in the order of class indices, without a name for the ignored value."""
    by_value = list(names)
    if ignore_index < len(names):
        by_value.insert(ignore_index, "ignored")
    return classes_by_value(by_value, ignore_index)


def read_class_names(file: Path) -> list[str]:
    """Read one class name per line, line n (from 0) for mask value n.

    Raises:
        DataError: the file cannot be read, is empty, or has an empty line.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Check the path of the class names.") from error
    if not all(names) or not names:
        raise DataError(f"{file}: a line without a class name. Write one name per line, the first for mask value 0.")
    return names


def ade20k_classes(object_info: Path | None) -> Classes:
    """Return ADE20K's 150 classes; mask value 0, everything else, is ignored.

    Args:
        object_info: The table objectInfo150.txt, whose last column lists the synonyms of each class. The first one is
            used. None: the classes are called "class 1" to "class 150".

    Raises:
        DataError: the file is not that table.
    """
    names = [f"class {value}" for value in range(1, 151)]
    if object_info is not None:
        rows = [line.split("\t") for line in object_info.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [row[-1].split(",")[0].strip() for row in rows[1:]]
        if [row[0].strip() for row in rows[1:]] != [str(value) for value in range(1, 151)]:
            raise DataError(f"{object_info}: not the table of 150 numbered classes. Extract it from the archive again.")
    return Classes(names, _lookup({value: value - 1 for value in range(1, 151)} | {0: IGNORE, IGNORE: IGNORE}))


CITYSCAPES = {  # ids used for training and evaluation; all others up to 33 are ignored
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
    """Return Cityscapes' 19 classes, for masks with the training ids (trainIds) or with the published ids."""
    if train_ids:
        return classes_by_value(list(CITYSCAPES), IGNORE)
    ignored = dict.fromkeys([*range(34), IGNORE], IGNORE)
    return Classes(
        list(CITYSCAPES), _lookup(ignored | {value: index for index, value in enumerate(CITYSCAPES.values())})
    )


def _lookup(class_of_value: Mapping[int, int]) -> np.ndarray:
    lookup = np.full(256, INVALID, np.uint8)
    lookup[list(class_of_value)] = list(class_of_value.values())
    return lookup
