"""Finds the splits of local image files: class folders, and files that list images with their classes."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, config
from datasets.exceptions import DatasetGenerationError

from fdconv_zoo.data.files import has_images, sub_folders
from fdconv_zoo.data.folders import ClassFolders, find_class_folders
from fdconv_zoo.data.listings import LISTING_SUFFIXES, METADATA_FILES, Listing, NamesNoImagesError, read_listing
from fdconv_zoo.data.splits import SPLIT_NAME, TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.errors import DataError, first_of

_logger = logging.getLogger(__name__)

Open = Callable[[], Dataset]  # opens a split, with a column of undecoded images and at least one other column


def folder_splits(folder: Path, image: str | None, label: str | None) -> dict[str, Open]:
    """Find the splits of a folder of images.

    The first of these that exists is used: a metadata file with a column of labels; folders with the names of splits;
    class folders; another file that lists images.

    Args:
        folder: Where to look.
        image, label: Columns in files that list images. Default: as `read_listing` and `find_label_column` find them.

    Raises:
        DataError: there are no images with labels.
    """
    folder = Path(os.path.abspath(folder))
    children = sub_folders(folder)
    named = [child for child in children if child.name.lower() in TRAIN_NAMES + VALIDATION_NAMES]
    metadata = _find_metadata(folder, image)
    if metadata and metadata.has_label(label):
        return _listing_splits([metadata], label)
    if named and (named == children or any(sub_folders(child) or _metadata_files(child) for child in named)):
        if ignored := [child.name for child in children if child not in named]:
            _logger.warning("%s: reads only %s and ignores %s.", folder, [child.name for child in named], ignored)
        if splits := _named_splits(named, image, label):
            return splits
        classes = ClassFolders(folder, [])
    else:
        classes = find_class_folders(folder)
    listings = _files_with(folder, LISTING_SUFFIXES)
    if len(classes.children) > 1:
        listings = [file for file in listings if file.name.lower() not in METADATA_FILES]  # label column unclear
    if listings and classes.doubtful:
        try:
            return listing_splits(listings, image, label)
        except NamesNoImagesError:
            if not classes.children:
                raise
    if not classes.children:
        raise _no_classes(folder)
    if metadata:
        _logger.warning("%s: not read, the folders are the classes; --label-column uses it instead.", metadata.file)
    return {"train": partial(_open_classes, classes)}


def listing_splits(
    files: Sequence[Path], image: str | None, label: str | None, *, outside: bool = False
) -> dict[str, Open]:
    """Find the splits in files that list images. If there are several, their names must begin with those of splits.

    Args:
        files: CSV or JSON Lines.
        image, label: As for `folder_splits`.
        outside: Also accept images that are not below the folder of their file.

    Raises:
        DataError: as `read_listing`, a file belongs to no split, or several files have the same split.
    """
    if len(files) > 1:
        files = [file for file in files if SPLIT_NAME.match(file.name)] or files
    return _listing_splits([read_listing(file, image=image, outside=outside) for file in files], label)


def _listing_splits(listings: list[Listing], label: str | None) -> dict[str, Open]:
    parts: dict[str, Listing] = {}
    for listing in listings:
        listing.report_unlisted()
        match = SPLIT_NAME.match(listing.file.name)
        if match is None and len(listings) > 1:
            raise DataError(
                f"{listing.file}: begin the name with that of its split, such as train, or choose one file."
            )
        for split, part in listing.by_split(match[1].lower() if match else "train").items():
            if split in parts:
                raise DataError(f"{listing.file} and {parts[split].file} both have the split {split}. Choose one file.")
            parts[split] = part
    first = next((part for name, part in parts.items() if name.lower() in TRAIN_NAMES), next(iter(parts.values())))
    chosen = first.label(label)
    if unlabelled := [name for name, part in parts.items() if not part.has_values(chosen)]:
        _logger.warning("%s: left out %s, which have no %s.", first.folder, first_of(unlabelled), chosen)
    return {name: partial(_open_listing, part, chosen) for name, part in parts.items() if name not in unlabelled}


def _named_splits(folders: list[Path], image: str | None, label: str | None) -> dict[str, Open]:
    splits: dict[str, Open] = {}
    unlabelled = []
    for folder in folders:
        metadata = _find_metadata(folder, image)
        classes = find_class_folders(folder)
        if metadata and (metadata.has_label(label) or not classes.children):
            metadata.report_unlisted()
            splits[folder.name] = partial(_open_listing, metadata, metadata.label(label))
        elif classes.children:
            splits[folder.name] = partial(_open_classes, classes)
        elif has_images(folder):
            unlabelled.append(folder.name)
        else:
            raise _no_classes(folder)
    if splits and unlabelled:
        parent = folders[0].parent
        _logger.warning("%s: left out %s: no class folders, so no labels.", parent, first_of(unlabelled))
    return splits


def _find_metadata(folder: Path, image: str | None) -> Listing | None:
    files = _metadata_files(folder)
    if len(files) > 1:
        raise DataError(f"{folder}: has {' and '.join(file.name for file in files)}. Keep one of them.")
    if not files:
        return None
    try:
        return read_listing(files[0], image=image)
    except NamesNoImagesError as error:
        if not any(map(has_images, sub_folders(folder))):
            raise
        _logger.warning("Not read: %s", error)
        return None


def _metadata_files(folder: Path) -> list[Path]:
    return [file for file in _files_with(folder, (".csv", ".jsonl", ".parquet")) if file.name.lower() in METADATA_FILES]


def _files_with(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())


def _no_classes(folder: Path) -> DataError:
    found = "its images are not in class folders" if has_images(folder) else "no images found"
    return DataError(
        f"{folder}: {found}. Put the images of each class into a sub-folder named after the class, or list "
        "their names and classes in a file metadata.csv with the columns file_name and label."
    )


def _open_classes(classes: ClassFolders) -> Dataset:
    paths, labels = zip(*classes.list_images(), strict=True)
    features = Features(image=Image(decode=False), label=Value("string"))
    return as_dataset({"image": paths, "label": labels}, "image", features)


def _open_listing(listing: Listing, label: str) -> Dataset:
    listing = listing.checked(label)
    return as_dataset({name: tuple(listing.rows[name]) for name in listing.rows}, listing.image, listing.features)


def as_dataset(columns: dict[str, tuple], image: str, features: Features) -> Dataset:
    """Build a table of image files, which `datasets` caches until one of the files changes.

    Args:
        columns: Values by column.
        image: The column with the paths of the images.
        features: Types of the columns.

    Raises:
        DataError: the cache cannot be written to.
    """
    stamps = tuple(map(_stamp, columns[image]))
    # Tuples, because `datasets` would treat lists as shards, and call `_rows` for each item.
    arguments = {"columns": columns, "stamps": stamps}
    try:
        return Dataset.from_generator(_rows, features, gen_kwargs=arguments)
    except (OSError, DatasetGenerationError) as error:
        raise DataError(
            f"The list of images cannot be written to {config.HF_DATASETS_CACHE}, the cache of the datasets library "
            f"({error.__cause__ or error}). Make room there, or set HF_DATASETS_CACHE or HF_HOME to another folder."
        ) from error


def _rows(columns: dict[str, tuple], stamps: tuple) -> Iterator[dict[str, Any]]:
    """Yield rows. `stamps` are part of the cache key of `datasets`, so that changed files are read again."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # reported when images are checked
    return status.st_size, status.st_mtime_ns
