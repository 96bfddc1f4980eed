"""Finds the image and the label column, and turns labels into class numbers."""

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

from fdconv_zoo.errors import DataError

_LABEL_TYPES = ("string", "large_string", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def find_image_column(features: Features, wanted: str | None) -> str:
    """The wanted column, or else the only one of images. Raises DataError, naming those there are."""
    images = [name for name, feature in features.items() if _is_image(feature)]
    if wanted is not None and wanted in features and wanted not in images:
        raise DataError(f"Column {wanted!r} holds {features[wanted]}, not images. {_listing('Image', images)}.")
    return _pick("image", "--image-column", features, wanted, [images])


def find_label_column(features: Features, wanted: str | None) -> str:
    """The wanted column, or else the only ClassLabel, or else the only one of strings or integers.

    Among several, one called "label" or "labels" is taken. Raises DataError, naming those there are.
    """
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [name for name, feature in features.items() if _is_value(feature)]
    if wanted is not None and wanted in features and wanted not in named + plain:
        raise DataError(
            f"Column {wanted!r} holds {features[wanted]}, not one class an image. {_listing('Label', named + plain)}."
        )
    return _pick("label", "--label-column", features, wanted, [named, plain])


def _pick(kind: str, flag: str, features: Features, wanted: str | None, tiers: list[list[str]]) -> str:
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
    raise DataError(f"No {kind} column found. The columns are {', '.join(features)}; name one with {flag}.")


def _listing(kind: str, names: list[str]) -> str:
    return f"{kind} columns: {', '.join(names) or 'none'}"


def _is_image(feature: object) -> bool:
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def _is_value(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in _LABEL_TYPES


def undecoded(source: Dataset | IterableDataset, image: str, label: str) -> Dataset | IterableDataset:
    """Only the two columns, as `image` and `label`; images stay encoded until they are asked for."""
    # A column in the way of a new name has to go first.
    source = source.select_columns([image, label]).cast_column(image, Image(decode=False))
    names = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return source.rename_columns(names) if names else source


def encode_labels(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """The splits with class numbers for labels, the same in all of them.

    Raises:
        DataError: a missing label, or one out of the range of its ClassLabel.
    """
    for name, source in splits.items():
        _check_labels(name, source)
    if isinstance(next(iter(splits.values())).features["label"], ClassLabel):
        return splits
    values = _values(list(splits.values()))
    feature = ClassLabel(names=[str(value) for value in values])
    encoded = {}
    for name, source in splits.items():
        numbers = np.searchsorted(np.asarray(values), np.asarray(_labels(source).to_pylist()))
        encoded[name] = source.remove_columns("label").add_column("label", numbers, feature=feature)
    return encoded


def label_numbers(source: Dataset) -> np.ndarray:
    """Class numbers of all rows, shape (N,)."""
    return _labels(source).to_numpy()


def _labels(source: Dataset) -> pa.ChunkedArray:
    return source.select_columns("label").with_format("arrow")[:].column("label")


def _values(splits: list[Dataset]) -> list:
    return sorted(set().union(*(_labels(source).unique().to_pylist() for source in splits)))


def _check_labels(name: str, source: Dataset) -> None:
    labels = _labels(source)
    feature = source.features["label"]
    if labels.null_count:
        row = labels.is_null().index(True).as_py()
        raise DataError(
            f"Split {name!r}: {labels.null_count} rows, the first is row {row}, have no label. Remove them."
        )
    if isinstance(feature, ClassLabel):
        numbers = labels.to_numpy()
        bad = np.flatnonzero((numbers < 0) | (numbers >= feature.num_classes))
        if len(bad):
            raise DataError(
                f"Split {name!r}: {len(bad)} labels are not 0 to {feature.num_classes - 1}, the first is "
                f"{numbers[bad[0]]} in row {bad[0]}. Remove such rows, or choose another split."
            )
