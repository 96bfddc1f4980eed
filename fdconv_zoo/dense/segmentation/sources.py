"""From what the user calls a dataset to its splits: tables of undecoded images and masks."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from datasets import Dataset, Features, Image

from fdconv_zoo.data.sources import load_splits
from fdconv_zoo.dense.canvases import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.segmentation.columns import find_columns, undecoded_pairs
from fdconv_zoo.dense.segmentation.layouts import Layout, find_layout
from fdconv_zoo.errors import DataError


def find_splits(
    dataset: str, image_column: str | None, mask_column: str | None
) -> tuple[dict[str, Callable[[], Dataset]], Layout | None]:
    """The splits, each a function that opens it, and the layout of a folder of image files.

    Raises:
        DataError: a folder without images and masks, or whatever `load_splits` finds wrong. The functions raise it for
            files without partner, and for columns that cannot be told.
    """
    folder = Path(dataset).expanduser()
    if dataset == FASHION_CANVASES:
        folder = canvases_folder()
    layout = find_layout(folder) if folder.is_dir() else None
    if layout is None:
        if folder.is_dir() and not _has_tables(folder):
            raise DataError(
                f"{folder}: no images with masks found. Make it images/train and masks/train (and so for validation), "
                "or train/images and train/masks, or give the folder that holds ADE20K's images and annotations, "
                "Cityscapes' leftImg8bit and gtFine, or parquet files."
            )
        tables = load_splits(dataset, streaming=False)
        return {name: partial(_table, table, image_column, mask_column) for name, table in tables.items()}, None
    if image_column or mask_column:
        raise DataError(f"{folder}: image files have no columns: leave --image-column and --mask-column out.")
    return {name: partial(_file_table, layout, name) for name in layout.splits}, layout


def _has_tables(folder: Path) -> bool:
    return any(file.suffix in (".parquet", ".arrow") for file in chain(folder.glob("*"), folder.glob("*/*")))


def _table(table: Dataset, image_column: str | None, mask_column: str | None) -> Dataset:
    return undecoded_pairs(table, *find_columns(table.features, image_column, mask_column))


def _file_table(layout: Layout, split: str) -> Dataset:
    pairs = [(str(image), str(mask)) for image, mask in layout.pairs(split)]
    stamps = [[(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, pair)] for pair in pairs]
    features = Features(image=Image(decode=False), mask=Image(decode=False))
    return Dataset.from_generator(_records, features, gen_kwargs={"pairs": pairs, "stamps": stamps})


def _records(pairs: list[tuple[str, str]], stamps: list) -> Iterator[dict[str, str]]:
    """Rows of paths. By the arguments `datasets` tells whether it knows the files: the stamps change with them."""
    for image, mask in pairs:
        yield {"image": image, "mask": mask}
