"""`scripts/make_solar_cells.py` on a package of the same layout with images of one pixel."""

import io
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_scripts import load_script

from fdconv_zoo.data import load_image_data
from fdconv_zoo.errors import DataError

PROBABILITIES = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (number // 256, number % 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def script():
    return load_script("make_solar_cells")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a package of 2,624 cells; every fourth has the same probability."""
    site = tmp_path_factory.mktemp("site")
    images = site / "elpv_dataset" / "data" / "images"
    images.mkdir(parents=True)
    (site / "elpv_dataset" / "__init__.py").touch()
    rows = []
    for number in range(1, 2625):
        (images / f"cell{number:04d}.png").write_bytes(png(number))
        rows.append(f"images/cell{number:04d}.png  {PROBABILITIES[number % 4]}  {'mono' if number <= 60 else 'poly'}\n")
    (images.parent / "labels.csv").write_text("".join(rows))
    return site


@pytest.fixture(scope="module")
def written(script, site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cells"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        script.main(["--output", str(folder)])
    return folder


def numbers(folder, split: str) -> list[int]:
    encoded = pq.read_table(folder / f"{split}.parquet").column("image").combine_chunks().field("bytes").to_pylist()
    pixels = [Image.open(io.BytesIO(image)).getpixel((0, 0)) for image in encoded]
    return [256 * high + low for high, low, _ in pixels]


def test_every_cell_is_in_one_split(written):
    splits = {split: numbers(written, split) for split in ("train", "validation", "test")}
    assert sorted(number for cells in splits.values() for number in cells) == list(range(1, 2625))
    assert {split: len(cells) for split, cells in splits.items()} == {"train": 1556, "validation": 540, "test": 528}


def test_modules_are_not_divided(written, script):
    assert {*range(1, 61)} <= set(numbers(written, "test"))
    for split, modules in script.SPLITS.items():
        for first, last in modules:
            assert last - first + 1 in (48, 60)
            assert {*range(first, last + 1)} <= set(numbers(written, split))


def test_the_class_is_the_likelier_one(written):
    for split in ("train", "test"):
        labels = pq.read_table(written / f"{split}.parquet").column("label").to_pylist()
        assert labels == [int(number % 4 >= 2) for number in numbers(written, split)]


def test_training_reads_it(written):
    data = load_image_data(str(written))
    assert data.class_names == ["functional", "defective"]
    assert (data.train.num_rows, data.validation.num_rows) == (1556, 540)


def test_the_licence_is_beside_it(written):
    assert "CC BY-NC-SA 4.0" in (written / "README.txt").read_text()


def test_errors_name_the_remedy(script, written, site, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="pip install --no-deps elpv-dataset"):
        script.main(["--output", str(tmp_path / "cells")])
    monkeypatch.syspath_prepend(site)
    with pytest.raises(DataError, match=re.escape(f"{written} exists")):
        script.main(["--output", str(written)])
    labels = tmp_path / "labels.csv"
    labels.write_text("images/cell0001.png 1.0 mono\n")
    with pytest.raises(DataError, match="1 cells, and the split is for 2,624"):
        script.read_labels(tmp_path)
