"""Loads the splits of a dataset by `datasets.load_dataset`, with explicit files for each split."""

import logging
import re
from collections import defaultdict
from glob import escape, glob, has_magic
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fdconv_zoo.data.origins import check_origins, check_surroundings
from fdconv_zoo.data.splits import TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.errors import DataError

_logger = logging.getLogger(__name__)

SAMPLE = "fashion_mnist_sample"
SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "sample"

_SPLIT_NAME = re.compile(rf"({'|'.join(TRAIN_NAMES + VALIDATION_NAMES)})(?![a-z])", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
_TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}

Splits = datasets.DatasetDict | datasets.IterableDatasetDict


def load_splits(dataset: str, *, streaming: bool) -> Splits:
    """Load all splits of the sample, of local files or of a dataset on the Hugging Face Hub.

    Raises:
        DataError: the path does not exist or contains no images, the splits are ambiguous, the Hub dataset is unknown
            or unreachable, or files cannot be read.
    """
    builder, arguments = _load_arguments(dataset)
    try:
        loaded = datasets.load_dataset(builder, **arguments, streaming=streaming)
    except Exception as error:  # whatever the file formats and the network raise
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
    if builder == "imagefolder":
        return loaded
    local = Path(dataset).expanduser() if dataset != SAMPLE else SAMPLE_FOLDER
    folder = local if local.is_dir() else local.parent
    return type(loaded)(check_origins(loaded, folder if "data_files" in arguments else None))


def _load_arguments(dataset: str) -> tuple[str, dict]:
    """Return the builder and the arguments of `datasets.load_dataset`."""
    path = SAMPLE_FOLDER if dataset == SAMPLE else Path(dataset).expanduser()
    if path.is_dir():
        return _folder_arguments(path)
    if path.is_file():
        return _table_arguments([path])
    if has_magic(dataset):
        files = [Path(name) for name in sorted(glob(str(path), recursive=True))]
        if not files:
            raise DataError(f"{dataset}: no file matches this pattern.")
        return _table_arguments(files)
    if not _HUB_NAME.fullmatch(dataset) or path.suffix in _TABLE_SUFFIXES:
        raise DataError(f"{dataset}: no such file or folder, and not the name of a dataset on the Hugging Face Hub.")
    name, _, config = dataset.partition(":")
    return name, {"name": config or None}


def _folder_arguments(folder: Path) -> tuple[str, dict]:
    # `datasets` would infer splits from the name of any file or folder: it would take a class called "train", or an
    # image called "test 1.jpg", for a split and silently drop everything else.
    children = sub_folders(folder)
    named = [child for child in children if child.name.lower() in TRAIN_NAMES + VALIDATION_NAMES]
    for suffix in _TABLE_SUFFIXES:
        tables = [file for parent in (folder, folder / "data", *named) for file in sorted(parent.glob(f"*{suffix}"))]
        if tables:
            return _table_arguments(tables)
    if named and (named == children or any(sub_folders(child) for child in named)):
        if ignored := [child.name for child in children if child not in named]:
            _logger.warning("%s: reads only %s and ignores %s.", folder, [child.name for child in named], ignored)
        files = {split.name: _image_files(split) for split in named}
    else:
        files = {"train": _image_files(folder)}
    # By default, `datasets` drops the labels if there is only one class.
    return "imagefolder", {"data_files": files, "drop_labels": False}


def sub_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders in alphabetical order, none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _image_files(folder: Path) -> str:
    """Return the pattern of the images in class folders. Raises DataError for no images, or for nested folders."""
    class_folders = sub_folders(folder)
    for class_folder in class_folders:
        if nested := sub_folders(class_folder):
            raise DataError(
                f"{nested[0]}: a folder inside a class folder. Put all images of a class directly into {class_folder}."
            )
    files = [file for class_folder in class_folders for file in class_folder.iterdir()]
    if not any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in files):
        raise DataError(
            f"{folder}: no images found. Put the images of each class into a sub-folder named after the class."
        )
    return f"{escape(str(folder.resolve()))}/*/*"


def _table_arguments(files: list[Path]) -> tuple[str, dict]:
    """Parquet or arrow files. Their split is the prefix of the file name, or else the name of the folder."""
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(_TABLE_SUFFIXES):
        raise DataError(f"{files[0]}: files must be all parquet or all arrow, not {', '.join(sorted(suffixes))}.")
    splits = defaultdict(list)
    for file in files:
        match = _SPLIT_NAME.match(file.name) or _SPLIT_NAME.fullmatch(file.parent.name)
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
