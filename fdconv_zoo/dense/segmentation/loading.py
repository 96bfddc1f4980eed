"""Finds and checks a user's images and masks for training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fdconv_zoo.data.splits import limit_rows, resolve_splits, split_rows
from fdconv_zoo.dense.segmentation.checks import check_files, check_training_classes, check_values
from fdconv_zoo.dense.segmentation.classes import (
    IGNORE,
    Classes,
    classes_by_value,
    classes_of_model,
    numbered_classes,
    read_class_names,
)
from fdconv_zoo.dense.segmentation.findings import Findings, inspect_pairs
from fdconv_zoo.dense.segmentation.layouts import Layout
from fdconv_zoo.dense.segmentation.pairs import ImageMaskPairs
from fdconv_zoo.dense.segmentation.sources import find_splits
from fdconv_zoo.errors import DataError


@dataclass(frozen=True)
class SegmentationData:
    """Pairs of an RGB image and its class indices, uint8 (H, W), decoded on access.

    Attributes:
        train: Training images; None unless `split` was "both".
        validation: Validation images, in their stored order.
        class_names: Names of the K classes. Masks hold their indices 0..K-1, and `IGNORE` for pixels without a label.
        pixels: For "train", if it was loaded, and "validation": the number of pixels of each class in each of the N
            masks, int64 (N, K).
        split: Name of the split that the validation images belong to.
        train_count: Number of training images in this split, before `limit`; None if all of its images are validation
            images.
    """

    train: ImageMaskPairs | None
    validation: ImageMaskPairs
    class_names: list[str]
    pixels: dict[str, np.ndarray]
    split: str
    train_count: int | None = None


def load_segmentation_data(
    dataset: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    trained: tuple[str, Sequence[str]] | None = None,
    class_names_file: str | Path | None = None,
    ignore_index: int = IGNORE,
    seed: int = 0,
    limit: int | None = None,
    num_workers: int = 0,
    split: Literal["both", "validation", "held out"] = "both",
) -> SegmentationData:
    """Load and check images with masks, so that training does not fail on them hours later.

    Args:
        dataset: `FASHION_CANVASES`; a folder with images/<split> and masks/<split>, or <split>/images and <split>/masks
            (files with the same stem are partners, and an optional classes.txt lists the class names); ADE20K's
            ADEChallengeData2016; Cityscapes' folder with leftImg8bit and gtFine; or parquet or arrow files or a
            dataset on the Hugging Face Hub, as in `load_image_data`, with a column of images and a column of masks.
        image_column: Required if several columns could be the images.
        mask_column: Required if several columns could be the masks.
        train_split: Default: "train" or "training", or the only split.
        validation_split: Default: the first of validation, val, valid, dev and test. If there is only one split, a
            part of it is held out, determined by `seed`.
        validation_fraction: Share of the images to hold out.
        trained: Name and class names of a model to evaluate. The masks then contain the class indices of the model.
            Classes are matched by name, or by the order of mask values if the dataset has no class names.
        class_names_file: File with one class name per line, line n (from 0) for mask value n.
        ignore_index: Mask value of pixels without a label; values above it move down by one. Fixed for ADE20K and
            Cityscapes.
        seed: Seed of the held-out part, and of the images chosen by `limit`.
        limit: Maximum number of images per split, for trial runs.
        num_workers: Processes that check images and masks.
        split: "validation" loads validation images only, or all images if there is only one split. "held out" loads
            the validation images of "both".

    Raises:
        DataError: the data have a problem; the message names the files and says what to do.
        ConfigError: the model to evaluate does not have the classes of the dataset.
    """
    if not 0 <= ignore_index <= 255:
        raise DataError(f"The ignored value must be between 0 and 255, the values of 8-bit masks, not {ignore_index}.")
    splits, layout = find_splits(dataset, image_column, mask_column)
    classes = _known_classes(layout, class_names_file, ignore_index)
    if trained is not None:
        classes = classes.numbered_as(*trained) if classes else classes_of_model(*trained, ignore_index)
    train_name, validation_name = resolve_splits(splits, train_split, validation_split, split)
    wanted = {"train": train_name, "validation": validation_name}
    if split == "validation" or (split == "held out" and validation_name is not None):
        del wanted["train"]

    sources = {name: splits[name]() for name in wanted.values() if name is not None}
    rows = {part: np.arange(len(sources[name])) for part, name in wanted.items() if name is not None}
    held_out = validation_name is None
    if held_out:
        wanted["validation"] = train_name
        everything = np.zeros(len(sources[train_name]))  # one stratum
        rows["train"], rows["validation"] = split_rows(everything, validation_fraction, seed)
    train_count = len(rows["train"]) if held_out else None
    if split == "held out":
        wanted.pop("train", None)
    if empty := [part for part in wanted if not len(rows[part])]:
        raise DataError(f"{dataset}: no images for {' and '.join(empty)}. Add some, or choose other splits.")

    identity = np.arange(256, dtype=np.uint8)  # the classes may depend on the values found in the masks
    findings = {
        part: inspect_pairs(
            ImageMaskPairs(sources[name], limit_rows(rows[part], limit, seed), name, identity), num_workers
        )
        for part, name in wanted.items()
    }
    splits_found = list(findings.values())
    check_files(splits_found)
    classes = classes or numbered_classes(_largest_value(splits_found, ignore_index), ignore_index)
    check_values(splits_found, classes)
    if "train" in findings:
        check_training_classes(findings["train"], classes)
    ready = {part: replace(found.pairs, lookup=classes.lookup) for part, found in findings.items()}
    pixels = {part: classes.count(found.pixels) for part, found in findings.items()}
    split = wanted["validation"]
    return SegmentationData(ready.get("train"), ready["validation"], classes.names, pixels, split, train_count)


def _known_classes(layout: Layout | None, names_file: str | Path | None, ignore_index: int) -> Classes | None:
    """Return the classes, or None if they depend on the values found in the masks."""
    if layout and layout.classes:
        if ignore_index != IGNORE:
            raise DataError("ADE20K and Cityscapes define which values are ignored. Leave --ignore-index at 255.")
        return layout.classes.renamed(read_class_names(Path(names_file)) if names_file else None)
    names_file = names_file or (layout and layout.names_file)
    return classes_by_value(read_class_names(Path(names_file)), ignore_index) if names_file else None


def _largest_value(splits: list[Findings], ignore_index: int) -> int:
    present = np.any([split.present.any(axis=0) for split in splits], axis=0)
    present[ignore_index] = False
    return int(max(np.flatnonzero(present), default=0))
