"""Finds the image column and the label column, and converts labels to class indices."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

from fdconv_zoo.data.class_names import check_spelling
from fdconv_zoo.errors import DataError

_LABEL_TYPES = ("string", "large_string", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def find_image_column(features: Features, wanted: str | None) -> str:
    """Return `wanted`, or else the only column of images.

    If there are several, the one called "image" or "images" is used.

    Raises:
        DataError: there is no such column, or the choice is ambiguous; the message lists the columns.
    """
    images = [name for name, feature in features.items() if _is_image(feature)]
    if wanted is not None and wanted in features and wanted not in images:
        raise DataError(f"Column {wanted!r} holds {features[wanted]}, not images. {_column_list('Image', images)}.")
    return _choose_column("image", "--image-column", features, wanted, [images])


def find_label_column(features: Features, wanted: str | None) -> str:
    """Return `wanted`, or else the only ClassLabel column, or else the only column of strings or integers.

    If there are several, the one called "label" or "labels" is used.

    Raises:
        DataError: there is no such column, or the choice is ambiguous; the message lists the columns.
    """
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [name for name, feature in features.items() if _is_value(feature)]
    if wanted is not None and wanted in features and wanted not in named + plain:
        raise DataError(
            f"Column {wanted!r} holds {features[wanted]}, not one class per image. "
            f"{_column_list('Label', named + plain)}."
        )
    return _choose_column("label", "--label-column", features, wanted, [named, plain])


def _choose_column(kind: str, flag: str, features: Features, wanted: str | None, tiers: list[list[str]]) -> str:
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"There is no column {wanted!r}. The columns are {', '.join(features)}.")
        return wanted
    for candidates in filter(None, tiers):
        usual = [name for name in candidates if name in (kind, f"{kind}s")]
        for choice in (candidates, usual):
            if len(choice) == 1:
                return choice[0]
        raise DataError(f"Several columns could be the {kind}: {', '.join(candidates)}. Choose one with {flag}.")
    raise DataError(f"No {kind} column found. The columns are {', '.join(features)}. Choose one with {flag}.")


def _column_list(kind: str, names: list[str]) -> str:
    return f"{kind} columns: {', '.join(names) or 'none'}"


def _is_image(feature: object) -> bool:
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def _is_value(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in _LABEL_TYPES


def select_undecoded(source: Dataset | IterableDataset, image: str, label: str) -> Dataset | IterableDataset:
    """Select the two columns, named `image` and `label`, and leave the images encoded."""
    # Selecting first drops any other column that is already called `image` or `label`.
    source = source.select_columns([image, label]).cast_column(image, Image(decode=False))
    names = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return source.rename_columns(names) if names else source


def encode_labels(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Convert the labels of all splits to class indices, which are the same in every split.

    Raises:
        DataError: a label is missing, or outside the range of its ClassLabel, or classes differ only in case or blanks.
    """
    for name, source in splits.items():
        _check_labels(name, source)
    if isinstance(next(iter(splits.values())).features["label"], ClassLabel):
        return splits
    names = _distinct_labels(list(splits.values()))
    feature = ClassLabel(names=[str(name) for name in names])
    check_spelling(feature.names)
    encoded = {}
    for name, source in splits.items():
        labels = np.searchsorted(np.asarray(names), np.asarray(_label_column(source).to_pylist()))
        encoded[name] = source.remove_columns("label").add_column("label", labels, feature=feature)
    return encoded


def renumber_labels(
    source: Dataset | IterableDataset, numbers: Sequence[int], class_names: Sequence[str]
) -> Dataset | IterableDataset:
    """Map class indices to those of another list of classes.

    Args:
        source: Dataset with a column `label`.
        numbers: The new index of each class.
        class_names: Names of the new classes.
    """
    if list(numbers) == list(range(len(class_names))):
        return source
    feature = ClassLabel(names=list(class_names))
    if isinstance(source, Dataset):
        labels = np.asarray(numbers)[read_labels(source)]
        return source.remove_columns("label").add_column("label", labels, feature=feature)
    lookup = partial(_renumbered, numbers=list(numbers))
    return source.map(lookup, input_columns="label", features=Features({**source.features, "label": feature}))


def _renumbered(label: int | None, numbers: list[int]) -> dict[str, int | None]:
    known = label is not None and 0 <= label < len(numbers)
    return {"label": numbers[label] if known else label}  # an invalid label raises an error when the stream is read


def read_labels(source: Dataset) -> np.ndarray:
    """Return the class indices of all rows, shape (N,)."""
    return _label_column(source).to_numpy()


def _label_column(source: Dataset) -> pa.ChunkedArray:
    return source.select_columns("label").with_format("arrow")[:].column("label")


def _distinct_labels(splits: list[Dataset]) -> list:
    return sorted(set().union(*(_label_column(source).unique().to_pylist() for source in splits)))


def _check_labels(name: str, source: Dataset) -> None:
    labels = _label_column(source)
    feature = source.features["label"]
    missing = labels.is_null()
    if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
        missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(labels), "")).fill_null(True)
    if count := pc.sum(missing).as_py():
        row = missing.index(True).as_py()
        raise DataError(f"Split {name!r}: {count} rows have no label, the first is row {row}. Remove them.")
    if isinstance(feature, ClassLabel):
        indices = labels.to_numpy()
        bad = np.flatnonzero((indices < 0) | (indices >= feature.num_classes))
        if len(bad):
            raise DataError(
                f"Split {name!r}: {len(bad)} labels are not in 0 to {feature.num_classes - 1}, the first is "
                f"{indices[bad[0]]} in row {bad[0]}. Remove such rows, or choose another split."
            )
