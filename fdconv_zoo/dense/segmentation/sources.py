"""Finds the splits of a dataset: tables of undecoded images and masks."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from datasets import Dataset, Features, Image

from fdconv_zoo.data.sources import load_splits
from fdconv_zoo.dense.canvases import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.segmentation.columns import find_columns, select_undecoded_pairs
from fdconv_zoo.dense.segmentation.layouts import Layout, find_layout
from fdconv_zoo.errors import DataError


def find_splits(
    dataset: str, image_column: str | None, mask_column: str | None
) -> tuple[dict[str, Callable[[], Dataset]], Layout | None]:
    """Find the splits of a dataset.

    Returns:
        For each split, a function that opens it, and the layout if the dataset is a folder of image files. The
        functions raise DataError for files without a partner and for ambiguous columns.

    Raises:
        DataError: the folder does not contain images and masks, or `load_splits` raises it.
    """
    folder = Path(dataset).expanduser()
    if dataset == FASHION_CANVASES:
        folder = canvases_folder()
    layout = find_layout(folder) if folder.is_dir() else None
    if layout is None:
        if folder.is_dir() and not _has_tables(folder):
            raise DataError(
                f"{folder}: no images with masks found. Put them into images/train and masks/train (likewise for "
                "validation), or train/images and train/masks; or choose a folder with images and annotations of "
                "ADE20K, leftImg8bit and gtFine of Cityscapes, or parquet files."
            )
        tables = load_splits(dataset, streaming=False)
        return {name: partial(_select_pairs, table, image_column, mask_column) for name, table in tables.items()}, None
    if image_column or mask_column:
        raise DataError(f"{folder}: image files do not have columns. Remove --image-column and --mask-column.")
    return {name: partial(_list_files, layout, name) for name in layout.splits}, layout


def _has_tables(folder: Path) -> bool:
    return any(file.suffix in (".parquet", ".arrow") for file in chain(folder.glob("*"), folder.glob("*/*")))


def _select_pairs(table: Dataset, image_column: str | None, mask_column: str | None) -> Dataset:
    return select_undecoded_pairs(table, *find_columns(table.features, image_column, mask_column))


def _list_files(layout: Layout, split: str) -> Dataset:
    pairs = [(str(image), str(mask)) for image, mask in layout.pairs(split)]
    stamps = [[(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, pair)] for pair in pairs]
    features = Features(image=Image(decode=False), mask=Image(decode=False))
    return Dataset.from_generator(_file_records, features, gen_kwargs={"pairs": pairs, "stamps": stamps})


def _file_records(pairs: list[tuple[str, str]], stamps: list) -> Iterator[dict[str, str]]:
    """Yield rows of paths. `stamps` are part of the cache key of `datasets`, so that changed files are read again."""
    for image, mask in pairs:
        yield {"image": image, "mask": mask}
