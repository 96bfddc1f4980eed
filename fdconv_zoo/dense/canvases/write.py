"""A folder of canvases in the standard formats: images, class masks, and COCO annotations."""

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

SMALLEST = 32  # side of a canvas: the smallest garment is then 5 pixels long

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

images/SPLIT/NUMBER.png                  RGB; garments over textures of different spatial frequency
masks/SPLIT/NUMBER.png                   8 bits; each pixel is the number of a class, 0 is background
classes.txt                              names of the classes, in the order of their numbers
annotations/instances_SPLIT.json         COCO format; masks are what is seen of an object, as compressed RLE

Made by scripts/make_canvases.py from images of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist), by
Han Xiao, Kashif Rasul and Roland Vollgraf, copyright 2017 Zalando SE, under the MIT licence in LICENSE. Canvases for
training hold images of its training set only, those for validation of its test set only.
"""


def write_canvases(folder: Path, *, train: int = 1000, validation: int = 250, size: int = 128, seed: int = 0) -> None:
    """Make a dataset for segmentation and detection; the folder is whole or not there.

    A canvas depends on `seed`, `size`, its split and its number only: a smaller set is the beginning of a larger one.

    Args:
        folder: To make; it may exist if it is empty.
        train: Canvases for training, of the sample's training images.
        validation: Canvases for validation, of its validation images.
        size: Side in pixels, at least 32. Garments grow with it, from 16 to 47 % of it.
        seed: Of all that is random, 0 or more.

    Raises:
        DataError: a number is too small, or the folder holds something.
        WriteError: it could not be written.
    """
    folder = Path(folder)
    for name, value, least in (
        ("train", train, 1),
        ("validation", validation, 1),
        ("size", size, SMALLEST),
        ("seed", seed, 0),
    ):
        if value < least:
            raise DataError(f"{name} is {value}; it must be at least {least}.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder. Remove it, or choose another.")
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
        # Noise has no repetitions: other strategies search for them and find none.
        Image.fromarray(canvas.image).save(folder / "images" / split / name, compress_type=zlib.Z_RLE)
        Image.fromarray(canvas.classes).save(folder / "masks" / split / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size, "license": 1})
        for annotation in _annotations(canvas, number):
            annotations.append({"id": len(annotations) + 1, **annotation})  # pycocotools takes an id of 0 for "none"
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
    """All objects of a canvas, without the annotations' own ids."""
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
