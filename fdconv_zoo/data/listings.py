"""Reads files that list images with their classes: CSV, JSON Lines, and metadata files as on the Hugging Face Hub."""

import json
import logging
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from datasets import Features, Image, Value

from fdconv_zoo.data.columns import find_label_column
from fdconv_zoo.data.files import find_images, report_left_out
from fdconv_zoo.data.splits import SPLIT_NAME, TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.errors import DataError, first_of, listed

_logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the names on the Hub
LISTING_SUFFIXES = (".csv", ".tsv", ".jsonl")

# How a name can identify an image, in the order of trial. Stems come last: a class called 1 is also the stem of 1.png.
_WAYS = ("path", "path without suffix", "name", "stem")
_USUAL_NAMES = ("file_name", "filename", "file", "path", "image")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")  # 007 is a string


class NamesNoImagesError(DataError):
    """A file is a table, but does not list images."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Rows of a file that lists images.

    Attributes:
        file: The file.
        rows: Columns of strings or of integers; None where a value is missing.
        image: The column with the paths of the images.
    """

    file: Path
    rows: pd.DataFrame
    image: str

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.file.parent

    @property
    def features(self) -> Features:
        """Types of the columns."""
        types = {
            name: Value("int64" if any(isinstance(value, int) for value in column) else "string")
            for name, column in self.rows.items()
        }
        return Features(types | {self.image: Image(decode=False)})

    def has_label(self, wanted: str | None) -> bool:
        """Return whether one column is certainly the label: the wanted one, or one called label or labels."""
        return any(name in ((wanted,) if wanted else ("label", "labels")) for name in self.rows if name != self.image)

    def has_values(self, column: str) -> bool:
        """Return whether a column exists and is not empty."""
        return column in self.rows and any(value is not None for value in self.rows[column])

    def label(self, wanted: str | None) -> str:
        """Return the column of labels. Raises DataError, as `find_label_column` does."""
        others = Features({name: kind for name, kind in self.features.items() if name != self.image})
        try:
            return find_label_column(others, wanted)
        except DataError as error:
            raise DataError(f"{self.file}: {error}") from error

    def by_split(self, default: str) -> dict[str, "Listing"]:
        """Divide the rows by their column `split`, or else by their top folders, if all of these are names of splits.

        Otherwise, all rows belong to the split `default`.
        """
        folders = self.rows[self.image].map(lambda path: os.path.relpath(path, self.folder).split(os.sep)[0])
        column = self.rows["split"].map(str) if "split" in self.rows else folders
        for names in (column, folders):
            if {name.lower() for name in names} <= {*TRAIN_NAMES, *VALIDATION_NAMES}:
                rows = self.rows.drop(columns="split", errors="ignore")
                return {name: replace(self, rows=part) for name, part in rows.groupby(names, sort=False)}
        return {default: self}

    def checked(self, label: str) -> "Listing":
        """Return this listing without repeated rows, and log how many there were.

        Raises:
            DataError: an image has several labels.
        """
        rows = self.rows.drop_duplicates([self.image, label])
        if repeated := len(self.rows) - len(rows):
            _logger.warning("%s: left out %d rows that repeat others.", self.file, repeated)
        if twice := sorted(rows[self.image][rows[self.image].duplicated()].unique()):
            raise DataError(
                f"{self.file}: {len(twice)} images have several labels:{listed(twice)}\nKeep one row of each."
            )
        return replace(self, rows=rows)

    def report_unlisted(self) -> None:
        """Log unlisted images: in the folders of listed images, or anywhere below the folder of a metadata file."""
        named = set(self.rows[self.image])
        whole = self.file.name.lower() in METADATA_FILES
        folders = {self.folder} if whole else {Path(path).parent for path in named}
        found = [find_images(folder, recursive=whole)[0] for folder in folders if folder.is_dir()]
        unlisted = [file for images in found for file in images if str(file) not in named]
        report_left_out(self.folder, f"that {self.file.name} does not list", sorted(unlisted))


