"""Folders as people have them, and files that list images with their classes."""

import json
import os
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image
from test_data import labels, make_folder, make_table, png, refused

from fdconv_zoo.data import load_image_data

pytestmark = pytest.mark.usefixtures("datasets_cache")


def content(folder: object, **options) -> dict[str, str]:
    """The class of each image, by its path in the folder, over both splits."""
    data = load_image_data(str(folder), **options)
    root = folder if Path(folder).is_dir() else Path(folder).parent
    return {
        os.path.relpath(record["image"]["path"], root): data.class_names[record["label"]]
        for source in (data.train, data.validation)
        for record in source or ()
    }


def by_folder(*names: str, count: int = 2) -> dict[str, str]:
    return {f"{name}/{index:03}.png": name for name in names for index in range(count)}


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


# Class folders


def test_other_files_in_class_folders_are_left_out_and_counted(tmp_path, caplog):
    folder = make_folder(tmp_path / "photos", __background__=2, a=2, b=2)
    write(folder / "a/metadata.csv", "file_name,photographer", "000.png,ann")
    write(folder / "b/metadata.jsonl", '{"file_name": "000.png", "photographer": "bob"}')
    with zipfile.ZipFile(folder / "a/backup.zip", "w") as archive:
        archive.writestr("old/0.png", png(3))
    write(folder / "a/notes.txt", "no image")
    (folder / "a/photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "a/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "a/.hidden.png").write_bytes(b"broken")
    (folder / "a/Thumbs.db").write_bytes(b"broken")
    (folder / "stray.png").write_bytes(png(1))
    (folder / "empty").mkdir()
    assert content(folder) == by_folder("__background__", "a", "b")
    assert "left out 4 files that are not images" in caplog.text
    for name in ("backup.zip", "1 .heic", "gone.png", "a/metadata.csv", "b/metadata.jsonl", "stray.png", "empty"):
        assert name in caplog.text
    assert "hidden" not in caplog.text
    assert "Thumbs" not in caplog.text


def test_every_format_of_pillow_is_read_whatever_the_suffix(tmp_path):
    folder = make_folder(tmp_path / "photos", a=2, b=2)
    picture = Image.new("RGB", (8, 8))
    names = {"x.qoi": "QOI", "scan0001": "PNG", "y.JPG": "JPEG", "z.picture": "JPEG"}
    names |= {"w.avif": "AVIF"} if "AVIF" in Image.SAVE else {}
    for name, kind in names.items():
        picture.save(folder / "a" / name, kind)
    assert content(folder) == by_folder("a", "b") | {f"a/{name}": "a" for name in names}


