"""Checks which image files tables may name, and whether `datasets` can write to its cache."""

import errno
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset
from huggingface_hub import constants

from fdconv_zoo.errors import DataError, listed

_HUB = "hf://"


def check_surroundings(error: BaseException) -> None:
    """Raise DataError if loading failed for a reason other than the content of the files.

    These reasons are a name that is not UTF-8, and a cache of `datasets` that is full or cannot be written to.
    """
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeEncodeError):
        raise DataError(f"{cause.object!a}: this name is not UTF-8, as tables need it. Rename it.") from error
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    reason = error.strerror if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as unwritable:
        reason = unwritable.strerror
    if reason:
        raise DataError(
            f"The cache {cache} of the datasets library cannot be written to ({reason}). Make room there, or set "
            "HF_DATASETS_CACHE or HF_HOME to another folder."
        ) from error


def check_origins(
    splits: Mapping[str, Dataset | IterableDataset], folder: Path | None
) -> dict[str, Dataset | IterableDataset]:
    """Check that tables contain their images, or name only files that belong to the dataset.

    Instead of an image, a table can name any file on this machine, such as a private file or an endless device.

    Args:
        splits: Tables, or streams of them; a stream is checked while it is read.
        folder: Folder of a local table, which may name files below it. None: the table is from the Hub, and may name
            files in the caches of `datasets` and huggingface_hub.

    Returns:
        The splits.

    Raises:
        DataError: a table names other files.
    """
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    folders = [Path(place).resolve() for place in ([folder] if folder else caches)]
    return {name: _checked(name, split, folders) for name, split in splits.items()}


def _checked(name: str, split: Dataset | IterableDataset, folders: Sequence[Path]) -> Dataset | IterableDataset:
    columns = [column for column, feature in (split.features or {}).items() if _is_image(feature)]
    if isinstance(split, IterableDataset):
        for column in columns:
            split = split.cast_column(column, Image(decode=False))  # otherwise the check would decode every image
        kwargs = {"columns": columns, "folders": folders, "split": name}
        return split.map(_check_row, fn_kwargs=kwargs, features=Features(split.features)) if columns else split
    bad = []
    for column in columns:
        images = split.data.column(column)
        paths = pc.struct_field(images, "path").filter(pc.is_null(pc.struct_field(images, "bytes")))
        bad += [path for path in paths.to_pylist() if not _is_own(path, folders)]
    _refuse(name, bad)
    return split


def _check_row(row: dict[str, Any], columns: Sequence[str], folders: Sequence[Path], split: str) -> dict[str, Any]:
    named = [row[column]["path"] for column in columns if row[column] and row[column].get("bytes") is None]
    _refuse(split, [path for path in named if not _is_own(path, folders)])
    return row


def _refuse(split: str, paths: Sequence[str]) -> None:
    if paths:
        raise DataError(
            f"Split {split!r} names {len(paths)} files outside its folder instead of holding images:{listed(paths)}\n"
            "Put the files into the folder of the table, or the images into the table "
            "(`Dataset.cast_column(name, Image())` before `to_parquet`)."
        )


def _is_image(feature: object) -> bool:
    return isinstance(feature, Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())


def _is_own(path: str | None, folders: Sequence[Path]) -> bool:
    if not path:  # an empty record, which is reported as an image that cannot be read
        return True
    if "://" in path:
        return path.rpartition("::")[2].startswith(_HUB)
    place = Path(os.path.realpath(path))
    return any(folder in place.parents for folder in folders) and (place.is_file() or not place.exists())