def read_listing(file: Path, *, image: str | None = None, outside: bool = False) -> Listing:
    """Read a file that lists images.

    The name of an image is a path relative to the folder of the file, or else the name of one image below this folder,
    with or without its suffix.

    Args:
        file: CSV with commas, semicolons or tabs and possibly without a header, JSON Lines or parquet.
        image: The column of names. Default: file_name or another usual name, or the first whose values name images.
        outside: Also accept paths outside the folder of the file.

    Raises:
        NamesNoImagesError: no column names images.
        DataError: the file cannot be read, has no column `image`, or a name is missing, matches several images or leads
            out of the folder.
    """
    file = Path(os.path.abspath(file))
    rows, names = _read_rows(file), _Names(file, outside)
    if any(names.find(name, "path") for name in rows):  # there is no header
        rows = pd.concat([pd.DataFrame([list(rows)], columns=rows.columns), rows])
        rows.columns = [f"column {number}" for number in range(1, len(rows.columns) + 1)]
    rows = pd.DataFrame({name: values for name in rows if (values := _plain(rows[name]))}, dtype=object)
    column = _choose_column(file, rows, names) if image is None else image
    if column not in rows:
        raise DataError(f"{file}: there is no column {column!r}. The columns are {', '.join(rows)}.")
    return Listing(file, rows.assign(**{column: [names.path(value) for value in rows[column]]}), column)


def _read_rows(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".parquet":
            rows = pd.read_parquet(file)
        elif file.suffix.lower() == ".jsonl":
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            rows = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        else:
            with file.open(encoding="utf-8-sig") as opened:
                separator = max(",;\t", key=opened.readline().count)
            # "NA" and "None" are classes, too.
            options = {"dtype": str, "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}
            rows = pd.read_csv(file, sep=separator, **options)
    except (OSError, TypeError, ValueError) as error:  # errors of pandas, JSON and decoding are ValueErrors
        raise DataError(f"{file}: cannot be read as a table ({error}). Save it as CSV in UTF-8.") from error
    rows.columns = [str(name).strip() for name in rows]
    if rows.empty or not rows.columns.is_unique:
        raise DataError(f"{file}: has no rows, or several columns of the same name. Give it one row for each image.")
    return rows


def _plain(column: pd.Series) -> list | None:
    """Return strings, or integers if all values are, with None for missing ones; None for a column of other types."""
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]
    if any(not isinstance(value, str | int | float | None) for value in values):
        return None
    texts = [None if value is None or not str(value).strip() else str(value) for value in values]
    present = [text for text in texts if text is not None]
    if present and all(map(_INTEGER.fullmatch, present)):
        return [None if text is None else int(text) for text in texts]
    return texts


class _Names:
    """Finds the images that a listing names."""

    def __init__(self, file: Path, outside: bool):
        self.file = file
        self.outside = outside

    @cached_property
    def _below(self) -> dict[str, dict[str, list[str]]]:
        found = {by: defaultdict(list) for by in _WAYS[1:]}
        for file in find_images(self.file.parent)[0]:
            place = file.relative_to(self.file.parent).with_suffix("")
            for by, name in zip(_WAYS[1:], (place.as_posix(), file.name, file.stem), strict=True):
                found[by][name].append(str(file))
        return found

    def find(self, name: str, by: str) -> list[str]:
        """Return the files that a name identifies in one of `_WAYS`."""
        if by != "path":
            name = name.replace("\\", "/")
            return self._below[by].get(name if by == "path without suffix" else name.split("/")[-1], [])
        path = self._join(name)
        return [path] if path and os.path.isfile(path) else []

    def path(self, value: str | int | None) -> str:
        """Return the path of an image. It need not exist: missing files are reported when images are checked.

        Raises:
            DataError: the name is missing, matches several images, or leads out of the folder.
        """
        if value is None:
            raise DataError(f"{self.file}: a row names no image. Add the name, or remove the row.")
        name = str(value).strip()
        for by in _WAYS:
            found = self.find(name, by)
            if len(found) > 1 and (split := SPLIT_NAME.match(self.file.name)):  # train.csv lists images in train
                places = {path: os.path.relpath(path, self.file.parent).lower() for path in found}
                found = [path for path in found if places[path].startswith(split[1].lower())] or found
            if len(found) > 1:
                raise DataError(f"{self.file}: {name} could be {first_of(found)}. Write paths relative to the file.")
            if found:
                return found[0]
        path = self._join(name)
        if path is None:
            raise DataError(f"{self.file}: {name} is not below {self.file.parent}. Move the image there.")
        return path

    def _join(self, name: str) -> str | None:
        path = os.path.normpath(self.file.parent / name.replace("\\", "/"))
        return path if self.outside or Path(path).is_relative_to(self.file.parent) else None


def _choose_column(file: Path, rows: pd.DataFrame, names: _Names) -> str:
    ordered = sorted(rows, key=lambda name: (*_USUAL_NAMES, name.lower()).index(name.lower()))
    for by in _WAYS:
        for name in ordered:
            if any(names.find(str(value).strip(), by) for value in rows[name].iloc[:20] if value is not None):
                return name
    raise NamesNoImagesError(
        f"{file}: none of its columns ({', '.join(rows)}) names images in {file.parent}. Put the images there, "
        "and their paths, relative to that folder, into a column file_name."
    )