def test_linked_class_folders_and_circles(tmp_path):
    make_folder(tmp_path / "real", a=2, b=2)
    folder = tmp_path / "linked"
    folder.mkdir()
    for name in "ab":
        (folder / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real/a/again").symlink_to(tmp_path / "real/a")
    assert content(folder) == by_folder("a", "b")
    (tmp_path / "splits").mkdir()
    for name in ("train", "val"):
        (tmp_path / "splits" / name).symlink_to(folder)
    assert len(load_image_data(str(tmp_path / "splits")).validation) == 4


def test_folders_inside_class_folders_belong_to_the_class(tmp_path, caplog):
    folder = make_folder(tmp_path / "photos", dog=2)
    make_folder(folder / "cat", indoors=1, outdoors=1)
    expected = by_folder("dog") | {"cat/indoors/000.png": "cat", "cat/outdoors/000.png": "cat"}
    assert content(folder) == expected
    assert "cat/indoors, cat/outdoors" in caplog.text


def test_classes_at_another_level_are_named(tmp_path):
    make_folder(tmp_path / "archive/photos", cat=2, dog=2)
    assert f"choose {tmp_path}/archive/photos" in refused(tmp_path / "archive")
    for name in ("training_set", "test_set"):
        make_folder(tmp_path / "pets" / name, cat=2, dog=2)
    assert "test_set, training_set have the names of splits" in refused(tmp_path / "pets")


def test_labels_that_differ_in_case_or_blanks(tmp_path):
    message = refused(make_folder(tmp_path / "photos", cat=2, Cat=2, dog=2))
    assert "'Cat' and 'cat'" in message
    message = refused(make_table(tmp_path / "train.parquet", ["cat", "cat ", "big  dog", "big dog"]))
    assert "'cat' and 'cat '" in message
    assert "'big  dog' and 'big dog'" in message or "'big dog' and 'big  dog'" in message
    assert "2 rows have no label, the first is row 1" in refused(
        make_table(tmp_path / "b.parquet", ["a", "", "b", " "])
    )
    letters = make_folder(tmp_path / "letters", a=2, A=2)
    assert load_image_data(str(letters)).class_names == ["A", "a"]


@pytest.mark.parametrize("named", [{}, {"train_split": "train", "validation_split": "val"}])
def test_a_test_split_without_labels_is_left_out(tmp_path, caplog, named):
    for split in ("train", "val"):
        make_folder(tmp_path / "photos" / split, a=2, b=2)
    make_folder(tmp_path / "photos", test=3)
    data = load_image_data(str(tmp_path / "photos"), **named)
    assert (len(data.train), len(data.validation)) == (4, 4)
    assert "left out test: no class folders" in caplog.text
    assert "no split 'test'" in refused(tmp_path / "photos", validation_split="test")


def test_a_part_is_held_out_if_only_the_training_split_has_labels(tmp_path):
    make_folder(tmp_path / "photos/train", a=4, b=4)
    make_folder(tmp_path / "photos", test=3)
    data = load_image_data(str(tmp_path / "photos"))
    assert (len(data.train), len(data.validation), data.split, data.train_count) == (6, 2, "train", 6)
    held_out = load_image_data(str(tmp_path / "photos"), split="held out")
    assert held_out.train is None
    assert held_out.validation[:] == data.validation[:]


def test_a_class_named_like_a_split_is_told(tmp_path, caplog):
    assert content(make_folder(tmp_path / "vehicles", bus=2, train=2)) == by_folder("bus", "train")
    assert "the folders train are read as classes" in caplog.text


def test_a_list_of_images_decides_about_folders_that_are_hardly_classes(tmp_path):
    folder = make_folder(tmp_path / "set", train_images=2, test_images=2)
    write(folder / "train.csv", "image_id,breed", "000,pug", "001,boxer")
    data = load_image_data(str(folder), split="validation")
    assert data.class_names == ["boxer", "pug"]
    assert {Path(record["image"]["path"]).parent.name for record in data.validation} == {"train_images"}
    vehicles = make_folder(tmp_path / "vehicles", bus=2, train=2)
    write(vehicles / "classes.csv", "class,name", "0,bus", "1,train")
    write(vehicles / "metadata.csv", "file_name,photographer", *(f"{name},ann" for name in by_folder("bus", "train")))
    assert content(vehicles) == by_folder("bus", "train")


def test_names_that_are_not_utf8(tmp_path):
    folder = make_folder(tmp_path / "photos", a=2, b=2)
    Path(os.fsdecode(os.fsencode(folder / "a") + b"/caf\xe9.png")).write_bytes(png(1))
    assert "caf\\udce9.png" in refused(folder)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/no/such/place")
    assert "cannot be written to /proc/no/such/place" in refused(make_folder(tmp_path / "photos", a=2, b=2))


# Files that list images


def flat(folder: Path, count: int = 4) -> Path:
    """Images without class folders."""
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(png(index))
    return folder


CLASSES = {"0.png": "cat", "1.png": "dog", "2.png": "cat", "3.png": "dog"}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_of_a_flat_folder(tmp_path, caplog, name):
    folder = flat(tmp_path / "photos", 5)
    rows = [{"file_name": file, "label": label, "size": [1, 2]} for file, label in CLASSES.items()]
    if name.endswith("csv"):
        write(folder / name, "file_name,label", *(",".join(pair) for pair in CLASSES.items()))
    elif name.endswith("jsonl"):
        write(folder / name, *map(json.dumps, rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(folder / name)
    assert content(folder) == CLASSES
    assert f"left out 1 files that {name} does not list (1 .png): 4.png" in caplog.text


def test_metadata_of_splits(tmp_path):
    for split in ("train", "test"):
        write(flat(tmp_path / "a" / split) / "metadata.csv", "file_name,label", *map(",".join, CLASSES.items()))
        flat(tmp_path / "b" / split)
    rows = [f"{split}/{file},{label}" for split in ("train", "test") for file, label in CLASSES.items()]
    write(tmp_path / "b/metadata.csv", "file_name,label", *rows)
    rows = [
        f"{file},{label},{'val' if file == '3.png' or file == '2.png' else 'train'}" for file, label in CLASSES.items()
    ]
    write(flat(tmp_path / "c") / "metadata.csv", "file_name,label,split", *rows)
    expected = {f"{split}/{file}": label for split in ("train", "test") for file, label in CLASSES.items()}
    assert content(tmp_path / "a") == content(tmp_path / "b") == expected
    data = load_image_data(str(tmp_path / "c"))
    assert [Path(record["image"]["path"]).name for record in data.validation] == ["2.png", "3.png"]


def test_class_folders_beside_metadata(tmp_path, caplog):
    folder = make_folder(tmp_path / "photos", a=2, b=2)
    names = list(by_folder("a", "b"))
    write(folder / "metadata.csv", "file_name,photographer", *(f"{name},p{i % 2}" for i, name in enumerate(names)))
    assert content(folder) == by_folder("a", "b")
    assert "metadata.csv: not read" in caplog.text
    assert content(folder, label_column="photographer") == {name: f"p{i % 2}" for i, name in enumerate(names)}
    write(folder / "metadata.csv", "file_name,label", *(f"{name},{i % 2}" for i, name in enumerate(names)))
    assert content(folder) == {name: str(i % 2) for i, name in enumerate(names)}
    write(folder / "metadata.csv", "class,description", "a,first", "b,second")
    assert content(folder) == by_folder("a", "b")
    assert "none of its columns (class, description) names images" in caplog.text


@pytest.mark.parametrize(
    "lines",
    [
        ["file_name,label", "0.png,cat", "images/1.png,dog", "./images\\2.png,cat", "images/3,dog"],
        ["label;id", "cat;0", "dog;1", "cat;2", "dog;3"],
        ["\ufeffid\tbreed", "0\tcat", "1\tdog", "2\tcat", "3\tdog"],
        ["images/0.png,cat", "images/1.png,dog", "images/2.png,cat", "images/3.png,dog"],
    ],
)
def test_csv_of_names_and_labels(tmp_path, lines):
    flat(tmp_path / "set/images")
    file = write(tmp_path / "set/labels.csv", *lines)
    expected = {f"images/{name}": label for name, label in CLASSES.items()}
    assert content(file) == content(file.parent) == expected


def test_csv_for_each_split(tmp_path, caplog):
    for split, shift in (("train", 0), ("test", 10)):
        for file in flat(tmp_path / "set" / split).iterdir():
            file.rename(file.with_stem(str(int(file.stem) + shift)))
    write(tmp_path / "set/train.csv", "id,label", "0,cat", "1,dog", "2,cat", "3,dog")
    write(tmp_path / "set/test.csv", "id", "10", "11")
    write(tmp_path / "set/sample_submission.csv", "id,label", "10,cat")
    assert content(tmp_path / "set") == {f"train/{name}": label for name, label in CLASSES.items()}
    assert "left out test, which have no label" in caplog.text


def test_labels_of_listings_are_kept_as_written(tmp_path):
    folder = flat(tmp_path / "photos")
    options = {"split": "validation"}
    write(folder / "labels.csv", "file_name,label", "0.png,NA", "1.png,None", "2.png,007", "3.png,nan")
    assert load_image_data(str(folder), **options).class_names == ["007", "NA", "None", "nan"]
    write(folder / "labels.csv", "file_name,label", "0.png,10", "1.png,9", "2.png,10", "3.png,9")
    assert load_image_data(str(folder), **options).class_names == ["9", "10"]


def test_a_listing_is_streamed(tmp_path):
    folder = flat(tmp_path / "photos")
    rows = [f"{name},{label},{split}" for split in ("train", "val") for name, label in CLASSES.items()]
    write(folder / "labels.csv", "file_name,label,split", *rows)
    data = load_image_data(str(folder), streaming=True)
    assert sorted(labels(data.train)) == [0, 0, 1, 1]
    assert labels(data.validation) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file_name,label", "0.png,cat", "0.png,dog", "1.png,dog"], "1 images have several labels"),
        (["file_name,label", "0.png,cat", "1.png,", "2.png,dog"], "1 rows have no label"),
        (["file_name,label", "0.png,cat", "1.png,dog", "2.png,dog", "9.png,cat"], "9.png: "),
        (["file_name,label", "0.png,cat", ",dog"], "a row names no image"),
        (["file_name,label", "0.png,cat", "../../secret.png,dog"], "is not below"),
        (["file_name,label", "0.png,cat", "/dev/zero,dog"], "is not below"),
        (["file_name,x,y", "0.png,1,2", "1.png,2,1"], "x, y"),
        (["number,label", "17,cat", "18,dog"], "none of its columns (number, label)"),
        (["file_name,label"], "has no rows"),
        ([], "cannot be read as a table"),
    ],
)
def test_bad_listings(tmp_path, lines, words):
    folder = flat(tmp_path / "photos")
    message = refused(write(folder / "metadata.csv", *lines).parent)
    assert words in message


def test_a_listing_in_another_encoding(tmp_path):
    folder = flat(tmp_path / "photos")
    (folder / "labels.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n", encoding="utf-16")
    assert "Save it as CSV in UTF-8" in refused(folder)


def test_devices_are_not_read(tmp_path):
    folder = flat(tmp_path / "photos")
    file = write(folder / "labels.csv", "file_name,label", "0.png,cat", "1.png,dog", "2.png,dog", "/dev/zero,cat")
    message = refused(file)
    assert "/dev/zero: not a file" in message
    assert "1 images cannot be read" in message
