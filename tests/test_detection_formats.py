"""Datasets in the formats of YOLO and Pascal VOC give the same images and objects as in COCO's format."""

import shutil

import numpy as np
import pytest
from coco_files import annotation, box_polygon, coco, image, write_dataset
from PIL import Image

from fdconv_zoo.dense.detection.loading import load_detection_data
from fdconv_zoo.errors import DataError

NAMES = ["cat", "kite", "car"]  # class numbers 0, 1, 2
CATEGORIES = tuple(enumerate(NAMES))
OBJECTS = {  # by image: class number and box
    "1": [(2, [4, 6, 10, 8]), (0, [0, 0, 40, 30])],
    "2": [(1, [20, 10, 20, 20])],
    "3": [],
}
SPLITS = {"train": ["1", "2", "3"], "val": ["2", "1"]}


def write_image(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def expected(folder, split, masks, categories=CATEGORIES):
    """The same data in COCO's format."""
    names = sorted(SPLITS[split])
    numbers = {name: number for number, name in categories}
    annotations = [
        annotation(0, image_id, numbers[NAMES[label]], box)
        for image_id, name in enumerate(names, start=1)
        for label, box in OBJECTS[name]
    ]
    for number, entry in enumerate(annotations, start=1):
        entry["id"] = number
    content = coco([image(number) for number in range(1, 1 + len(names))], annotations, categories)
    return load_detection_data(write_dataset(folder, content), masks=masks, split="validation").validation


def assert_same(actual, wanted):
    assert actual.categories == wanted.categories
    for name in ("image_ids", "sizes", "annotation_ids", "rows", "labels", "is_crowd"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(wanted, name), err_msg=name)
    for name in ("boxes", "areas"):
        np.testing.assert_allclose(getattr(actual, name), getattr(wanted, name), atol=1e-6, err_msg=name)
    assert (actual.segmentations is None) == (wanted.segmentations is None)
    if wanted.segmentations is not None:
        for index in range(len(wanted.rows)):
            np.testing.assert_allclose(actual.segmentation(index), wanted.segmentation(index), atol=1e-6)


# YOLO


def line(label, box, polygon):
    x, y, w, h = box
    corners = np.array(box_polygon(*box)).reshape(-1, 2) / (40, 30)
    values = corners.ravel() if polygon else [(x + w / 2) / 40, (y + h / 2) / 30, w / 40, h / 30]
    return " ".join([str(label), *(f"{value:.9f}" for value in values)])


def write_yolo(folder, settings="train: images/train\nval: images/val\n", polygons=False):
    for split, names in SPLITS.items():
        for name in names:
            write_image(folder / "images" / split / f"{name}.png")
            if OBJECTS[name]:
                labels = folder / "labels" / split / f"{name}.txt"
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text("\n".join(line(*item, polygons) for item in OBJECTS[name]) + "\n")
    (folder / "data.yaml").write_text(f"{settings}names: [cat, kite, car]\n")
    return str(folder)


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("whole_path", [False, True])
def test_yolo(polygons, whole_path, tmp_path, caplog):
    folder = write_yolo(tmp_path / "yolo", polygons=polygons)
    data = load_detection_data(f"{folder}/data.yaml" if whole_path else folder, masks=polygons)
    assert data.class_names == NAMES
    for found, split in ((data.train, "train"), (data.validation, "val")):
        assert_same(found, expected(tmp_path / split, split, polygons))
    assert data.train.path(1).samefile(tmp_path / "yolo/images/train/2.png")
    assert "1 of 3 images of train have no file of labels" in caplog.text


def test_yolo_lists_of_images_names_with_numbers_and_paths_of_exports(tmp_path):
    folder = tmp_path / "yolo"
    write_yolo(folder)
    (folder / "train.txt").write_text("./images/train/1.png\n\nimages/train/2.png\n")
    (folder / "data.yaml").write_text(
        "path: ../nowhere\ntrain: [train.txt, images/train]\nval: ../images/val\nnames: [cat, kite, car]\n"
    )
    with pytest.raises(DataError, match="listed more than once"):
        load_detection_data(str(folder), masks=False)
    (folder / "data.yaml").write_text(
        "path: ../nowhere\ntrain: train.txt\nval: ../images/val\nnc: 3\nnames: {1: kite, 0: cat, 2: car}\n"
    )
    data = load_detection_data(str(folder), masks=False)
    assert (data.class_names, len(data.train)) == (NAMES, 2)
    assert_same(data.validation, expected(tmp_path / "coco", "val", False))


def test_yolo_keypoints_are_skipped(tmp_path):
    folder = tmp_path / "yolo"
    write_yolo(folder, "train: images/train\nval: images/val\nkpt_shape: [2, 3]\n")
    for file in folder.rglob("labels/*/*.txt"):
        file.write_text("".join(f"{row} 0.1 0.1 2 0.5 0.5 0\n" for row in file.read_text().splitlines()))
    assert_same(load_detection_data(str(folder), masks=False).train, expected(tmp_path / "coco", "train", False))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels/val/1.txt", "0 0.5 0.5 0.1\n", r"1\.txt:1: 3 numbers after the class"),
        ("labels/val/1.txt", "\n0 0.5 0.5 20 10\n", r"1\.txt:2: numbers that are not fractions"),
        ("labels/val/1.txt", "0 nan 0.5 0.1 0.1", r"1\.txt:1: numbers that are not fractions"),
        ("labels/val/1.txt", "3 0.5 0.5 0.1 0.1", r"1\.txt:1: class 3 is not in 'names'"),
        ("labels/val/1.txt", "0.5 0.5 0.5 0.1 0.1", r"1\.txt:1: class 0\.5 is not in 'names'"),
        ("labels/val/1.txt", "cat 0.5 0.5 0.1 0.1", r"1\.txt:1: 'cat 0\.5.* are not numbers"),
        ("labels/val/1.txt", "0 0.95 0.5 0.3 0.1", "boxes that extend beyond their image"),
        ("images/val/1.png", "no image", r"1\.png: cannot be read as an image"),
        ("data.yaml", "train: images/train\nval: images/val\n", "'names' must list the classes"),
        ("data.yaml", "train: images/train\nval: x\nnames: [a, b, c]", "'val' is 'x', but there is no"),
        ("data.yaml", "train: images/train\nnames: [a, b, c]", "names no images of validation. Set 'val' or 'valid'"),
        ("data.yaml", "train: images/train\nval: images/val\nnc: 4\nnames: [a, b, c]", "'nc' is 4, but there are 3"),
        ("data.yaml", "train: images/train\nval: images/val\nnames: [a, no, c]", "'names' has False.*in quotes"),
        ("data.yaml", "train: images/train\nval: images/val\nnames: {1: a, 2: b}", "have their numbers 0, 1"),
        ("data.yaml", "names: [", "cannot be read as YAML"),
        ("data.yaml", "names: !!python/object/apply:os.getcwd []", "cannot be read as YAML .*python/object"),
        ("train.txt", "images/train/9.png", "lists 'images/train/9.png', but there is no"),
    ],
)
def test_yolo_mistakes_are_named(name, text, message, tmp_path):
    train = "train.txt" if name == "train.txt" else "images/train"
    write_yolo(tmp_path, f"train: {train}\nval: images/val\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_detection_data(str(tmp_path), masks=False)


def test_yolo_without_labels_without_masks_and_with_rotated_images(tmp_path):
    folder = write_yolo(tmp_path)
    with pytest.raises(DataError, match=r"boxes without polygons.*--head faster_rcnn"):
        load_detection_data(folder, masks=True)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size does not show it
    write_image(tmp_path / "images/val/1.png", exif=exif)
    with pytest.raises(DataError, match=r"1\.png: its EXIF tag rotates it; store it upright"):
        load_detection_data(folder, masks=False)
    write_image(tmp_path / "images/val/1.png")
    shutil.rmtree(tmp_path / "labels/val")
    with pytest.raises(DataError, match=r"none of the 2 images of val.* has labels, such as .*labels.val.1\.txt"):
        load_detection_data(folder, masks=False)


# Pascal VOC


def xml(name, size=(40, 30)):
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for label, (x, y, w, h) in OBJECTS[name]
    )
    width, height = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def write_voc(folder, beside=False):
    for split, names in SPLITS.items():
        for name in names:
            picture = folder / split / f"{name}.jpg" if beside else folder / "JPEGImages" / f"{name}.jpg"
            write_image(picture)
            file = picture.with_suffix(".xml") if beside else folder / "Annotations" / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(xml(name, (0, 0) if name == "2" else (40, 30)))
        if not beside:
            list_of = folder / "ImageSets" / "Main" / f"{split}.txt"
            list_of.parent.mkdir(parents=True, exist_ok=True)
            list_of.write_text("".join(f"{name}\n" for name in sorted(names)))
    return str(folder)


