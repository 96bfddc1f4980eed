"""Checks of images, boxes and masks before training starts."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from fdconv_zoo.data.image import reason
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.rle import to_rle
from fdconv_zoo.errors import LISTED, DataError, first_of, listed

_logger = logging.getLogger(__name__)

TOLERANCE = 1.0  # pixels that a box may extend beyond the image: tools round, and so does COCO itself
MAX_OPENED = 5000  # image files opened per split; if there are more, a random sample


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


def check_names(images: CocoImages) -> None:
    """Raise DataError if two categories have one name, or one image file has two ids."""
    categories = _repeated(name.strip() for name in images.categories.values())
    if categories:
        ids = list(images.categories)
        lines = [
            f"{name!r} (ids {', '.join(str(ids[index]) for index in found)})" for name, found in categories.items()
        ]
        raise DataError(
            f"{images.annotation_file}: categories that have the same name: {first_of(lines, LISTED)}. Rename them, or "
            "give their annotations one of the ids and remove the others."
        )
    files = _repeated(map(os.path.normpath, images.file_names.to_pylist()))
    if files:
        lines = [
            f"{name} (ids {', '.join(str(images.image_ids[index]) for index in found)})"
            for name, found in files.items()
        ]
        raise DataError(
            f"{images.annotation_file}: image files that are listed more than once: {first_of(lines, LISTED)}. Each "
            "entry would take the objects of the others for background: list a file once, and refer to its id in all "
            "its annotations."
        )


def _repeated(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the names that occur more than once, with the positions of each."""
    positions = defaultdict(list)
    for index, name in enumerate(names):
        positions[name].append(index)
    return {name: found for name, found in positions.items() if len(found) > 1}


def report_shared_files(train: CocoImages, validation: CocoImages) -> None:
    """Log the image files that both splits list."""
    own = {os.path.normpath(train.path(index)) for index in range(len(train))}
    shared = [path for index in range(len(validation)) if (path := os.path.normpath(validation.path(index))) in own]
    if shared:
        _logger.warning("%d validation images are also training images:%s", len(shared), listed(shared))


def check_not_empty(images: CocoImages) -> None:
    """Raise DataError if no objects are annotated."""
    if images.is_crowd.all():  # also if there are no annotations
        crowds = f" (but {len(images.is_crowd)} crowds)" if len(images.is_crowd) else ""
        raise DataError(
            f"{images.annotation_file}: no objects are annotated in its {len(images)} images{crowds}. Add annotations, "
            "choose another file, or raise --limit."
        )


def check_annotations(images: CocoImages, *, skip: bool, training: bool) -> tuple[CocoImages, int]:
    """Check the boxes and areas, and the masks if they were read.

    Args:
        images: Images as read from the annotation file.
        skip: Instead of raising, remove annotations without area or mask, replace areas that are negative or larger
            than the image by the area of the mask or the box, and keep boxes that extend beyond the image, which are
            clipped in training.
        training: The images are for training, so boxes that are smaller than a pixel are bad, too.

    Returns:
        The images with their usable annotations, and the number of annotations that are removed or corrected or will
        be clipped.

    Raises:
        DataError: a box has no area or extends beyond its image, an area is negative or larger than the image, or an
            annotation has no usable mask. With `skip`, only if all boxes are fractions of the image.
    """
    _check_units(images)
    width, height = images.sizes[images.rows].T
    x1, y1, w, h = images.boxes.T
    x2, y2 = x1 + w, y1 + h
    outside = (x1 < -TOLERANCE) | (y1 < -TOLERANCE) | (x2 > width + TOLERANCE) | (y2 > height + TOLERANCE)
    inner_width, inner_height = np.minimum(x2, width) - np.maximum(x1, 0), np.minimum(y2, height) - np.maximum(y1, 0)
    empty = (inner_width <= 0) | (inner_height <= 0)
    tiny = training & ~empty & ~images.is_crowd & ((inner_width < 1) | (inner_height < 1))
    wrong_area = ~empty & ~((images.areas >= 0) & (images.areas <= (width + TOLERANCE) * (height + TOLERANCE)))
    without_mask = np.zeros(len(empty), bool)
    if images.segmentations is not None:
        without_mask = images.segmentations.is_null().to_numpy(zero_copy_only=False)
    if not skip:
        remedy = "Correct them, or clip or drop them with --skip-bad-boxes."
        _raise_if_any(images, empty, "boxes without area inside their image", remedy)
        _raise_if_any(images, tiny, "boxes smaller than a pixel, which training leaves out", remedy)
        _raise_if_any(images, outside, "boxes that extend beyond their image", remedy)
        remedy = "Add the masks, train a detector without masks, or drop such annotations with --skip-bad-boxes."
        problem = "no segmentation that covers a pixel (polygons in pixels, or run lengths of the image size)"
        _raise_if_any(images, without_mask, problem, remedy)
        remedy = "Correct or remove the key 'area', or replace such areas with --skip-bad-boxes."
        _raise_if_any(images, wrong_area, "an 'area' that is negative, or larger than the image", remedy)
    areas = images.areas.copy()
    for index in np.flatnonzero(wrong_area & ~without_mask):
        areas[index] = _area(images, index, inner_width[index] * inner_height[index])
    unusable = empty | tiny | without_mask
    kept = replace(images, areas=areas).select_annotations(np.flatnonzero(~unusable))
    return kept, int((unusable | outside | wrong_area).sum())


def _check_units(images: CocoImages) -> None:
    """Raise DataError if all boxes are fractions of their image."""
    x, y, width, height = images.boxes.T
    are_fractions = (
        (np.minimum(x, y) > -0.5) & (np.minimum(width, height) > 0) & (np.maximum(x + width, y + height) <= 1.01)
    )
    if len(x) and are_fractions.all():
        raise DataError(
            f"{images.annotation_file}: all its {len(x)} boxes lie between 0 and 1, as if they were fractions of "
            "the image. Boxes are [x, y, width, height] in pixels: multiply x and width by the width of the image, y "
            "and height by its height."
        )


def _area(images: CocoImages, index: int, box_area: float) -> float:
    """Return the area of an annotation's mask in square pixels, or of its box if masks were not read."""
    if images.segmentations is None:
        return box_area
    size = images.sizes[images.rows[index]].tolist()
    return float(coco_mask.area(to_rle(images.segmentation(index), *size)))


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
        DataError: a file is missing, is not an image, has more than 8 bits per channel, or another size than in the
            annotation file.
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
    except Exception as error:  # Pillow's decoders raise a dozen types
        return f"cannot be read as an image ({reason(error)})"
    if actual != size:
        hint = "; its EXIF tag rotates it, but boxes must refer to the stored pixels" if rotated else ""
        return f"has {actual[0]}x{actual[1]} pixels, but {size[0]}x{size[1]} in the annotation file{hint}"
    if mode.startswith(("I", "F")):
        return f"has more than 8 bits per channel (mode {mode})"
    return None
