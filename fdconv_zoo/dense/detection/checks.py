"""Checks of images, boxes and masks before training starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fdconv_zoo.data.image import reason
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.errors import LISTED, DataError, first_of, listed

TOLERANCE = 1.0  # pixels that a box may extend beyond the image: tools round, and so does COCO itself
MAX_OPENED = 5000  # image files opened per split; of more, a random sample


def check_categories(train: CocoImages, validation: CocoImages) -> None:
    """Raise DataError if a category id has different names in training and validation, or exists in only one."""
    ids = sorted(train.categories.keys() | validation.categories.keys())
    names = {number: [split.categories.get(number, "(missing)") for split in (train, validation)] for number in ids}
    differing = [f"id {number}: {first} / {second}" for number, (first, second) in names.items() if first != second]
    if differing:
        raise DataError(
            f"{train.annotation_file} and {validation.annotation_file} have different categories: "
            f"{first_of(differing, LISTED)}. Use the same list of categories in both files."
        )


def check_not_empty(images: CocoImages) -> None:
    """Raise DataError if no objects are annotated."""
    if images.is_crowd.all():  # also if there are no annotations
        crowds = f" (but {len(images.is_crowd)} crowds)" if len(images.is_crowd) else ""
        raise DataError(
            f"{images.annotation_file}: no objects are annotated in its {len(images)} images{crowds}. Add annotations, "
            "choose another file, or raise --limit."
        )


def check_annotations(images: CocoImages, *, skip: bool) -> tuple[CocoImages, int]:
    """Check the boxes, and the masks if they were read.

    Args:
        images: Images as read from the annotation file.
        skip: Instead of raising, remove annotations without area or mask, and keep boxes that extend beyond the image,
            which are clipped in training.

    Returns:
        The images with their usable annotations, and the number of annotations that are removed or will be clipped.

    Raises:
        DataError: a box has no area or extends beyond its image, or an annotation has no usable mask.
    """
    width, height = images.sizes[images.rows].T
    x1, y1, w, h = images.boxes.T
    x2, y2 = x1 + w, y1 + h
    outside = (x1 < -TOLERANCE) | (y1 < -TOLERANCE) | (x2 > width + TOLERANCE) | (y2 > height + TOLERANCE)
    empty = (np.minimum(x2, width) <= np.maximum(x1, 0)) | (np.minimum(y2, height) <= np.maximum(y1, 0))
    without_mask = np.zeros(len(empty), bool)
    if images.segmentations is not None:
        without_mask = images.segmentations.is_null().to_numpy(zero_copy_only=False)
    if not skip:
        remedy = "Correct them, or clip or drop them with --skip-bad-boxes."
        _raise_if_any(images, empty, "boxes without area inside their image", remedy)
        _raise_if_any(images, outside, "boxes that extend beyond their image", remedy)
        remedy = "Add the masks, train a detector without masks, or drop such annotations with --skip-bad-boxes."
        _raise_if_any(images, without_mask, "no segmentation (polygons, or run lengths of the image size)", remedy)
    unusable = empty | without_mask
    return images.select_annotations(np.flatnonzero(~unusable)), int((unusable | outside).sum())


def _raise_if_any(images: CocoImages, bad: np.ndarray, problem: str, remedy: str) -> None:
    lines = []
    for index in np.flatnonzero(bad):
        row = images.rows[index]
        box, (width, height) = images.boxes[index].tolist(), images.sizes[row]
        lines.append(f"id {images.annotation_ids[index]}, box {box} in {images.file_names[row]} ({width}x{height})")
    if lines:
        raise DataError(
            f"{images.annotation_file}: {len(lines)} annotations have {problem}:{listed(lines)}\n"
            f"Boxes are [x, y, width, height] in pixels. {remedy}"
        )


def check_files(images: CocoImages, num_workers: int = 0) -> None:
    """Check the image files against the annotation file.

    All files must exist. The sizes of at most `MAX_OPENED` files are read from their headers, without decoding pixels.

    Args:
        images: The images of one annotation file.
        num_workers: Threads that open files.

    Raises:
        DataError: a file is missing, is not an image, has more than 8 bits per channel or another size.
    """
    paths = [images.path(index) for index in range(len(images))]
    existing = {
        folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {path.parent for path in paths}
    }
    missing = [str(path) for path in paths if path.name not in existing[path.parent]]
    if missing:
        raise DataError(
            f"{images.annotation_file}: {len(missing)} of its {len(paths)} images are missing:{listed(missing)}\n"
            "Set their folder with --train-images or --validation-images."
        )
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:MAX_OPENED])
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        problems = list(pool.map(_problem, [paths[index] for index in chosen], images.sizes[chosen].tolist()))
    bad = [f"{paths[index]}: {problem}" for index, problem in zip(chosen, problems, strict=True) if problem]
    if bad:
        raise DataError(
            f"{images.annotation_file}: {len(bad)} of {len(chosen)} opened images cannot be used:{listed(bad)}\n"
            "Repair them, or remove them from the annotation file."
        )


def _problem(path: Path, size: list[int]) -> str | None:
    try:
        with Image.open(path) as image:
            actual, mode = list(image.size), image.mode
            rotated = actual != size and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    except Exception as error:  # Pillow's decoders fail with a dozen types
        return f"cannot be read as an image ({reason(error)})"
    if actual != size:
        hint = "; its EXIF tag rotates it, but boxes must refer to the stored pixels" if rotated else ""
        return f"has {actual[0]}x{actual[1]} pixels, but {size[0]}x{size[1]} in the annotation file{hint}"
    if mode.startswith(("I", "F")):
        return f"has more than 8 bits per channel (mode {mode})"
    return None