@pytest.mark.parametrize("beside", [False, True])
def test_voc(beside, tmp_path):
    data = load_detection_data(write_voc(tmp_path / "voc", beside), masks=False)
    categories = ((1, "car"), (2, "cat"), (3, "kite"))
    assert data.class_names == ["car", "cat", "kite"]
    for found, split in ((data.train, "train"), (data.validation, "val")):
        assert_same(found, expected(tmp_path / split, split, False, categories))
    alone = load_detection_data(str(tmp_path / "voc"), masks=False, split="validation")
    assert_same(alone.validation, data.validation)
    with pytest.raises(DataError, match=r"boxes without masks.*--head faster_rcnn"):
        load_detection_data(str(tmp_path / "voc"), masks=True)


def test_voc_difficult_objects_are_ignored_and_classes_are_those_of_both_splits(tmp_path):
    folder = write_voc(tmp_path)
    file = tmp_path / "Annotations/1.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    (tmp_path / "ImageSets/Main/val.txt").write_text("1\n")
    data = load_detection_data(folder, masks=False, split="validation")
    assert data.validation.is_crowd.tolist() == [True, False]
    assert data.class_names == ["car", "cat", "kite"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Annotations/1.xml", "<annotation>", r"1\.xml: not valid XML"),
        (
            "Annotations/1.xml",
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>',
            r"1\.xml: not valid XML \(undefined entity",
        ),
        ("Annotations/1.xml", xml("1").replace("xmin", "left"), r"1\.xml: object 1 has no name, or no box with xmin"),
        ("Annotations/1.xml", xml("1").replace("<xmin>5", "<xmin>nan"), r"1\.xml: object 1 has no name, or no box"),
        ("Annotations/1.xml", xml("1", (30, 40)), "boxes that extend beyond"),
        ("Annotations/1.xml", xml("1", (40, 31)), "has 40x30 pixels, but 40x31"),
        ("ImageSets/Main/val.txt", "1\n9\n", r"val\.txt: 1 names have no image in JPEGImages:\n.*9"),
        (
            "ImageSets/Main/val.txt",
            "",
            "no validation images in the format of Pascal VOC: add ImageSets/Main/validation",
        ),
    ],
)
def test_voc_mistakes_are_named(name, text, message, tmp_path):
    folder = write_voc(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_detection_data(folder, masks=False)


def test_voc_needs_an_annotation_for_each_image(tmp_path):
    folder = write_voc(tmp_path, beside=True)
    (tmp_path / "val/1.xml").unlink()
    with pytest.raises(DataError, match=r"1\.jpg: there is no .*1\.xml"):
        load_detection_data(folder, masks=False)
