"""What is found out about a detection dataset before training starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fdconv_zoo.data.image import reason
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.errors import LISTED, DataError, first_of, listed

ROUNDING = 1.0  # pixels that a box may reach over the edge: tools round, and so do COCO's own boxes
OPENED = 5000  # image files of a split; of more, so many are drawn by chance


def check_categories(train: CocoImages, validation: CocoImages) -> None:
    """Raises DataError where a category id means one thing in training and another, or nothing, in validation."""
    ids = sorted(train.categories.keys() | validation.categories.keys())
    both = {number: [part.categories.get(number, "(missing)") for part in (train, validation)] for number in ids}
    differing = [f"id {number}: {first} / {second}" for number, (first, second) in both.items() if first != second]
    if differing:
        raise DataError(
            f"{train.annotation_file} and {validation.annotation_file} have different categories: "
            f"{first_of(differing, LISTED)}. Give both files the same list of categories."
        )


def check_not_empty(images: CocoImages) -> None:
    """Raises DataError where there is nothing to learn, or nothing to find."""
    if images.is_crowd.all():  # also where there are no annotations at all
        crowds = f" (but {len(images.is_crowd)} crowds)" if len(images.is_crowd) else ""
        raise DataError(
            f"{images.annotation_file}: not one object is annotated in {len(images)} images{crowds}. Add annotations, "
            "choose another file, or raise --limit."
        )


def usable_annotations(images: CocoImages, *, skip: bool) -> tuple[CocoImages, int]:
    """Looks at the boxes, and at the masks where they were read.

    Args:
        images: as read from their file.
        skip: do not raise, but take out annotations without area or mask, and let pass boxes over the edge, which are
            clipped when they train.

    Returns:
        The images with the annotations that can be used, and the number of those taken out or to be clipped.

    Raises:
        DataError: boxes without area or outside of their image, or annotations of which no mask can be made.
    """
    width, height = images.sizes[images.rows].T
    x1, y1, w, h = images.boxes.T
    x2, y2 = x1 + w, y1 + h
    outside = (x1 < -ROUNDING) | (y1 < -ROUNDING) | (x2 > width + ROUNDING) | (y2 > height + ROUNDING)
    empty = (np.minimum(x2, width) <= np.maximum(x1, 0)) | (np.minimum(y2, height) <= np.maximum(y1, 0))
    maskless = np.zeros(len(empty), bool)
    if images.segmentations is not None:
        maskless = images.segmentations.is_null().to_numpy(zero_copy_only=False)
    if not skip:
        remedy = "Correct them, or clip or drop them with --skip-bad-boxes."
        _refuse(images, empty, "boxes without area in their image", remedy)
        _refuse(images, outside, "boxes that reach out of their image", remedy)
        remedy = "Add the masks, train a detector of boxes only, or drop such annotations with --skip-bad-boxes."
        _refuse(images, maskless, "no segmentation (polygons, or run lengths of the image's size)", remedy)
    unusable = empty | maskless
    return images.keep_annotations(np.flatnonzero(~unusable)), int((unusable | outside).sum())


def _refuse(images: CocoImages, bad: np.ndarray, problem: str, remedy: str) -> None:
    lines = []
    for number in np.flatnonzero(bad):
        row = images.rows[number]
        box, (width, height) = images.boxes[number].tolist(), images.sizes[row]
        lines.append(f"id {images.annotation_ids[number]}, box {box} in {images.file_names[row]} ({width}x{height})")
    if lines:
        raise DataError(
            f"{images.annotation_file}: {len(lines)} annotations have {problem}:{listed(lines)}\n"
            f"Boxes are [x, y, width, height] in pixels. {remedy}"
        )


def check_image_files(images: CocoImages, num_workers: int = 0) -> None:
    """Holds the image files against the annotation file.

    All must be there: one listing of each folder tells. Sizes are read from the headers of all files, or of `OPENED`
    of them where there are more; no pixels are decoded.

    Args:
        images: with their folder.
        num_workers: threads that open files.

    Raises:
        DataError: missing files, files that are no images or have more than 8 bits a channel, or sizes that differ.
    """
    paths = [images.path(index) for index in range(len(images))]
    found = {
        folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {path.parent for path in paths}
    }
    missing = [str(path) for path in paths if path.name not in found[path.parent]]
    if missing:
        raise DataError(
            f"{images.annotation_file}: {len(missing)} of its {len(paths)} images are missing:{listed(missing)}\n"
            "Name their folder with --train-images or --validation-images."
        )
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:OPENED])
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        problems = list(pool.map(_problem, [paths[index] for index in chosen], images.sizes[chosen].tolist()))
    bad = [f"{paths[index]}: {problem}" for index, problem in zip(chosen, problems, strict=True) if problem]
    if bad:
        raise DataError(
            f"{images.annotation_file}: {len(bad)} of {len(chosen)} images opened cannot be used:{listed(bad)}\n"
            "Repair them, or remove them from the annotation file."
        )


def _problem(path: Path, size: list[int]) -> str | None:
    try:
        with Image.open(path) as image:
            found, mode = list(image.size), image.mode
            turned = found != size and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    except Exception as error:  # Pillow's decoders fail with a dozen types
        return f"cannot be read as an image ({reason(error)})"
    if found != size:
        hint = "; its EXIF tag turns it, boxes must be those of the stored pixels" if turned else ""
        return f"has {found[0]}x{found[1]} pixels, but {size[0]}x{size[1]} in the annotation file{hint}"
    if mode.startswith(("I", "F")):
        return f"has more than 8 bits a channel (mode {mode})"
    return None
