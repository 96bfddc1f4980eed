"""Loading, checks and augmentation of images with boxes and masks in COCO's format, and pictures of them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import CATEGORIES, annotation, box_polygon, coco, image, write_dataset, write_split
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors

from fdconv_zoo.data import open_image
from fdconv_zoo.dense.canvases import write_canvases
from fdconv_zoo.dense.colours import class_colour
from fdconv_zoo.dense.detection import checks, loading
from fdconv_zoo.dense.detection.augment import enclosing_boxes, training_transform
from fdconv_zoo.dense.detection.dataset import DetectionDataset, EvaluationDataset, read_image, read_target
from fdconv_zoo.dense.detection.loading import load_detection_data
from fdconv_zoo.dense.detection.metrics import coco_truth, score_detections
from fdconv_zoo.dense.detection.pictures import draw_detections, draw_grid
from fdconv_zoo.dense.detection.rle import decode_counts, decode_masks, encode_mask, usable_segmentation
from fdconv_zoo.errors import DataError

PLAIN = coco([image(7), image(5)], [annotation(1, 5, 17, [4, 6, 10, 8]), annotation(2, 7, 90, [0, 0, 5, 5])])


def load(folder: Path, train: dict | str = PLAIN, validation: dict | str | None = None, **arguments: object):
    return load_detection_data(write_dataset(folder, train, validation), **{"masks": True, **arguments})


# Loading


def test_labels_number_the_categories_in_the_order_of_their_ids(tmp_path):
    data = load(tmp_path)
    assert data.class_names == ["car", "cat", "kite"]
    assert data.category_ids == [3, 17, 90]
    targets = {int(t["image_id"]): t for t in (read_target(data.train, i, masks=False) for i in range(2))}
    assert targets[5]["labels"].tolist() == [2]
    assert targets[7]["labels"].tolist() == [3]
    assert targets[5]["boxes"].tolist() == [[4, 6, 14, 14]]
    assert "masks" not in targets[5]


def test_the_layout_of_coco_and_explicit_paths(tmp_path):
    write_split(tmp_path, PLAIN, "annotations/instances_train2017.json", "train2017")
    write_split(tmp_path, PLAIN, "annotations/instances_val2017.json", "val2017")
    data = load_detection_data(str(tmp_path), masks=False)
    assert data.train.path(0) == tmp_path / "train2017/7.png"
    assert data.validation.path(0) == tmp_path / "val2017/7.png"

    write_split(tmp_path, coco([image(8)], [annotation(1, 8, 3, [1, 1, 9, 9])]), "mine.json", "pictures")
    mine = {"validation_annotations": str(tmp_path / "mine.json"), "validation_images": str(tmp_path / "pictures")}
    assert load_detection_data(str(tmp_path), masks=False, **mine).validation.image_ids.tolist() == [8]
    alone = load_detection_data(None, masks=False, split="validation", **mine)
    assert alone.train is None
    assert alone.validation.path(0) == tmp_path / "pictures/8.png"


def test_the_demo_data_are_created(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "canvases_folder", lambda: tmp_path / "made")
    write_canvases(tmp_path / "made", train=3, validation=2, size=32)
    data = load_detection_data("fashion_canvases", masks=True)
    assert (len(data.train), len(data.validation)) == (3, 2)
    assert data.category_ids == list(range(1, 11))


def test_images_without_objects_are_kept_and_crowds_do_not_train(tmp_path):
    crowd = {"size": [30, 40], "counts": [600, 600]}  # the right half, as COCO stores crowds
    annotations = [
        annotation(1, 1, 3, [2, 2, 6, 6]),
        annotation(2, 1, 17, [20, 0, 20, 30], iscrowd=1, segmentation=crowd),
    ]
    data = load(tmp_path, coco([image(1), image(2)], annotations))
    first, empty = (read_target(data.train, index, masks=True) for index in range(2))
    assert first["labels"].tolist() == [1]
    assert data.validation.is_crowd.tolist() == [False, True]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 30, 40)
    assert empty["labels"].shape == (0,)
    assert len(data.train) == 2


def test_limit_selects_images_with_their_own_annotations(tmp_path):
    images = [image(number) for number in range(30, 0, -1)]
    annotations = [annotation(100 - n, n, 3, [n, 1, 2, 3]) for n in range(1, 31)]
    data = load(tmp_path, coco(images, annotations), limit=4)
    assert len(data.train) == len(data.validation) == 4
    for index in range(4):
        target = read_target(data.train, index, masks=True)
        number = int(target["image_id"])
        assert target["boxes"].tolist() == [[number, 1, number + 2, 4]]
        assert data.train.path(index).name == f"{number}.png"
        assert enclosing_boxes(target["masks"]).tolist() == target["boxes"].tolist()


# Masks


def literal_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of pixels outside, inside, outside..., column by column."""
    runs, inside = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != inside:
            runs.append(0)
            inside = pixel
        runs[-1] += 1
    return runs


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
def test_compressed_run_lengths_of_pycocotools_are_decoded(seed, height, width, density):
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    rle = encode_mask(mask)
    assert decode_counts(rle["counts"]) == literal_runs(mask)
    assert usable_segmentation(rle, width, height) == (rle if mask.any() else None)


