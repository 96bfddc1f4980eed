"""Finds and checks a user's images and boxes, in the format of COCO, YOLO or Pascal VOC, for training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fdconv_zoo.data.splits import limit_rows
from fdconv_zoo.dense.canvases import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.detection.checks import (
    check_annotations,
    check_categories,
    check_files,
    check_names,
    check_not_empty,
    report_shared_files,
)
from fdconv_zoo.dense.detection.coco import CocoImages, read_coco
from fdconv_zoo.dense.detection.voc import is_voc, read_voc
from fdconv_zoo.dense.detection.yolo import find_yolo, read_yolo
from fdconv_zoo.errors import DataError

_ANNOTATIONS = "annotations/instances_{}.json"
_LAYOUTS = {  # annotation file and image folder, of COCO and of `FASHION_CANVASES`
    "train": [(_ANNOTATIONS.format("train2017"), "train2017"), (_ANNOTATIONS.format("train"), "images/train")],
    "validation": [
        (_ANNOTATIONS.format("val2017"), "val2017"),
        (_ANNOTATIONS.format("validation"), "images/validation"),
    ],
}


@dataclass(frozen=True)
class DetectionData:
    """Images with boxes, and with masks if requested.

    Attributes:
        train: Training images, including images without objects; None for `split="validation"`.
        validation: Validation images, including crowds, which the evaluation ignores.
        class_names: Names of the labels 1 to K.
        category_ids: Category id of each label in the annotation file: `category_ids[label - 1]`.
        skipped: Number of annotations that `skip_bad_boxes` removed or corrected, or that will be clipped.
    """

    train: CocoImages | None
    validation: CocoImages
    class_names: list[str]
    category_ids: list[int]
    skipped: int = 0


def load_detection_data(
    dataset: str | None,
    *,
    train_annotations: str | None = None,
    validation_annotations: str | None = None,
    train_images: str | None = None,
    validation_images: str | None = None,
    limit: int | None = None,
    num_workers: int = 0,
    masks: bool,
    split: Literal["both", "validation"] = "both",
    skip_bad_boxes: bool = False,
) -> DetectionData:
    """Load and check images with annotations, so that training does not fail on them hours later.

    Args:
        dataset: `FASHION_CANVASES`; or a folder in COCO's format with the layout of COCO (`train2017/`, `val2017/`,
            `annotations/instances_train2017.json`, `annotations/instances_val2017.json`) or of the canvases
            (`images/train/`, `images/validation/`, `annotations/instances_train.json`,
            `annotations/instances_validation.json`); or a dataset as `read_yolo` or `read_voc` describe it. None if the
            next four arguments are given.
        train_annotations: COCO's annotation file of the training images, instead of the dataset's own.
        validation_annotations: COCO's annotation file of the validation images, instead of the dataset's own.
        train_images: Folder of the training images, instead of the dataset's own.
        validation_images: Folder of the validation images, instead of the dataset's own.
        limit: Maximum number of images per split, for trial runs. The choice is random but always the same.
        num_workers: Threads that open image files.
        masks: Also read the segmentations.
        split: "validation" loads validation images only.
        skip_bad_boxes: Remove annotations without area or usable mask, correct areas that are negative or larger than
            the image, and clip boxes to their image, instead of raising.

    Raises:
        DataError: the data have a problem; the message names the file and the item and says what to do.
    """
    given_paths = {
        "train": (train_annotations, train_images),
        "validation": (validation_annotations, validation_images),
    }
    if split == "validation":
        del given_paths["train"]
    if any(any(pair) for pair in given_paths.values()):
        splits = _read_coco_splits(dataset, given_paths, masks)
    else:
        splits = _read_splits(dataset, given_paths, masks, num_workers)
    for images in splits.values():
        check_names(images)
    if "train" in splits:
        check_categories(splits["train"], splits["validation"])
        report_shared_files(splits["train"], splits["validation"])
    skipped = 0
    for name, images in splits.items():
        chosen = images.select_images(limit_rows(np.arange(len(images)), limit, seed=0))
        images, bad = check_annotations(chosen, skip=skip_bad_boxes, training=name == "train")
        check_not_empty(images)
        check_files(images, num_workers)
        splits[name] = images
        skipped += bad
    categories = splits["validation"].categories
    return DetectionData(
        splits.get("train"), splits["validation"], list(categories.values()), list(categories), skipped
    )


def _read_splits(
    dataset: str | None, paths: Mapping[str, tuple[None, None]], masks: bool, num_workers: int
) -> dict[str, CocoImages]:
    """Read the splits that `paths` names, in whichever format the dataset has."""
    if dataset is None or dataset == FASHION_CANVASES:
        return _read_coco_splits(dataset, paths, masks)
    folder = Path(dataset).expanduser()
    if any((folder / file).is_file() for split in paths for file, _ in _LAYOUTS[split]):
        return _read_coco_splits(dataset, paths, masks)
    if (file := find_yolo(folder)) is not None:
        return {split: read_yolo(file, split, masks=masks, num_workers=num_workers) for split in paths}
    if is_voc(folder):
        return read_voc(folder, list(paths), masks=masks)
    return _read_coco_splits(dataset, paths, masks)


def _read_coco_splits(
    dataset: str | None, paths: Mapping[str, tuple[str | None, str | None]], masks: bool
) -> dict[str, CocoImages]:
    """Read splits in COCO's format, with the annotation file and image folder of `paths` where they are given."""
    folder = _folder(dataset)
    found = {split: _find_split(folder, split, *given) for split, given in paths.items()}
    return {split: read_coco(*pair, masks=masks) for split, pair in found.items()}


def _folder(dataset: str | None) -> Path | None:
    if dataset is None:
        return None
    if dataset == FASHION_CANVASES:
        return canvases_folder()
    folder = Path(dataset).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{dataset}: no such folder. Choose a folder with images and annotations, or {FASHION_CANVASES}."
        )
    return folder


def _find_split(folder: Path | None, split: str, annotations: str | None, images: str | None) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a split."""
    found = (None, None)
    if folder is not None:
        layouts = [(folder / file, folder / image_folder) for file, image_folder in _LAYOUTS[split]]
        found = next((layout for layout in layouts if layout[0].is_file()), found)
        # Annotations given explicitly may belong to an image folder of the dataset.
        found = found[0], found[1] or next((path for _, path in layouts if path.is_dir()), None)
    file = Path(annotations).expanduser() if annotations else found[0]
    image_folder = Path(images).expanduser() if images else found[1]
    if file is None or image_folder is None:
        wanted = " or ".join(file for file, _ in _LAYOUTS[split])
        raise DataError(
            f"{folder or 'no dataset folder'}: no {split} annotations found ({wanted}; YOLO's data.yaml; Pascal "
            f"VOC's Annotations/). Set a file in COCO's format with --{split}-annotations, and the folder of its "
            f"images with --{split}-images."
        )
    return file, image_folder
