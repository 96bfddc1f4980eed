"""Reads datasets in the format of YOLO: a YAML file with the classes, and a text file of objects for each image."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from PIL import ExifTags, Image

from fdconv_zoo.data.files import find_images
from fdconv_zoo.data.image import reason
from fdconv_zoo.dense.detection.coco import CocoImages, from_lists
from fdconv_zoo.errors import DataError, listed

_logger = logging.getLogger(__name__)

_SUFFIXES = (".yaml", ".yml")
_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation", "test")}  # keys of the YAML file
_TOLERANCE = 0.01  # of the image: labels are rounded


def find_yolo(dataset: Path) -> Path | None:
    """Return the YAML file of a dataset in the format of YOLO: the path itself, or a file in the folder.

    Raises:
        DataError: there are several in the folder, and none is called data.yaml.
    """
    if dataset.suffix.lower() in _SUFFIXES and dataset.is_file():
        return dataset
    if not dataset.is_dir():
        return None
    files = sorted(path for path in dataset.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    found = [path for path in files if path.stem == "data" or "names" in _load_yaml(path)]
    if len(found) > 1:
        found = [path for path in found if path.stem == "data"]
        if len(found) != 1:
            names = ", ".join(path.name for path in files)
            raise DataError(f"{dataset}: has several YAML files ({names}). Name the one to use with --dataset.")
    return found[0] if found else None


def read_yolo(file: Path, split: str, *, masks: bool, num_workers: int = 0) -> CocoImages:
    """Read a split of a dataset in the format of YOLO.

    The YAML file has the class names under `names`, and the images under `train` and `val`: a folder, a text file with
    a path per line, or a list of these. The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt``, or beside
    the image if its path has no folder `images`. Each line is an object: class number and box (centre, width and
    height) or polygon, in fractions of the image. Keypoints after the box are skipped if the YAML file has
    `kpt_shape`. An image without a file of labels has no objects.

    Args:
        file: The YAML file.
        split: "train" or "validation".
        masks: Also read the polygons.
        num_workers: Threads that read the sizes of images.

    Returns:
        The images. Their ids count from 1 in the order of the files; category ids are the class numbers.

    Raises:
        DataError: a file is missing, cannot be read, or does not have the format; the message names file and
            line.
    """
    settings = _load_yaml(file)
    names, keypoints = _class_names(file, settings), _keypoint_values(file, settings)
    paths = _find_split(file, settings, split)
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        sizes = list(pool.map(_upright_size, paths))
    if bad := [f"{path}: {size}" for path, size in zip(paths, sizes, strict=True) if isinstance(size, str)]:
        raise DataError(f"{file}: {len(bad)} of {len(paths)} images of {split} cannot be used:{listed(bad)}")
    images, annotations, problems, unlabelled = [], [], [], []
    number = count(1)
    for image_id, (path, (width, height)) in enumerate(zip(paths, sizes, strict=True), start=1):
        images.append(
            {"id": image_id, "file_name": os.path.relpath(path, file.parent), "width": width, "height": height}
        )
        labels = _label_file(path)
        if not labels.is_file():
            unlabelled.append(labels)
            continue
        for entry in _read_labels(labels, len(names), keypoints, width, height):
            if isinstance(entry, str):
                problems.append(entry)
            else:
                annotations.append({"id": next(number), "image_id": image_id, **entry})
    if problems:
        raise DataError(
            f"{file}: {len(problems)} lines of labels cannot be used:{listed(problems)}\nA line is a class number of "
            f"0 to {len(names) - 1}, and 4 numbers (x and y of the centre, width, height) or at least 3 points of a "
            "polygon, in fractions of the image."
        )
    if len(unlabelled) == len(paths):
        raise DataError(f"{file}: none of the {len(paths)} images of {split} has labels, such as {unlabelled[0]}.")
    if unlabelled:
        _logger.warning(
            "%s: %d of %d images of %s have no file of labels, so they count as images without objects:%s",
            *(file, len(unlabelled), len(paths), split, listed([str(path) for path in unlabelled])),
        )
    if masks and not any("segmentation" in entry for entry in annotations):
        raise DataError(f"{file}: the labels of {split} are boxes without polygons. Train boxes: --head faster_rcnn.")
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return from_lists(lists, file, file.parent, masks=masks)


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({' '.join(str(error).split()):.200}). Repair it.") from error
    return content if isinstance(content, dict) else {}


def _class_names(file: Path, settings: Mapping[str, Any]) -> list[str]:
    names = settings.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise DataError(f"{file}: 'names' must list the classes, or have their numbers 0, 1, ... as keys.")
    ordered = [names[index] for index in range(len(names))]
    if wrong := [str(name) for name in ordered if type(name) not in (str, int, float) or not str(name).strip()]:
        raise DataError(f"{file}: 'names' has {', '.join(wrong)}, which is not a name in YAML. Put it in quotes.")
    if settings.get("nc", len(ordered)) != len(ordered):
        raise DataError(f"{file}: 'nc' is {settings['nc']}, but there are {len(ordered)} 'names'. Correct one of them.")
    return [str(name).strip() for name in ordered]


def _keypoint_values(file: Path, settings: Mapping[str, Any]) -> int:
    shape = settings.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise DataError(f"{file}: 'kpt_shape' must be the number of keypoints, and 2 or 3. Correct or remove it.")
    return shape[0] * shape[1]


def _find_split(file: Path, settings: Mapping[str, Any], split: str) -> list[Path]:
    keys = _SPLITS[split]
    key = next((key for key in keys if settings.get(key)), None)
    if key is None:
        raise DataError(f"{file}: names no images of {split}. Set {' or '.join(map(repr, keys[:2]))} to their folder.")
    entries = settings[key] if isinstance(settings[key], list) else [settings[key]]
    root = settings.get("path")
    bases = [file.parent / root, file.parent] if isinstance(root, str) else [file.parent]
    images = [path for entry in entries for path in _images_of(file, bases, key, str(entry))]
    if not images:
        raise DataError(f"{file}: there are no images in {', '.join(map(repr, entries))} ({key!r}).")
    return images


def _images_of(file: Path, bases: list[Path], key: str, entry: str) -> list[Path]:
    # Some exports contain wrong paths: their ../train/images is in the folder of the YAML file.
    tries = [base / name for name in (entry, entry.removeprefix("../")) for base in bases]
    found = next((path for path in tries if path.exists()), None)
    if found is None:
        raise DataError(f"{file}: {key!r} is {entry!r}, but there is no {tries[0]}. Correct the path.")
    if found.is_dir():
        return find_images(found)[0]
    try:
        lines = [line.strip() for line in found.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{found}: cannot be read as a list of images ({error}).") from error
    images = []
    for line in filter(None, lines):
        places = [base / line for base in (found.parent, *bases)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataError(f"{found}: lists {line!r}, but there is no {places[0]}. Correct or remove the line.")
        images.append(path)
    return images


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _upright_size(path: Path) -> tuple[int, int] | str:
    """Return the width and height of an image, or what is wrong with it."""
    try:
        with Image.open(path) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) > 1:
                # Labels refer to the upright image, but images are read as stored.
                return "its EXIF tag rotates it; store it upright, without the tag"
            return image.size
    except Exception as error:  # Pillow's decoders raise a dozen types
        return f"cannot be read as an image ({reason(error)})"


def _read_labels(file: Path, num_classes: int, keypoints: int, width: int, height: int) -> Iterator[dict | str]:
    """Yield the objects of a file as COCO annotations, or a string that says what is wrong with a line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        yield f"{file}: cannot be read ({error})"
        return
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            yield f"{file}:{number}: {line!r:.80} are not numbers"
            continue
        problem, entry = _object(numbers, num_classes, keypoints, width, height)
        yield f"{file}:{number}: {problem}" if problem else entry


def _object(numbers: list[float], num_classes: int, keypoints: int, width: int, height: int) -> tuple[str, dict]:
    label, *values = numbers
    if label not in range(num_classes):
        return f"class {label:g} is not in 'names'", {}
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(values)} numbers after the class", {}
    if not all(math.isfinite(value) and -_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        return "numbers that are not fractions of the image, from 0 to 1", {}
    entry: dict[str, Any] = {"category_id": int(label)}
    if len(values) == 4:
        x, y, w, h = values
        entry["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return "", entry
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    entry["bbox"] = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    entry["area"] = abs(sum(x * ys[i - 1] - xs[i - 1] * y for i, (x, y) in enumerate(zip(xs, ys, strict=True)))) / 2
    entry["segmentation"] = [[value for point in zip(xs, ys, strict=True) for value in point]]
    return "", entry
