"""A user's images and masks, found, checked and ready for training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fdconv_zoo.data.splits import limited, stratified, used_splits
from fdconv_zoo.dense.segmentation.checks import check_files, check_training_classes, check_values
from fdconv_zoo.dense.segmentation.classes import (
    IGNORE,
    Classes,
    classes_by_value,
    named_classes,
    numbered_classes,
    read_class_names,
)
from fdconv_zoo.dense.segmentation.findings import Findings, look_at
from fdconv_zoo.dense.segmentation.layouts import Layout
from fdconv_zoo.dense.segmentation.references import References
from fdconv_zoo.dense.segmentation.sources import find_splits
from fdconv_zoo.errors import DataError


@dataclass(frozen=True)
class SegmentationData:
    """Images with masks, each (RGB image, class numbers uint8 (H, W)), decoded when asked for.

    Attributes:
        train: None for `split="validation"`.
        validation: in its own order.
        class_names: K of them; the masks hold their numbers 0..K-1, and `IGNORE` where there is no label.
    """

    train: References | None
    validation: References
    class_names: list[str]


def load_segmentation_data(
    dataset: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    class_names: Sequence[str] | None = None,
    class_names_file: str | Path | None = None,
    ignore_index: int = IGNORE,
    seed: int = 0,
    limit: int | None = None,
    num_workers: int = 0,
    split: Literal["both", "validation"] = "both",
) -> SegmentationData:
    """Loads images with masks and checks them all, so that training does not fail on them hours later.

    Args:
        dataset: `FASHION_CANVASES`; a folder with images/<split> and masks/<split>, or <split>/images and <split>/masks
            (files of the same stem are partners; a classes.txt beside them names the classes); ADE20K's
            ADEChallengeData2016; the folder of Cityscapes with leftImg8bit and gtFine; parquet or arrow files or a
            dataset on the Hugging Face Hub, as in `load_image_data`, with a column of images and one of masks.
        image_column: needed where several columns could be the images.
        mask_column: needed where several columns could be the masks.
        train_split: by default "train" or "training", or the only split.
        validation_split: by default the first of validation, val, valid, dev and test; where there is but one split, a
            part of it, fixed by `seed`.
        validation_fraction: the size of that part.
        class_names: of a model that is to be evaluated, instead of those found with the data.
        class_names_file: the same from a file with one name a line, line n (from 0) for mask value n.
        ignore_index: the mask value without a label; those above it move down by one. ADE20K and Cityscapes fix theirs.
        seed: of the held-out part, and of the choice that `limit` makes.
        limit: at most so many images of each split, for trial runs.
        num_workers: processes that check images and masks.
        split: "validation" leaves the training images aside; a single split is then used whole.

    Raises:
        DataError: anything wrong with the data; the message names the files and says what to do.
    """
    if not 0 <= ignore_index <= 255:
        raise DataError(f"Masks have 8 bits: the ignored value lies between 0 and 255, and is not {ignore_index}.")
    splits, layout = find_splits(dataset, image_column, mask_column)
    classes = _known_classes(layout, class_names, class_names_file, ignore_index)
    train_name, validation_name = used_splits(splits, train_split, validation_split, split)
    wanted = {"train": train_name, "validation": validation_name}
    if split == "validation":
        del wanted["train"]

    sources = {name: splits[name]() for name in wanted.values() if name is not None}
    rows = {part: np.arange(len(sources[name])) for part, name in wanted.items() if name is not None}
    if validation_name is None:
        wanted["validation"] = train_name
        everything = np.zeros(len(sources[train_name]))  # one stratum
        rows["train"], rows["validation"] = stratified(everything, validation_fraction, seed)
    if empty := [part for part in wanted if not len(rows[part])]:
        raise DataError(f"{dataset}: no images for {' and '.join(empty)}. Add some, or choose other splits.")

    raw = np.arange(256, dtype=np.uint8)  # class numbers are known when the masks have been looked at
    findings = {
        part: look_at(References(sources[name], limited(rows[part], limit, seed), name, raw), num_workers)
        for part, name in wanted.items()
    }
    splits_found = list(findings.values())
    check_files(splits_found)
    classes = classes or numbered_classes(_largest_value(splits_found, ignore_index), ignore_index)
    check_values(splits_found, classes)
    if "train" in findings:
        check_training_classes(findings["train"], classes)
    ready = {part: replace(found.references, numbers=classes.numbers) for part, found in findings.items()}
    return SegmentationData(ready.get("train"), ready["validation"], classes.names)


def _known_classes(
    layout: Layout | None, names: Sequence[str] | None, names_file: str | Path | None, ignore_index: int
) -> Classes | None:
    """The classes, where they are known before the masks have been looked at."""
    if layout and layout.classes:
        if ignore_index != IGNORE:
            raise DataError("ADE20K and Cityscapes say themselves what is ignored: leave --ignore-index out.")
        file_names = read_class_names(Path(names_file)) if names_file else None
        return layout.classes.renamed(file_names if names is None else names)
    if names is not None:
        return named_classes(names, ignore_index)
    names_file = names_file or (layout and layout.names_file)
    return classes_by_value(read_class_names(Path(names_file)), ignore_index) if names_file else None


def _largest_value(splits: list[Findings], ignore_index: int) -> int:
    present = np.any([split.present.any(axis=0) for split in splits], axis=0)
    present[ignore_index] = False
    return int(max(np.flatnonzero(present), default=0))
