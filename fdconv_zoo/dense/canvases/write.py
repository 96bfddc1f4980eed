"""Writes canvases in standard formats: images, class masks and COCO annotations."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from fdconv_zoo.data.sources import SAMPLE_FOLDER
from fdconv_zoo.dense.canvases.compose import Canvas, compose
from fdconv_zoo.dense.canvases.garments import Garments, Split, load_garments
from fdconv_zoo.errors import DataError
from fdconv_zoo.store.files import replacing

MIN_SIZE = 32  # side of a canvas at which the smallest garment is 5 pixels long

SUPERCATEGORIES = {
    "T-shirt/top": "top",
    "Trouser": "bottom",
    "Pullover": "top",
    "Dress": "dress",
    "Coat": "top",
    "Sandal": "footwear",
    "Shirt": "top",
    "Sneaker": "footwear",
    "Bag": "accessory",
    "Ankle boot": "footwear",
}

README = """\
Canvases of fdconv-zoo: {train} for training, {validation} for validation, {size}x{size} pixels, seed {seed}.

images/SPLIT/NUMBER.png                  RGB; garments over textures of different spatial frequencies
masks/SPLIT/NUMBER.png                   8 bits; each pixel is a class index, 0 is background
classes.txt                              class names in the order of the class indices
annotations/instances_SPLIT.json         COCO format; masks cover the visible part of an object, as compressed RLE

Created by fdconv-zoo from images of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist), by
Han Xiao, Kashif Rasul and Roland Vollgraf, copyright 2017 Zalando SE, under the MIT licence in LICENSE. Training
canvases only use images of its training set, validation canvases only images of its test set.
"""


def write_canvases(folder: Path, *, train: int = 1000, validation: int = 250, size: int = 128, seed: int = 0) -> None:
    """Write a dataset for segmentation and detection. If it fails, no folder is left behind.

    A canvas depends only on `seed`, `size`, its split and its number, so a smaller dataset is the start of a larger
    one.

    Args:
        folder: Output folder; it must be empty or not exist.
        train: Number of training canvases.
        validation: Number of validation canvases.
        size: Side of a canvas in pixels, at least 32. The sides of garments are 16 to 47 % of it.
        seed: Random seed, at least 0.

    Raises:
        DataError: an argument is too small, or the folder is not empty.
        WriteError: the folder could not be written.
    """
    folder = Path(folder)
    for name, value, minimum in (
        ("train", train, 1),
        ("validation", validation, 1),
        ("size", size, MIN_SIZE),
        ("seed", seed, 0),
    ):
        if value < minimum:
            raise DataError(f"{name} is {value}; it must be at least {minimum}.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder. Remove it, or choose another folder.")
    with replacing(folder) as temporary:
        temporary.mkdir()
        garments = _write_split(temporary, "train", train, size, seed)
        _write_split(temporary, "validation", validation, size, seed)
        text = README.format(train=train, validation=validation, size=size, seed=seed)
        (temporary / "README.txt").write_text(text, encoding="utf-8")
        (temporary / "classes.txt").write_text("\n".join(["background", *garments.class_names, ""]), encoding="utf-8")
        shutil.copyfile(SAMPLE_FOLDER / "LICENSE", temporary / "LICENSE")


def _write_split(folder: Path, split: Split, count: int, size: int, seed: int) -> Garments:
    garments = load_garments(split)
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng((seed, ("train", "validation").index(split), number))
        canvas = compose(garments, rng, size)
        name = f"{number:06}.png"
        # Run-length encoding only: noise does not repeat, so searching for matches is wasted time.
        Image.fromarray(canvas.image).save(folder / "images" / split / name, compress_type=zlib.Z_RLE)
        Image.fromarray(canvas.classes).save(folder / "masks" / split / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size, "license": 1})
        for annotation in _annotations(canvas, number):
            annotations.append({"id": len(annotations) + 1, **annotation})  # pycocotools treats the id 0 as "no match"
    coco = {
        "info": {"description": "Canvases of fdconv-zoo", "version": "1", "year": 2025, "contributor": "fdconv-zoo"},
        "licenses": [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}],
        "categories": [
            {"id": number, "name": name, "supercategory": SUPERCATEGORIES[name]}
            for number, name in enumerate(garments.class_names, start=1)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco), encoding="utf-8")
    return garments


def _annotations(canvas: Canvas, image_id: int) -> list[dict[str, Any]]:
    """Return the annotations of a canvas, without their ids."""
    annotations = []
    for number, category in enumerate(canvas.categories.tolist(), start=1):
        encoded = rle.encode(np.asfortranarray(canvas.instances == number))
        annotations.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": rle.toBbox(encoded).tolist(),
                "area": int(rle.area(encoded)),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                "iscrowd": 0,
            }
        )
    return annotations