def test_all_three_forms_of_a_mask_give_the_same_pixels(tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[6:14, 4:14] = 1
    forms = [[box_polygon(4, 6, 10, 8)], {"size": [30, 40], "counts": literal_runs(mask)}, encode_mask(mask)]
    forms.append([box_polygon(4, 6, 5, 8), box_polygon(9, 6, 5, 8), [1, 1, 30, 20]])  # two parts, and a line
    annotations = [annotation(n + 1, 1, 3, [4, 6, 10, 8], segmentation=form) for n, form in enumerate(forms)]
    masks = read_target(load(tmp_path, coco([image(1)], annotations)).train, 0, masks=True)["masks"]
    assert masks.dtype == torch.uint8
    assert torch.equal(masks.as_subclass(torch.Tensor), torch.from_numpy(mask).expand(4, 30, 40))


UNUSABLE = {
    "nothing": None,
    "no polygon": [],
    "two points": [[1, 1, 30, 20]],
    "odd": [[1, 1, 5, 1, 5, 5, 1]],
    "not a number": [[1, 1, 5, 1, 5, float("nan")]],
    "another size": {"size": [40, 30], "counts": [600, 600]},
    "too few runs": {"size": [30, 40], "counts": [600, 500]},
    "negative run": {"size": [30, 40], "counts": [1300, -100]},
    "too few compressed runs": {"size": [30, 40], "counts": "0"},
    "text that ends too early": {"size": [30, 40], "counts": encode_mask(np.ones((30, 40)))["counts"] + "P"},
    "no text": {"size": [30, 40], "counts": 3},
    "no run inside": {"size": [30, 40], "counts": [1200]},
    "broken runs": {"size": [30, 40], "counts": [599.5, 600.5]},
    "a polygon beside the image": [[50, 5, 60, 5, 60, 15]],
    "a polygon without width": [[5, 5, 5, 15, 5, 10]],
    "a polygon in fractions of the image": [[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]],
    "a polygon to infinity": [[5, 5, 1e12, 5, 5, 9]],
    "a polygon beyond the range of floats": [[5, 5, 10**400, 5, 5, 9]],
}


@pytest.mark.parametrize("segmentation", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_masks(tmp_path, segmentation):
    content = coco([image(1)], [annotation(8, 1, 3, [1, 1, 5, 5]), annotation(9, 1, 3, [1, 1, 5, 5])])
    content["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(DataError, match=r"instances_train.json: 1 annotations have no segmentation[^$]*id 9, box"):
        load(tmp_path, content)
    assert len(load_detection_data(str(tmp_path), masks=False).train.boxes) == 2
    skipping = load_detection_data(str(tmp_path), masks=True, skip_bad_boxes=True)
    assert skipping.train.annotation_ids.tolist() == [8]
    assert skipping.skipped == 2  # one of each split


# Errors


def without(key: str) -> dict:
    entry = annotation(4, 5, 3, [1, 1, 2, 2])
    del entry[key]
    return entry


BAD_FILES = {
    "no json": ('{"images": [', r"not valid JSON \(.*line 1 column"),
    "a list": ("[]", "not in COCO's format, which has the lists images, annotations, categories"),
    "no object": (coco([image(5), 3], []), "entries of 'images' are not objects.*index 1"),
    "no size": (
        coco([{"id": 5, "file_name": "5.png"}], []),
        r"'images' have no valid 'width' \(a positive integer\): id 5",
    ),
    "text for an id": (coco([image(5)], [annotation("4", 5, 3, [1, 1, 2, 2])]), r"'id' \(an integer .*\): id 4"),
    "no box": (coco([image(5)], [without("bbox")]), r"have no valid 'bbox' \(\[x, y, width, height\]\): id 4"),
    "infinite box": (coco([image(5)], [annotation(4, 5, 3, [1, 1, 2, float("inf")])]), "'bbox'.*: id 4"),
    "short box": (coco([image(5)], [annotation(4, 5, 3, [1, 1, 2])]), "'bbox'.*: id 4"),
    "unknown image": (
        coco([image(5)], [annotation(4, 6, 3, [1, 1, 2, 2])]),
        "refer with 'image_id' to an id that the file .*: id 4",
    ),
    "unknown category": (coco([image(5)], [annotation(4, 5, 1, [1, 1, 2, 2])]), "refer with 'category_id' .*: id 4"),
    "annotation twice": (coco([image(5)], [annotation(4, 5, 3, [1, 1, 2, 2])] * 2), "once in 'annotations': 4"),
    "image twice": (coco([image(5), image(5)], []), "more than once in 'images': 5"),
    "category twice": (coco([image(5)], [], ((3, "a"), (3, "b"))), "more than once in 'categories': 3"),
    "an id of 64 bits": (coco([image(5)], [annotation(2**63, 5, 3, [1, 1, 2, 2])]), "'id' .*2\\*\\*63"),
    "an image id of 64 bits": (coco([image(5)], [annotation(4, -(2**63), 3, [1, 1, 2, 2])]), "'image_id' .*: id 4"),
    "a width of 71 bits": (coco([image(5, 2**70)], []), "'width' .*: id 5"),
    "a huge number in a box": (coco([image(5)], [annotation(4, 5, 3, [1, 10**400, 2, 2], area=1)]), "'bbox'.*: id 4"),
    "a huge area": (coco([image(5)], [annotation(4, 5, 3, [1, 1, 2, 2], area=10**400)]), "'area'.*: id 4"),
    "half a character": (coco([image(5) | {"file_name": "\udcff.png"}], []), "'file_name' .*: id 5"),
    "one name for two categories": (
        coco([image(5)], [], ((3, "a"), (2, "b"), (9, "a"), (8, "a "))),
        r"same name: 'a' \(ids 3, 8, 9\)\. Rename",
    ),
    "one file for two images": (
        coco([image(5), image(6) | {"file_name": "./5.png"}], []),
        r"listed more than once: 5.png \(ids 5, 6\)\.",
    ),
    "no annotations": (coco([image(5)], []), "no objects are annotated in its 1 images. Add"),
    "only crowds": (coco([image(5)], [annotation(4, 5, 3, [1, 1, 2, 2], iscrowd=1)]), r"\(but 1 crowds\)"),
    "no images": (coco([], []), "annotated in its 0 images"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_annotation_files(tmp_path, content, message):
    content = content if isinstance(content, str) else json.dumps(content)
    folder = write_dataset(tmp_path, PLAIN, content)
    with pytest.raises(DataError, match=f"(?s)instances_validation.json: .*{message}"):
        load_detection_data(folder, masks=False)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder\. Choose"):
        load_detection_data(str(tmp_path / "nowhere"), masks=False)
    with pytest.raises(DataError, match=r"no train annotations found.*instances_train2017.json.*--train-annotations"):
        load_detection_data(str(tmp_path), masks=False)
    with pytest.raises(DataError, match=r"other.json: cannot be read .*Check the path"):
        load_detection_data(write_dataset(tmp_path, PLAIN), masks=False, train_annotations=str(tmp_path / "other.json"))


def test_boxes_outside_the_image_and_without_area(tmp_path):
    boxes = {1: [-0.9, 0, 10, 30.5], 2: [35, 5, 20, 5], 3: [4, 4, 6, 0], 4: [41, 3, 5, 5], 5: [4, 4, -3, 3]}
    annotations = [annotation(number, 1, 3, box) for number, box in boxes.items()]
    content = coco([image(1)], annotations)
    with pytest.raises(
        DataError, match=r"(?s)3 annotations have boxes without area.*id 3, .*id 4, .*id 5, .*--skip-bad"
    ):
        load(tmp_path, content)
    content["annotations"] = annotations[:2]
    with pytest.raises(
        DataError, match=r"(?s)1 annotations have boxes that extend beyond.*id 2, box .* in 1.png \(40x30\)"
    ):
        load(tmp_path, content)

    content["annotations"] = annotations
    data = load(tmp_path, content, skip_bad_boxes=True)
    assert data.skipped == 8  # numbers 2 to 5 in both splits; number 1 is off by rounding
    expected = [[0, 0, 9.1, 30], [35, 5, 40, 10]]
    np.testing.assert_allclose(read_target(data.train, 0, masks=False)["boxes"], expected, rtol=1e-6)
    assert data.validation.boxes.tolist() == [boxes[1], boxes[2]]  # the ground truth is unchanged


def test_boxes_in_fractions_of_the_image(tmp_path):
    content = coco([image(1)], [annotation(1, 1, 3, [0, 0, 1, 1]), annotation(2, 1, 3, [0.2, 0.5, 0.1, 0.3])])
    for skip in (False, True):
        with pytest.raises(DataError, match=r"all its 2 boxes lie between 0 and 1.* multiply x and width by the width"):
            load(tmp_path, content, skip_bad_boxes=skip, masks=False)


def test_boxes_smaller_than_a_pixel_are_counted(tmp_path):
    annotations = [annotation(1, 1, 3, [1, 1, 9, 9]), annotation(2, 1, 3, [1, 1, 0.9, 9])]
    content = coco([image(1)], annotations)
    with pytest.raises(DataError, match=r"(?s)1 annotations have boxes smaller than a pixel, which training .*id 2"):
        load(tmp_path, content, masks=False)
    data = load(tmp_path, content, masks=False, skip_bad_boxes=True)
    assert data.skipped == 1
    assert data.train.annotation_ids.tolist() == [1]
    assert data.validation.annotation_ids.tolist() == [1, 2]  # the ground truth is unchanged


@pytest.mark.parametrize("area", [-100, float("inf"), float("-inf"), 1e7], ids=str)
@pytest.mark.parametrize("masks", [False, True])
def test_areas_that_cannot_be_right(tmp_path, area, masks):
    """An object outside all of COCO's ranges of areas would not count."""
    triangle = [[10, 10, 20, 10, 10, 20]]
    content = coco([image(1)], [annotation(8, 1, 3, [10, 10, 10, 10], area=area, segmentation=triangle)])
    with pytest.raises(DataError, match=r"(?s)1 annotations have an 'area' that is negative, or larger .*id 8"):
        load(tmp_path, content, masks=masks)
    data = load(tmp_path, content, masks=masks, skip_bad_boxes=True)
    assert data.skipped == 2
    expected = coco_mask.area(coco_mask.frPyObjects(triangle, 30, 40)).item() if masks else 100
    assert data.validation.areas.tolist() == [expected]
    found = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 10, 10], "score": 0.5}
    assert score_detections(coco_truth(data.validation), [found], masks=False).box_ap == pytest.approx(100)


def test_images_in_both_splits_are_logged(tmp_path, caplog):
    folder = write_dataset(tmp_path, PLAIN)
    load_detection_data(folder, masks=False)
    assert not caplog.records
    load_detection_data(folder, masks=False, validation_images=str(tmp_path / "images/train"))
    assert "2 validation images are also training images" in caplog.text


def test_transparency_is_laid_over_white_as_in_prediction(tmp_path):
    folder = write_dataset(tmp_path, PLAIN)
    file = tmp_path / "images/train/5.png"
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[:, :10] = (200, 40, 40, 255)
    pixels[:, 10:20] = (200, 40, 40, 0)
    Image.fromarray(pixels).save(file)
    seen = read_image(load_detection_data(folder, masks=False).train, 1)
    assert torch.equal(seen, torch.from_numpy(np.array(open_image({"path": str(file)}))).permute(2, 0, 1))
    assert seen[:, 0, [0, 15]].T.tolist() == [[200, 40, 40], [255, 255, 255]]


def test_at_most_ten_are_named(tmp_path):
    annotations = [annotation(number, 1, 3, [1, 1, 0, 5]) for number in range(1, 31)]
    with pytest.raises(DataError, match="30 annotations") as caught:
        load(tmp_path, coco([image(1)], annotations))
    assert "id 10," in str(caught.value)
    assert "id 11," not in str(caught.value)
    assert "and 20 more" in str(caught.value)


def test_categories_that_do_not_match(tmp_path):
    validation = coco([image(1)], [annotation(1, 1, 3, [1, 1, 5, 5])], (*CATEGORIES[:2], (17, "dog"), (18, "cat")))
    with pytest.raises(DataError, match=r"categories: id 17: cat / dog, id 18: \(missing\) / cat\. Use the same"):
        load(tmp_path, PLAIN, validation)


def test_missing_unreadable_and_wrong_image_files(tmp_path):
    folder = write_dataset(tmp_path, PLAIN)
    file = tmp_path / "images/validation/5.png"
    Image.new("RGB", (30, 40)).save(file)
    with pytest.raises(DataError, match=r"5.png: has 30x40 pixels, but 40x30 in the annotation file\n"):
        load_detection_data(folder, masks=False)
    Image.new("I;16", (40, 30)).save(file)
    with pytest.raises(DataError, match=r"5.png: has more than 8 bits per channel"):
        load_detection_data(folder, masks=False)
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 2 opened images cannot be used:\n .*5.png: cannot be read as an image"):
        load_detection_data(folder, masks=False)
    file.unlink()
    with pytest.raises(DataError, match=r"1 of its 2 images are missing:\n .*5.png\nSet .*--validation-images"):
        load_detection_data(folder, masks=False)


def test_an_unchecked_file_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MAX_OPENED", 0)
    folder = write_dataset(tmp_path, PLAIN)
    (tmp_path / "images/train/7.png").write_bytes((tmp_path / "images/train/7.png").read_bytes()[:-30])
    Image.new("RGB", (30, 40)).save(tmp_path / "images/train/5.png")
    dataset = EvaluationDataset(load_detection_data(folder, masks=False).train)
    with pytest.raises(DataError, match=r"7.png: cannot be read as an image"):
        dataset[0]
    with pytest.raises(DataError, match=r"5.png: has 30x40 pixels, but 40x30 in .*instances_train.json"):
        dataset[1]


def test_boxes_refer_to_the_stored_pixels(tmp_path):
    folder = write_dataset(tmp_path, PLAIN)
    file = tmp_path / "images/train/5.png"
    stored = np.array(Image.open(file))
    rotation = Image.Exif()
    rotation[0x0112] = 6
    Image.open(file).save(file, exif=rotation)
    train = load_detection_data(folder, masks=False).train
    assert torch.equal(read_image(train, 1), torch.from_numpy(stored).permute(2, 0, 1))
    Image.open(file).resize((30, 40)).save(file, exif=rotation)
    with pytest.raises(DataError, match="its EXIF tag rotates it, but boxes must refer to the stored pixels"):
        load_detection_data(folder, masks=False)


# Training and evaluation


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """One image with two objects, painted in pure red and blue, on grey."""
    folder = tmp_path_factory.mktemp("scene")
    boxes = [[10, 20, 30, 16], [60, 40, 12, 24]]
    content = coco([image(1, 100, 80)], [annotation(n + 1, 1, 3 + 14 * n, box) for n, box in enumerate(boxes)])
    write_dataset(folder, content)
    pixels = np.full((80, 100, 3), 120, np.uint8)
    for (x, y, width, height), colour in zip(boxes, [(255, 0, 0), (0, 0, 255)], strict=True):
        pixels[y : y + height, x : x + width] = colour
    Image.fromarray(pixels).save(folder / "images/train/1.png")
    return load_detection_data(str(folder), masks=True).train


def painted_box(picture: torch.Tensor, label: int) -> list[int] | None:
    """Box of the pixels that are closest to the object's colour."""
    red, green, blue = picture
    rows, columns = torch.where((red if label == 1 else blue) - green > 0.7)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_and_masks_move_with_the_pixels(scene, masks):
    exact = DetectionDataset(scene, training_transform(hflip=1), masks=masks)
    picture, target = exact[0]
    assert target["boxes"].tolist() == [[60, 20, 90, 36], [28, 40, 40, 64]]
    assert [painted_box(picture, label) for label in (1, 2)] == target["boxes"].tolist()
    picture, target = DetectionDataset(scene, training_transform(hflip=0, vflip=1), masks=masks)[0]
    assert target["boxes"].tolist() == [[10, 44, 40, 60], [60, 16, 72, 40]]
    assert [painted_box(picture, label) for label in (1, 2)] == target["boxes"].tolist()

    jitter = training_transform(scale_jitter=(0.5, 2.5), crop_size=64)
    dataset = DetectionDataset(scene, jitter, masks=masks)
    seen = 0
    for epoch in range(20):
        dataset.set_epoch(epoch)
        picture, target = dataset[0]
        assert picture.shape == (3, 64, 64)
        assert len(target["boxes"]) == len(target["labels"])
        for place, label in enumerate(target["labels"].tolist()):
            box = painted_box(picture, label)
            if box is not None:  # else too thin: its pixels are mixed with their neighbours
                np.testing.assert_allclose(target["boxes"][place], box, atol=1.5)
                seen += 1
            if masks:
                assert target["masks"].shape[1:] == (64, 64)
                assert enclosing_boxes(target["masks"])[place].tolist() == target["boxes"][place].tolist()
    assert seen > 20


def test_enclosing_boxes():
    mask = torch.zeros(3, 10, 10, dtype=torch.uint8)
    mask[0, 2:5, 3:9] = 1
    mask[1, 9, 0] = 1
    assert enclosing_boxes(mask).tolist() == [[3, 2, 9, 5], [0, 9, 1, 10], [0, 0, 0, 0]]


def test_targets_have_the_format_of_torchvision(scene):
    transform = training_transform(scale_jitter=(0.8, 1.2), crop_size=64, photometric=True)
    dataset = DetectionDataset(scene, transform, masks=True)
    images, targets = dataset.collate([dataset[0], dataset[0]])
    assert images[0].dtype == torch.float32
    assert 0 <= images[0].min() <= images[0].max() <= 1
    kinds = {name: value.dtype for name, value in targets[0].items()}
    assert kinds == {"boxes": torch.float32, "labels": torch.int64, "masks": torch.uint8, "image_id": torch.int64}
    assert all(type(value) is torch.Tensor for value in [images[0], *targets[0].values()])
    assert not isinstance(targets[0]["boxes"], tv_tensors.TVTensor)


def test_augmentation_is_a_function_of_seed_epoch_and_index(scene):
    def draw(seed: int, epoch: int) -> torch.Tensor:
        dataset = DetectionDataset(scene, training_transform(photometric=True), masks=False, seed=seed)
        dataset.set_epoch(epoch)
        random.random(), torch.rand(1)
        return dataset[0][0]

    state = torch.get_rng_state()
    first = draw(0, 3)
    torch.set_rng_state(state)
    dataset = DetectionDataset(scene, training_transform(photometric=True), masks=False)
    dataset[0]
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unchanged
    assert torch.equal(first, draw(0, 3))
    assert not torch.equal(first, draw(0, 4))
    assert not torch.equal(first, draw(1, 3))


def test_evaluation_does_not_change_images(scene):
    picture, number = EvaluationDataset(scene)[0]
    assert number == 1
    assert picture.shape == (3, 80, 100)
    assert picture[:, 25, 15].tolist() == [1, 0, 0]


# Pictures


def test_pictures_show_boxes_masks_and_truth_in_class_colours():
    grey = Image.new("RGB", (60, 60), (128, 128, 128))
    objects = {"boxes": torch.tensor([[10.0, 20.0, 50.0, 50.0]]), "labels": torch.tensor([2])}
    nothing = {key: value[:0] for key, value in objects.items()}
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., 30:40, 20:30] = 0.9
    picture = draw_detections(grey, {**objects, "scores": torch.tensor([0.5]), "masks": mask}, ["a", "b"])
    assert picture.size == (480, 480)  # enlarged by 8
    assert picture.getpixel((80, 300)) == class_colour(2)
    assert picture.getpixel((160 + 120, 350)) == (128, 128, 128)
    red, _, blue = picture.getpixel((200, 280))
    assert (red - blue) * (class_colour(2)[0] - class_colour(2)[2]) > 0  # tinted
    both = draw_detections(grey, nothing, ["a", "b"], truth=objects)
    assert both.size == (968, 32 + 480)
    assert both.getpixel((80, 32 + 300)) == class_colour(2)
    assert both.getpixel((488 + 80, 32 + 300)) == (128, 128, 128)
    headers = np.asarray(both)[:32]
    assert (headers[:, :480] < 128).any()
    assert (headers[:, 488:] < 128).any()
    assert not np.array_equal(headers[:, :480], headers[:, 488:])
    assert draw_grid([picture] * 3, columns=2).size == (968, 968)


def test_the_object_with_the_highest_score_is_on_top():
    boxes, scores = torch.tensor([[10.0, 20.0, 50.0, 50.0]] * 2), torch.tensor([0.9, 0.1])
    detections = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": scores}
    picture = draw_detections(Image.new("RGB", (60, 60)), detections, ["a", "b"])
    assert picture.getpixel((80, 300)) == class_colour(1)


def test_captions_stay_inside_the_picture():
    white = Image.new("RGB", (480, 480), "white")
    corners = torch.tensor([[0.0, 0.0, 20.0, 20.0], [460.0, 460.0, 480.0, 480.0]])
    picture = np.asarray(draw_detections(white, {"boxes": corners, "labels": torch.tensor([1, 1])}, ["W" * 8]))
    filled = (picture == class_colour(1)).all(2)
    widths = [filled[rows].any(0).sum() for rows in (slice(0, 60), slice(420, 480))]
    assert min(widths) > 70


def test_decoding_an_empty_list_of_masks():
    assert decode_masks([], 4, 3).shape == (0, 3, 4)
    assert coco_mask.decode(encode_mask(np.eye(3))).tolist() == np.eye(3).tolist()
