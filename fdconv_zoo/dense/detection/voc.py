"""Reads datasets in the format of Pascal VOC: an XML file with the boxes of each image."""

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from fdconv_zoo.data.files import find_images, sub_folders
from fdconv_zoo.data.image import reason
from fdconv_zoo.data.splits import TRAIN_NAMES, VALIDATION_NAMES
from fdconv_zoo.dense.detection.coco import CocoImages, from_lists
from fdconv_zoo.errors import DataError, listed

_LISTS = {"train": ("train", "trainval"), "validation": VALIDATION_NAMES}  # names of files in ImageSets/Main
_FOLDERS = {"train": TRAIN_NAMES, "validation": VALIDATION_NAMES}


def is_voc(folder: Path) -> bool:
    """Return whether a folder has a dataset in one of the layouts of `read_voc`."""
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return True
    return any(any(split.rglob("*.xml")) for split in sub_folders(folder) if _is_split(split))


def read_voc(folder: Path, splits: Sequence[str], *, masks: bool) -> dict[str, CocoImages]:
    """Read splits of a dataset in the format of Pascal VOC.

    There are two layouts. VOC's own has ``JPEGImages/``, ``Annotations/`` and lists of names without suffix,
    ``ImageSets/Main/train.txt`` and ``val.txt``. In the other, ``train/`` and ``val/`` have the XML files beside the
    images. Pixels are counted from 1, as in VOC. Objects marked as difficult are not used in training, and count
    neither as found nor as missed in evaluation, like crowds in COCO's format.

    Args:
        folder: Folder of the dataset.
        splits: "train", "validation" or both. The classes are always those of both, in alphabetical order.
        masks: Must be false: the format has only boxes.

    Returns:
        The images of each split; ids count from 1 in the order of names.

    Raises:
        DataError: a file is missing, cannot be read, or does not have the format, or masks are requested.
    """
    if masks:
        raise DataError(f"{folder}: Pascal VOC's format has boxes without masks. Train boxes: --head faster_rcnn.")
    is_original = (folder / "Annotations").is_dir()
    found = {split: (_listed_pairs if is_original else _pairs_beside)(folder, split) for split in _FOLDERS}
    for split in splits:
        if not found[split]:
            where = "ImageSets/Main/{}.txt" if is_original else "{}/ with images and XML files"
            names = " or ".join(where.format(name) for name in (_LISTS if is_original else _FOLDERS)[split][:2])
            raise DataError(f"{folder}: has no {split} images in the format of Pascal VOC: add {names}.")
    problems: list[str] = []
    read = {split: [_read(*pair, problems) for pair in pairs] for split, pairs in found.items()}
    if problems:
        raise DataError(f"{folder}: {len(problems)} annotations cannot be used:{listed(problems)}\nRepair the files.")
    names = sorted({item["name"] for images in read.values() for _, objects in images for item in objects})
    return {split: _to_arrays(folder, found[split], read[split], names) for split in splits}


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in (*TRAIN_NAMES, *VALIDATION_NAMES)


def _listed_pairs(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Return the images and XML files that the list of a split names; empty without a list."""
    lists = (folder / "ImageSets" / "Main" / f"{name}.txt" for name in _LISTS[split])
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        return []
    try:
        names = [line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    by_stem = {path.stem: path for path in find_images(folder / "JPEGImages")[0]}
    if missing := [name for name in names if name not in by_stem]:
        raise DataError(f"{file}: {len(missing)} names have no image in JPEGImages:{listed(missing)}")
    return [(by_stem[name], folder / "Annotations" / f"{name}.xml") for name in names]


def _pairs_beside(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Return the images in the folder of a split, and the XML files beside them; empty without a folder."""
    children = {child.name.lower(): child for child in sub_folders(folder)}
    found = next((children[name] for name in _FOLDERS[split] if name in children), None)
    return [] if found is None else [(path, path.with_suffix(".xml")) for path in find_images(found)[0]]


def _read(image: Path, file: Path, problems: list[str]) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """Return the size of an image and its objects, and append what is wrong to `problems`."""
    try:
        root = ElementTree.parse(file).getroot()
    except FileNotFoundError:
        problems.append(f"{image}: there is no {file}")
        return (1, 1), []
    except (OSError, ValueError, ElementTree.ParseError) as error:
        problems.append(f"{file}: not valid XML ({error})")
        return (1, 1), []
    objects = []
    for number, element in enumerate(root.iter("object"), start=1):
        name = (element.findtext("name") or "").strip()
        corners = [_number(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in corners:
            problems.append(f"{file}: object {number} has no name, or no box with xmin, ymin, xmax and ymax")
            continue
        x1, y1, x2, y2 = corners
        # Pixels count from 1, and a box includes its last pixel: in coordinates from 0, its end is the same number.
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
        objects.append({"name": name, "bbox": box, "iscrowd": int(_number(element.findtext("difficult")) == 1)})
    size = [_number(root.findtext(f"size/{key}")) for key in ("width", "height")]
    if all(side and side == int(side) > 0 for side in size):
        return (int(size[0]), int(size[1])), objects
    try:  # some tools write 0
        with Image.open(image) as opened:
            return opened.size, objects
    except Exception as error:  # Pillow's decoders raise a dozen types
        problems.append(f"{image}: cannot be read as an image ({reason(error)})")
        return (1, 1), []


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _to_arrays(folder: Path, pairs: list[tuple[Path, Path]], read: list[tuple], names: list[str]) -> CocoImages:
    images, annotations = [], []
    numbers, category_ids = count(1), {name: number for number, name in enumerate(names, start=1)}
    for image_id, ((path, _), ((width, height), objects)) in enumerate(zip(pairs, read, strict=True), start=1):
        name = str(path.relative_to(folder))
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in objects:
            kept = {"bbox": item["bbox"], "iscrowd": item["iscrowd"], "category_id": category_ids[item["name"]]}
            annotations.append({"id": next(numbers), "image_id": image_id, **kept})
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return from_lists(lists, folder, folder, masks=False)
