"""What tables may name, and what is said if not the images but their surroundings are at fault."""

import io
import os

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fdconv_zoo.data import DataError, load_image_data, open_image

FEATURES = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["ant", "bee"]))
pytestmark = pytest.mark.usefixtures("datasets_cache")


def encoded_image():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def tables(tmp_path):
    """A function that writes two parquet files, and a file's name in place of an image into the first."""

    def write(name):
        embedded = {"bytes": encoded_image(), "path": None}
        for split, last in (("train", {"bytes": None, "path": str(name)}), ("validation", embedded)):
            rows = {"image": [embedded, embedded, embedded, last], "label": [0, 1, 0, 1]}
            (tmp_path / "tables").mkdir(exist_ok=True)
            table = datasets.Dataset.from_dict(rows, features=FEATURES).data.table
            pq.write_table(table, tmp_path / "tables" / f"{split}.parquet")
        return tmp_path / "tables"

    return write


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_cannot_name_files_of_the_machine(tables, tmp_path, streaming):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded_image())
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/link.png").symlink_to(secret)
    for name in (
        secret,
        "/dev/zero",
        f"file://{secret}",
        f"zip://a.png::file://{secret}.zip",
        tmp_path / "tables/../secret.png",
        tmp_path / "tables/link.png",
        tmp_path / "tables",
    ):
        folder = tables(name)
        with pytest.raises(DataError, match="names 1 files outside its folder instead of holding images"):
            list(load_image_data(str(folder), streaming=streaming).train)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_can_name_files_that_came_with_it(tables, tmp_path, streaming):
    own = tmp_path / "tables/images/1.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(encoded_image())
    data = load_image_data(str(tables(own)), streaming=streaming)
    assert [open_image(row["image"]).size for row in data.train] == [(8, 8)] * 4


def test_a_cache_that_cannot_be_written_is_named_and_not_the_images(tables, tmp_path, monkeypatch):
    own = tmp_path / "tables/1.png"
    folder = tables(own)
    own.write_bytes(encoded_image())
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    with pytest.raises(DataError, match=r"The cache .*file/cache of .* cannot be written to .*HF_HOME"):
        load_image_data(str(folder))


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    for number in range(8):
        path = tmp_path / "images" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image())
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.png"))
    with pytest.raises(DataError, match=r"caf\\udce9\.png.*not valid UTF-8.* Rename this"):
        load_image_data(str(tmp_path / "images"))
