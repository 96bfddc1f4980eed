"""A user's images with boxes in COCO's format, found, checked and ready for training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fdconv_zoo.data.splits import limited
from fdconv_zoo.dense.canvases import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.detection.checks import check_categories, check_image_files, check_not_empty, usable_annotations
from fdconv_zoo.dense.detection.coco import CocoImages, read_coco
from fdconv_zoo.errors import DataError

_ANNOTATIONS = "annotations/instances_{}.json"
_LAYOUTS = {  # annotation file and image folder: as COCO is published, and as in ours
    "train": [(_ANNOTATIONS.format("train2017"), "train2017"), (_ANNOTATIONS.format("train"), "images/train")],
    "validation": [
        (_ANNOTATIONS.format("val2017"), "val2017"),
        (_ANNOTATIONS.format("validation"), "images/validation"),
    ],
}


@dataclass(frozen=True)
class DetectionData:
    """Images with boxes, and with masks where they were asked for.

    Attributes:
        train: images without objects among them, from which detectors learn what is none; None for
            `split="validation"`.
        validation: with crowds, which the evaluation ignores.
        class_names: of the labels 1 to K.
        category_ids: the annotation file's number of each label: `category_ids[label - 1]`.
        skipped: annotations that `skip_bad_boxes` took out, or clips.
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
    split: Literal["validation"] | None = None,
    skip_bad_boxes: bool = False,
) -> DetectionData:
    """Loads annotation files in COCO's format and checks them and their images, so that training does not fail on them.

    Args:
        dataset: a folder: COCO's own (`train2017/`, `val2017/`, `annotations/instances_train2017.json`,
            `instances_val2017.json`), or `images/train/`, `images/validation/`, `annotations/instances_train.json`,
            `instances_validation.json`; or `FASHION_CANVASES`, made at first use. None where the next four say it all.
        train_annotations: file, instead of the dataset's own.
        validation_annotations: file, instead of the dataset's own.
        train_images: folder, instead of the dataset's own.
        validation_images: folder, instead of the dataset's own.
        limit: use only so many images of each split, drawn by chance, always the same.
        num_workers: threads that open image files.
        masks: also read the segmentations; without them, boxes alone.
        split: "validation" leaves the training set alone.
        skip_bad_boxes: take out annotations without area or usable mask, and clip boxes to their image, instead of
            raising.

    Raises:
        DataError: nothing there, or whatever `read_coco` and the checks find; the message names file, item and remedy.
    """
    places = {
        "train": (train_annotations, train_images),
        "validation": (validation_annotations, validation_images),
    }
    if split == "validation":
        del places["train"]
    folder = _folder(dataset)
    files = {name: _find(folder, name, *given) for name, given in places.items()}
    parts = {name: read_coco(*pair, masks=masks) for name, pair in files.items()}
    if "train" in parts:
        check_categories(parts["train"], parts["validation"])
    skipped = 0
    for name, images in parts.items():
        chosen = images.select(limited(np.arange(len(images)), limit, seed=0))
        images, bad = usable_annotations(chosen, skip=skip_bad_boxes)
        check_not_empty(images)
        check_image_files(images, num_workers)
        parts[name] = images
        skipped += bad
    categories = parts["validation"].categories
    return DetectionData(parts.get("train"), parts["validation"], list(categories.values()), list(categories), skipped)


def _folder(dataset: str | None) -> Path | None:
    if dataset is None:
        return None
    if dataset == FASHION_CANVASES:
        return canvases_folder()
    folder = Path(dataset).expanduser()
    if not folder.is_dir():
        raise DataError(f"{dataset}: no such folder. Name one with images and annotations, or {FASHION_CANVASES}.")
    return folder


def _find(folder: Path | None, split: str, annotations: str | None, images: str | None) -> tuple[Path, Path]:
    """The annotation file and the image folder of a split."""
    found = (None, None)
    if folder is not None:
        layouts = [(folder / file, folder / place) for file, place in _LAYOUTS[split]]
        found = next((layout for layout in layouts if layout[0].is_file()), found)
        # Also a folder of images alone, to annotations given by hand.
        found = found[0], found[1] or next((place for _, place in layouts if place.is_dir()), None)
    file = Path(annotations).expanduser() if annotations else found[0]
    place = Path(images).expanduser() if images else found[1]
    if file is None or place is None:
        wanted = " or ".join(file for file, _ in _LAYOUTS[split])
        raise DataError(
            f"{folder or 'no dataset folder'}: no {split} annotations found ({wanted}). Name them with "
            f"--{split}-annotations, and their images with --{split}-images."
        )
    return file, place
