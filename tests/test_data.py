"""Loading and checking of a user's images."""

import logging
import os
from io import BytesIO
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from fdconv_zoo.data import SAMPLE, StreamedImageDataset, load_image_data, open_image
from fdconv_zoo.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_folder(folder: Path, **classes: int) -> Path:
    """Make one sub-folder per class, with `count` images each."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index:03}.png").write_bytes(png(index))
    return folder


def make_table(path: Path, labels: list, feature: object = None, **columns: list) -> Path:
    """Write a parquet file with a column `picture` of images, a column `kind` of labels and `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(index), "path": None} for index in range(len(labels))]
    table = datasets.Dataset.from_dict({"picture": pictures, "kind": labels, **columns})
    table = table.cast_column("picture", datasets.Image())
    if feature is not None:
        table = table.cast_column("kind", feature)
    table.to_parquet(path)
    return path


def labels(source) -> list[int]:
    return [record["label"] for record in source]


# Loading


def test_train_and_validation_folders(tmp_path):
    make_folder(tmp_path / "photos/train", cat=3, dog=2)
    make_folder(tmp_path / "photos/val", cat=1, dog=1)
    data = load_image_data(str(tmp_path / "photos"))
    assert data.class_names == ["cat", "dog"]
    assert sorted(labels(data.train)) == [0, 0, 0, 1, 1]
    assert sorted(labels(data.validation)) == [0, 1]
    record = data.train[0]
    assert set(record) == {"image", "label"}
    assert set(record["image"]) == {"bytes", "path"}
    assert open_image(record["image"]).size == (8, 8)


def test_validation_is_preferred_over_test(tmp_path):
    for split, count in (("train", 3), ("test", 2), ("valid", 1)):
        make_folder(tmp_path / "photos" / split, cat=count, dog=count)
    folder = str(tmp_path / "photos")
    assert len(load_image_data(folder).validation) == 2
    assert len(load_image_data(folder, validation_split="test").validation) == 4


def test_class_folders_alone_are_split_by_class_and_seed(tmp_path):
    folder = str(make_folder(tmp_path / "my [best] photos", cat=20, dog=40, owl=2))
    data = load_image_data(folder, validation_fraction=0.25)
    assert np.bincount(labels(data.validation)).tolist() == [5, 10, 1]
    assert np.bincount(labels(data.train)).tolist() == [15, 30, 1]

    def paths(source) -> set[str]:
        return {record["image"]["path"] for record in source}

    assert not paths(data.train) & paths(data.validation)
    assert paths(load_image_data(folder, validation_fraction=0.25).validation) == paths(data.validation)
    assert paths(load_image_data(folder, validation_fraction=0.25, seed=1).validation) != paths(data.validation)


def test_classes_named_like_splits(tmp_path):
    folder = make_folder(tmp_path / "vehicles", bus=4, car=4, train=4)
    (folder / "car" / "test 1.png").write_bytes(png(1))
    data = load_image_data(str(folder))
    assert data.class_names == ["bus", "car", "train"]
    assert len(data.train) + len(data.validation) == 13


@pytest.mark.parametrize("given", ["", "train.parquet", "*.parquet"])
def test_parquet_files(tmp_path, given):
    make_table(tmp_path / "tables/train.parquet", ["dog", "cat"] * 5)
    make_table(tmp_path / "tables/validation-00000-of-00001.parquet", ["dog", "cat", "dog"])
    data = load_image_data(str(tmp_path / "tables" / given))
    assert data.class_names == ["cat", "dog"]
    if given == "train.parquet":
        assert np.bincount(labels(data.validation)).tolist() == [1, 1]
    else:
        assert labels(data.train)[:2] == [1, 0]
        assert labels(data.validation) == [1, 0, 1]


def test_arrow_files_of_a_saved_dataset(tmp_path):
    table = datasets.load_dataset("parquet", data_files=str(make_table(tmp_path / "a.parquet", [3, 7] * 4)))["train"]
    datasets.DatasetDict(train=table, test=table.select([0, 1])).save_to_disk(tmp_path / "saved")
    data = load_image_data(str(tmp_path / "saved"))
    assert data.class_names == ["3", "7"]
    assert labels(data.validation) == [0, 1]


def test_classes_have_the_same_indices_in_all_splits(tmp_path):
    make_table(tmp_path / "tables/train.parquet", [30, 4, 5])
    make_table(tmp_path / "tables/validation.parquet", [30, 5])
    data = load_image_data(str(tmp_path / "tables"))
    assert data.class_names == ["4", "5", "30"]
    assert labels(data.train) == [2, 0, 1]
    assert labels(data.validation) == [2, 1]
    assert labels(load_image_data(str(tmp_path / "tables"), split="validation").validation) == [2, 1]


def test_validation_alone(tmp_path):
    folder = make_folder(tmp_path / "photos", cat=3, dog=2)
    data = load_image_data(str(folder), split="validation")
    assert data.train is None
    assert len(data.validation) == 5
    make_folder(tmp_path / "both/train", cat=3, dog=2)
    (tmp_path / "both/train/cat/000.png").write_bytes(b"broken")
    make_folder(tmp_path / "both/test", cat=1)
    assert len(load_image_data(str(tmp_path / "both"), split="validation").validation) == 1


def test_limit(tmp_path):
    folder = str(make_folder(tmp_path / "photos", cat=20, dog=20))
    data = load_image_data(folder, limit=3)
    assert (len(data.train), len(data.validation)) == (3, 3)
    assert data.train[:] == load_image_data(folder, limit=3).train[:]
    assert data.train[:] != load_image_data(folder, limit=3, seed=1).train[:]


def test_streaming(tmp_path):
    make_folder(tmp_path / "photos/train", cat=5, dog=5)
    make_folder(tmp_path / "photos/val", cat=1, dog=1)
    data = load_image_data(str(tmp_path / "photos"), streaming=True)
    assert data.class_names == ["cat", "dog"]
    assert sorted(labels(data.train)) == [0] * 5 + [1] * 5
    assert labels(data.train) != labels(data.validation)
    shapes = [image.shape for image, _ in StreamedImageDataset(data.train, np.asarray)]
    assert shapes == [(8, 8, 3)] * 10
    other = load_image_data(str(tmp_path / "photos"), streaming=True, seed=1)
    assert [record["image"]["path"] for record in other.train] != [record["image"]["path"] for record in data.train]
    few = load_image_data(str(tmp_path / "photos"), streaming=True, limit=1)
    assert (len(labels(few.train)), len(labels(few.validation))) == (1, 1)
    alone = load_image_data(str(tmp_path / "photos"), streaming=True, split="validation")
    assert alone.train is None
    assert labels(alone.validation) == [0, 1]


# Errors


def refused(dataset: object, **options) -> str:
    with pytest.raises(DataError) as error:
        load_image_data(str(dataset), **options)
    return str(error.value)


def test_missing_path(tmp_path):
    for name in (tmp_path / "nothing", "./nothing", "nothing.parquet"):
        assert "no such file or folder" in refused(name)
    assert "no file matches" in refused(tmp_path / "*.parquet")


@pytest.mark.parametrize("name", ["somebody/photos", "photos", "somebody/photos:small"])
def test_unreachable_hub_dataset(monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refused(name)
    assert name in message
    assert "local folder" in message


def test_hub_name_and_configuration_reach_datasets(monkeypatch):
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: calls.append((args, options)) or {})
    with pytest.raises(DataError):
        load_image_data("somebody/photos:small")
    assert calls == [(("somebody/photos",), {"name": "small", "streaming": False})]


def test_no_images(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(tmp_path / "empty")
    (tmp_path / "text/cat").mkdir(parents=True)
    (tmp_path / "text/cat/notes.txt").write_text("no image")
    assert "no images" in refused(tmp_path / "text")
    make_folder(tmp_path / "flat", train=2, val=2)  # images right in the split folders
    assert "its images are not in class folders" in refused(tmp_path / "flat")
    make_folder(tmp_path, heap=2)
    assert "its images are not in class folders" in refused(tmp_path / "heap")
    assert "no validation images" in refused(make_folder(tmp_path / "single", cat=1, dog=1))
    make_table(tmp_path / "tables/train.parquet", [0, 1])
    make_table(tmp_path / "tables/validation.parquet", [])
    assert "not empty" in refused(tmp_path / "tables")


def test_one_class(tmp_path):
    assert "one class (cat)" in refused(make_folder(tmp_path / "photos", cat=4))
    make_table(tmp_path / "train.parquet", [1, 1, 1], datasets.ClassLabel(names=["cat", "dog"]))
    assert "one class (dog)" in refused(tmp_path / "train.parquet")
    make_folder(tmp_path / "split/train", cat=2)
    make_folder(tmp_path / "split/val", cat=2)
    assert "one class (cat)" in refused(tmp_path / "split", streaming=True)


def test_validation_classes_without_training_images(tmp_path):
    make_folder(tmp_path / "photos/train", cat=2, dog=2)
    make_folder(tmp_path / "photos/val", cat=1, owl=1, yak=1)
    assert "owl, yak" in refused(tmp_path / "photos")


def test_training_classes_missing_from_validation_are_logged(tmp_path, caplog):
    make_folder(tmp_path / "photos/train", cat=2, dog=2)
    make_folder(tmp_path / "photos/val", cat=1)
    load_image_data(str(tmp_path / "photos"))
    assert [record.levelno for record in caplog.records if "classes dog" in record.message] == [logging.WARNING]


def test_unknown_and_ambiguous_splits(tmp_path):
    make_folder(tmp_path / "photos/train", cat=2, dog=2)
    make_folder(tmp_path / "photos/val", cat=1, dog=2)
    folder = tmp_path / "photos"
    for flag in ("train_split", "validation_split"):
        message = refused(folder, **{flag: "holdout"})
        assert "'holdout'" in message
        assert "train, val" in message
    assert "cannot be used for both" in refused(folder, train_split="train", validation_split="train")

    make_table(tmp_path / "tables/train.parquet", [0, 1])
    make_table(tmp_path / "tables/others.parquet", [0, 1])
    assert "others.parquet" in refused(tmp_path / "tables")
    make_folder(tmp_path / "checks/val", cat=1, dog=1)
    make_folder(tmp_path / "checks/test", cat=1, dog=1)
    assert "--train-split" in refused(tmp_path / "checks")


def test_columns(tmp_path):
    path = make_table(tmp_path / "train.parquet", ["cat", "dog"] * 3, caption=["a", "b"] * 3, score=[0.5] * 6)
    assert "kind, caption" in refused(path)
    assert load_image_data(str(path), label_column="caption").class_names == ["a", "b"]
    assert "picture, kind, caption, score" in refused(path, label_column="breed")
    assert "not one class" in refused(path, label_column="score")
    assert "not images" in refused(path, image_column="kind", label_column="caption")
    path = make_table(tmp_path / "usual.parquet", [0, 1] * 3, label=["cat", "dog"] * 3)
    assert load_image_data(str(path)).class_names == ["cat", "dog"]
    path = make_table(tmp_path / "named.parquet", [0, 1] * 3, datasets.ClassLabel(names=["no", "yes"]), id=["x"] * 6)
    assert load_image_data(str(path)).class_names == ["no", "yes"]


def test_missing_and_ambiguous_columns(tmp_path):
    pictures = [{"bytes": png(0), "path": None}] * 2
    tables = {
        "bare": {"image": pictures},
        "text": {"label": [0, 1]},
        "double": {"left": pictures, "right": pictures, "label": [0, 1]},
    }
    for name, columns in tables.items():
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{name}.parquet")
    assert "No label column" in refused(tmp_path / "bare.parquet")
    assert "No image column" in refused(tmp_path / "text.parquet")
    message = refused(tmp_path / "double.parquet")
    assert "left, right" in message
    assert "--image-column" in message


def test_files_that_number_their_classes_differently(tmp_path):
    make_table(tmp_path / "tables/train.parquet", [0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    make_table(tmp_path / "tables/test.parquet", [0, 1], datasets.ClassLabel(names=["dog", "cat"]))
    assert "different class names" in refused(tmp_path / "tables")


def test_tables_that_cannot_be_read(tmp_path):
    path = make_table(tmp_path / "train.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    assert "train.parquet" in refused(path)
    (tmp_path / "notes.txt").write_text("no table")
    assert "must be all parquet or all arrow" in refused(tmp_path / "notes.txt")


def test_labels_missing_or_out_of_range(tmp_path):
    path = make_table(tmp_path / "train.parquet", ["cat", None, "dog", None])
    message = refused(path)
    assert "2 rows" in message
    assert "row 1" in message
    make_table(tmp_path / "hidden.parquet", [0, 1, -1, -1], datasets.ClassLabel(names=["cat", "dog"]))
    message = refused(tmp_path / "hidden.parquet")
    assert "-1 in row 2" in message
    assert "0 to 1" in message


def test_unusable_streams(tmp_path):
    assert "hold out" in refused(make_folder(tmp_path / "photos", cat=2, dog=2), streaming=True)
    make_table(tmp_path / "tables/train.parquet", ["cat", "dog"])
    make_table(tmp_path / "tables/test.parquet", ["cat", "dog"])
    assert "ClassLabel" in refused(tmp_path / "tables", streaming=True)


# Bad images


@pytest.fixture
def damaged(tmp_path) -> Path:
    """1010 images of which twelve cannot be read: eleven are not images, one is truncated."""
    folder = make_folder(tmp_path / "photos", cat=505, dog=505)
    for index in range(11):
        (folder / "cat" / f"{index:03}.png").write_text("not an image")
    (folder / "dog" / "000.png").write_bytes(png(0)[:-25])
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_named_and_counted(damaged, num_workers, monkeypatch):
    monkeypatch.setattr("fdconv_zoo.data.checks._IMAGES_PER_PROCESS", 400)
    message = refused(damaged, num_workers=num_workers)
    assert "12 images cannot be read" in message
    assert message.count(str(damaged)) == 10
    assert "and 2 more" in message
    assert "--skip-bad-images" in message


def test_bad_images_are_skipped_and_counted(damaged, caplog):
    data = load_image_data(str(damaged), skip_bad_images=True)
    assert data.skipped == 12
    assert len(data.train) + len(data.validation) == 1010 - 12
    assert "12 images" in caplog.text
    bad = {str(damaged / "cat/000.png"), str(damaged / "dog/000.png")}
    assert not bad & {record["image"]["path"] for source in (data.train, data.validation) for record in source}


def test_repaired_and_damaged_files_are_checked_again(tmp_path):
    folder = make_folder(tmp_path / "photos", cat=2, dog=2)
    image = folder / "cat/000.png"
    image.write_bytes(b"broken")
    assert "000.png" in refused(folder)
    image.write_bytes(png(9))
    os.utime(image, (1, 1))
    assert len(load_image_data(str(folder)).train) == 2
    image.write_bytes(b"broken")
    assert "000.png" in refused(folder)


def test_bad_images_in_tables_are_named_by_row(tmp_path):
    pictures = [{"bytes": png(index), "path": None} for index in range(20)]
    pictures[13] = {"bytes": b"broken", "path": None}
    pictures[17] = None
    table = datasets.Dataset.from_dict({"image": pictures, "label": ["cat", "dog"] * 10})
    table.to_parquet(tmp_path / "train.parquet")
    message = refused(tmp_path / "train.parquet")
    assert "row 13 of split 'train': not an image" in message
    assert "row 17 of split 'train': the record is empty" in message


def test_all_images_are_bad(tmp_path):
    folder = make_folder(tmp_path / "photos", cat=2, dog=2)
    for image in folder.glob("*/*"):
        image.write_bytes(b"broken")
    assert "no readable images" in refused(folder, skip_bad_images=True)


def test_a_second_run_does_not_check_again(tmp_path, datasets_cache):
    folder = make_folder(tmp_path / "photos", cat=5, dog=5)
    load_image_data(str(folder))
    stored = sorted(datasets_cache.rglob("*.arrow"))
    load_image_data(str(folder))
    assert stored
    assert sorted(datasets_cache.rglob("*.arrow")) == stored


def test_the_sample_is_loaded_like_other_data(datasets_cache):
    data = load_image_data(SAMPLE, limit=20)
    assert len(data.class_names) == 10
    assert data.class_names[9] == "Ankle boot"
    assert open_image(data.train[0]["image"], "L").size == (28, 28)
    assert any(datasets_cache.iterdir())
