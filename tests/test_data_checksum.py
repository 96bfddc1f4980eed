"""The checksum that shows a resumed run whether its data are those it was started with."""

import json
import shutil

import pytest
from PIL import Image

from fdconv_zoo.dense.detection.loading import load_detection_data
from fdconv_zoo.dense.segmentation.loading import load_segmentation_data
from fdconv_zoo.training.data_checksum import data_checksum

pytestmark = pytest.mark.usefixtures("datasets_cache")


def of_detection(folder):
    return data_checksum([load_detection_data(str(folder), masks=True).train.as_table()])


def of_segmentation(folder):
    pairs = load_segmentation_data(str(folder)).train
    return data_checksum([pairs.source.select(pairs.rows)])


def change_pixel(path):
    with Image.open(path) as image:
        changed = image.copy()
    changed.putpixel((0, 0), 3 if changed.mode in ("L", "P") else (9, 9, 9))
    changed.save(path)


@pytest.fixture
def folder(small_canvases, tmp_path):
    return shutil.copytree(small_canvases, tmp_path / "canvases")


@pytest.mark.parametrize("checksum", [of_detection, of_segmentation])
def test_it_is_that_of_content_and_not_of_names_of_folders(folder, checksum, tmp_path):
    first = checksum(folder)
    assert checksum(folder) == first
    assert checksum(shutil.copytree(folder, tmp_path / "copy")) == first
    change_pixel(sorted((folder / "images/train").iterdir())[0])
    assert checksum(folder) != first


def test_masks_and_boxes_count(folder):
    masks, boxes = of_segmentation(folder), of_detection(folder)
    change_pixel(sorted((folder / "masks/train").iterdir())[0])
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    assert of_segmentation(folder) != masks
    assert of_detection(folder) != boxes
