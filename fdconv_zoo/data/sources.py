"""Finds the splits of a dataset: image files, or tables that `datasets.load_dataset` reads."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from glob import escape, glob, has_magic
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from fdconv_zoo.data.files import sub_folders
from fdconv_zoo.data.listings import LISTING_SUFFIXES, METADATA_FILES
from fdconv_zoo.data.local import folder_splits, listing_splits
from fdconv_zoo.data.origins import check_origins, check_surroundings
from fdconv_zoo.data.splits import SPLIT_NAME, TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.errors import DataError

SAMPLE = "fashion_mnist_sample"
SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "sample"

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
_TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}


class Splits(Mapping[str, datasets.Dataset | datasets.IterableDataset]):
    """Splits by name, opened on access."""

    def __init__(self, opened: Mapping[str, Callable[[], datasets.Dataset | datasets.IterableDataset]]):
        self._open = opened

    def __getitem__(self, name: str) -> datasets.Dataset | datasets.IterableDataset:
        """Open a split. Raises DataError if its files cannot be listed."""
        return self._open[name]()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


def load_splits(
    dataset: str, *, streaming: bool, image_column: str | None = None, label_column: str | None = None
) -> Splits:
    """Find all splits of the sample, of local files or of a dataset on the Hugging Face Hub.

    Args:
        dataset: As in `load_image_data`.
        streaming: Read parquet files, arrow files and datasets on the Hub as streams.
        image_column, label_column: The columns of files that list images.

    Raises:
        DataError: the path does not exist or contains no images, the splits are ambiguous, the Hub dataset is unknown
            or unreachable, or files cannot be read.
    """
    path = SAMPLE_FOLDER if dataset == SAMPLE else Path(dataset).expanduser()
    if path.is_dir():
        files = _find_tables(path)
        if not files:
            return Splits(folder_splits(path, image_column, label_column))
    elif path.is_file():
        files = [path]
    elif has_magic(dataset):
        files = [Path(name) for name in sorted(glob(str(path), recursive=True))]
        if not files:
            raise DataError(f"{dataset}: no file matches this pattern.")
    elif not _HUB_NAME.fullmatch(dataset) or path.suffix in (*_TABLE_SUFFIXES, *LISTING_SUFFIXES):
        raise DataError(f"{dataset}: no such file or folder, and not the name of a dataset on the Hugging Face Hub.")
    else:
        name, _, config = dataset.partition(":")
        return _load(dataset, name, {"name": config or None}, streaming)
    if all(file.suffix.lower() in LISTING_SUFFIXES for file in files):
        return Splits(listing_splits(files, image_column, label_column, outside=True))
    return _load(dataset, *_table_arguments(files), streaming)


def _load(dataset: str, builder: str, arguments: dict, streaming: bool) -> Splits:
    try:
        loaded = datasets.load_dataset(builder, **arguments, streaming=streaming)
    except Exception as error:  # file formats and the network raise many types
        check_surroundings(error)
        cause = error.__cause__ or error
        detail = f"{type(cause).__name__}: {cause}"
        if "data_files" in arguments:
            message = f"{dataset}: its files cannot be loaded ({detail}). Check that they are complete and not empty."
            raise DataError(message) from error
        raise DataError(
            f"There is no local file or folder {dataset!r}, and it could not be loaded from the Hugging Face Hub "
            f"({detail}). Check the name and the network, or give a local folder of images or parquet files."
        ) from error
    local = Path(dataset).expanduser() if dataset != SAMPLE else SAMPLE_FOLDER
    folder = local if local.is_dir() else local.parent
    checked = check_origins(loaded, folder if "data_files" in arguments else None)
    return Splits({name: partial(checked.__getitem__, name) for name in checked})


def _find_tables(folder: Path) -> list[Path]:
    """Return the parquet files, or else the arrow files, in a folder, its `data`, and folders with names of splits."""
    named = [child for child in sub_folders(folder) if child.name.lower() in TRAIN_NAMES + VALIDATION_NAMES]
    for suffix in _TABLE_SUFFIXES:
        found = [file for parent in (folder, folder / "data", *named) for file in sorted(parent.glob(f"*{suffix}"))]
        if tables := [file for file in found if file.name.lower() not in METADATA_FILES]:
            return tables
    return []


def _table_arguments(files: list[Path]) -> tuple[str, dict]:
    """Return the builder and the arguments of `datasets.load_dataset` for parquet or arrow files.

    The split of a file is the prefix of its name, or else the name of its folder.
    """
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(_TABLE_SUFFIXES):
        raise DataError(f"{files[0]}: files must be all parquet or all arrow, not {', '.join(sorted(suffixes))}.")
    splits = defaultdict(list)
    for file in files:
        match = SPLIT_NAME.match(file.name) or SPLIT_NAME.fullmatch(file.parent.name)
        splits[match[1].lower() if match else None].append(escape(str(file.resolve())))
    unnamed = splits.pop(None, [])
    if unnamed and splits:
        raise DataError(
            f"{unnamed[0]}: cannot tell to which of the splits {', '.join(splits)} this file belongs. Begin its name "
            "with the name of its split, or select the files with a pattern."
        )
    _check_class_names(files)
    return _TABLE_SUFFIXES[suffixes.pop()], {"data_files": dict(splits) or {"train": unnamed}}


def _check_class_names(files: list[Path]) -> None:
    """Raise DataError if two files number their classes differently: `datasets` only reads the first file's names."""
    first = None
    for file in files:
        try:
            features = datasets.Features.from_arrow_schema(_schema(file))
        except Exception as error:
            raise DataError(f"{file}: not a complete {file.suffix[1:]} file ({error}). Repair or remove it.") from error
        names = {column: label.names for column, label in features.items() if isinstance(label, datasets.ClassLabel)}
        first = names if first is None else first
        if names != first:
            raise DataError(
                f"{file} and {files[0]} have different class names: {names} and {first}. "
                "Use the same names in the same order."
            )


def _schema(file: Path) -> pa.Schema:
    if file.suffix == ".parquet":
        return pq.read_schema(file)
    with pa.memory_map(str(file)) as mapped:
        try:
            return pa.ipc.open_stream(mapped).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(mapped).schema
