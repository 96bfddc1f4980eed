"""Small datasets in COCO's format, for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ((90, "kite"), (3, "car"), (17, "cat"))  # ids are unordered and have gaps


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(number: int, image: int, category: int, box: list, **more: object) -> dict:
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    if len(box) == 4:
        entry |= {"area": box[2] * box[3], "segmentation": [box_polygon(*box)]}
    return entry | more


def coco(images: list[dict], annotations: list[dict], categories: tuple = CATEGORIES) -> dict:
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def image(number: int, width: int = 40, height: int = 30) -> dict:
    return {"id": number, "file_name": f"{number}.png", "width": width, "height": height}


def write_split(folder: Path, content: dict | str, annotations: str, images: str) -> None:
    """Write an annotation file and, if its entries are valid, grey images with white objects."""
    file = folder / annotations
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / images).mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        return
    for entry in content["images"]:
        pixels = np.full((entry["height"], entry["width"], 3), 100, np.uint8)
        for item in content["annotations"]:
            if item.get("image_id") == entry["id"] and len(item.get("bbox", [])) == 4:
                x, y, width, height = (max(int(value), 0) for value in item["bbox"])
                pixels[y : y + height, x : x + width] = 255
        Image.fromarray(pixels).save(folder / images / entry["file_name"])


def write_dataset(folder: Path, train: dict | str, validation: dict | str | None = None) -> str:
    """Write both splits in the layout of the demo data, and return the folder."""
    validation = train if validation is None else validation
    for split, content in (("train", train), ("validation", validation)):
        write_split(folder, content, f"annotations/instances_{split}.json", f"images/{split}")
    return str(folder)
