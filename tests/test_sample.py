"""The packaged sample of Fashion-MNIST."""

import importlib.util
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

FOLDER = files("fdconv_zoo") / "sample"
SCRIPT = Path(__file__).parents[1] / "scripts" / "make_sample.py"


@pytest.fixture(scope="module")
def make_sample():
    spec = importlib.util.spec_from_file_location("make_sample", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pixels(make_sample) -> dict[str, np.ndarray]:
    return {split: np.stack([make_sample.decode(image) for image in columns(split)[0]]) for split in make_sample.SPLITS}


def columns(split: str) -> tuple[list[bytes], np.ndarray]:
    table = pq.read_table(FOLDER / f"{split}.parquet")
    return table.column("image").combine_chunks().field("bytes").to_pylist(), table.column("label").to_numpy()


def test_counts_balance_and_size():
    assert np.bincount(columns("train")[1]).tolist() == [350] * 10
    assert np.bincount(columns("validation")[1]).tolist() == [100] * 10
    assert sum(path.stat().st_size for path in Path(str(FOLDER)).rglob("*")) <= 2_000_000


def test_licence_and_origin_are_beside_it():
    assert "Copyright (c) 2017 Zalando SE" in (FOLDER / "LICENSE").read_text()
    assert "python scripts/make_sample.py" in (FOLDER / "README.md").read_text()


def test_no_image_is_in_both_splits(pixels):
    unique = {split: {image.tobytes() for image in images} for split, images in pixels.items()}
    assert len(unique["validation"]) == 1000
    assert not unique["train"] & unique["validation"]


def test_pixels_are_the_originals(make_sample, pixels):
    if not make_sample.SOURCE.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    for split, (part, per_class) in make_sample.SPLITS.items():
        images, labels = make_sample.read_source(part)
        indices = make_sample.choose(labels, per_class)
        assert np.array_equal(pixels[split], images[indices])
        assert np.array_equal(columns(split)[1], labels[indices])
