"""Tiny datasets in the layouts of large ones, to try a recipe without downloading its data."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fdconv_zoo.dense.canvases import write_canvases

# Labels of the eleven classes of the canvases in the stand-ins, chosen among those of the real datasets.
_CITYSCAPES_IDS = np.array([7, 8, 11, 17, 19, 21, 23, 24, 26, 31, 33], np.uint8)
_ADE20K_IDS = np.array([1, 3, 7, 13, 20, 44, 64, 81, 103, 139, 150], np.uint8)
_COCO_CATEGORIES = (1, 3, 7, 13, 20, 44, 64, 81, 85, 90)
_SPLITS = ("train", "validation")
_SIDE = 96  # pixels


@contextmanager
def stand_in(dataset: str) -> Iterator[str]:
    """Write a stand-in for a dataset, eight training and four validation canvases, and delete it on exit.

    Args:
        dataset: The dataset of a recipe. The last part of its path determines the layout: ``ADEChallengeData2016``,
            ``cityscapes`` or ``coco``; any other name stands for the layout of the canvases.

    Yields:
        The folder of the stand-in.
    """
    layouts: dict[str, Callable[[Path, Path], None]] = {
        "ADEChallengeData2016": _as_ade20k,
        "cityscapes": _as_cityscapes,
        "coco": _as_coco,
    }
    with tempfile.TemporaryDirectory(prefix="fdconv-zoo-") as temporary:
        canvases, folder = Path(temporary) / "canvases", Path(temporary) / Path(dataset).name
        write_canvases(canvases, train=8, validation=4, size=_SIDE)
        convert = layouts.get(folder.name)
        if convert is None:
            yield str(canvases)
            return
        convert(canvases, folder)
        yield str(folder)


def _as_ade20k(canvases: Path, folder: Path) -> None:
    for split, name in zip(_SPLITS, ("training", "validation"), strict=True):
        for number, (image, mask) in enumerate(_pairs(canvases, split)):
            stem = f"ADE_{'train' if split == 'train' else 'val'}_{number + 1:08}"
            _save(image, folder / "images" / name / f"{stem}.jpg")
            _save(Image.fromarray(_ADE20K_IDS[np.asarray(mask)]), folder / "annotations" / name / f"{stem}.png")
    rows = [f"{number}\t0.01\t100\t10\t0\tthing {number}" for number in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows, ""]))


def _as_cityscapes(canvases: Path, folder: Path) -> None:
    for split, name in zip(_SPLITS, ("train", "val"), strict=True):
        for number, (image, mask) in enumerate(_pairs(canvases, split)):
            city = Path(name) / "ulm"
            stem = f"ulm_{number:06}_000019"
            _save(image, folder / "leftImg8bit" / city / f"{stem}_leftImg8bit.png")
            labels = Image.fromarray(_CITYSCAPES_IDS[np.asarray(mask)])
            _save(labels, folder / "gtFine" / city / f"{stem}_gtFine_labelIds.png")


def _as_coco(canvases: Path, folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, name in zip(_SPLITS, ("train2017", "val2017"), strict=True):
        content = json.loads((canvases / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        new_ids = {row["id"]: new_id for row, new_id in zip(content["categories"], _COCO_CATEGORIES, strict=True)}
        for row in content["categories"]:
            row["id"] = new_ids[row["id"]]
        for row in content["annotations"]:
            row["category_id"] = new_ids[row["category_id"]]
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content), encoding="utf-8")
        (canvases / "images" / split).rename(folder / name)


def _pairs(canvases: Path, split: str) -> Iterator[tuple[Image.Image, Image.Image]]:
    for path in sorted((canvases / "images" / split).iterdir()):
        yield Image.open(path), Image.open(canvases / "masks" / split / path.name)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
