"""The demo data for dense prediction: images, files and cache."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from run_scripts import load_script

from fdconv_zoo.dense.canvases import cache, canvases_folder, write, write_canvases
from fdconv_zoo.dense.canvases.compose import MIN_VISIBLE, Pose, bilinear, compose, cut_out
from fdconv_zoo.dense.canvases.garments import Garments, garment_mask, load_garments
from fdconv_zoo.dense.canvases.textures import band_noise, grating, plaid
from fdconv_zoo.errors import DataError, WriteError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

SPLITS = ("train", "validation")
COUNTS = {"train": 24, "validation": 6}

# SHA-256 of the decoded pixels of the first three canvases of each split and their class masks.
PIXELS = "ded28749093423a48a35786d72e6bd62c65c3a12e8e8912aef584906af743d99"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "canvases"
    write_canvases(path, **COUNTS)
    return path


@pytest.fixture(scope="module")
def garments() -> Garments:
    return load_garments("train")


@pytest.fixture(scope="module")
def canvases(garments):
    return [compose(garments, np.random.default_rng((1, number)), 128) for number in range(120)]


def coco_of(folder: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(folder / "annotations" / f"instances_{split}.json")


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# Files


@pytest.mark.parametrize("split", SPLITS)
def test_coco_annotations_agree_with_class_masks(folder, split):
    coco = coco_of(folder, split)
    assert sorted(coco.getCatIds()) == list(range(1, 11))
    for image_id, image in coco.imgs.items():
        assert pixels_of(folder / "images" / split / image["file_name"]).shape == (128, 128, 3)
        classes = pixels_of(folder / "masks" / split / image["file_name"])
        assert (image["width"], image["height"]) == classes.shape
        covered, times = np.zeros_like(classes), np.zeros_like(classes)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert annotation["area"] == len(rows)
            assert annotation["iscrowd"] == 0
            assert isinstance(annotation["segmentation"]["counts"], str)
            covered += annotation["category_id"] * mask
            times += mask
        assert times.max(initial=0) <= 1, "two objects are visible at one pixel"
        assert np.array_equal(covered, classes)
    assert 0 not in coco.anns, "pycocotools treats the annotation id 0 as no match"


@pytest.mark.parametrize("split", SPLITS)
def test_all_files_are_listed(folder, split):
    numbers = {f"{number:06}.png" for number in range(COUNTS[split])}
    images = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())["images"]
    assert {image["file_name"] for image in images} == numbers
    for kind in ("images", "masks"):
        assert set(os.listdir(folder / kind / split)) == numbers


def test_classes_are_named_in_the_order_of_their_indices(folder):
    names = (folder / "classes.txt").read_text().splitlines()
    assert names[0] == "background"
    for split in SPLITS:
        assert {number: category["name"] for number, category in coco_of(folder, split).cats.items()} == dict(
            enumerate(names[1:], start=1)
        )
    assert names[8] == "Sneaker"


def test_licence_and_origin_are_included(folder):
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    assert "24 for training, 6 for validation, 128x128 pixels, seed 0" in (folder / "README.txt").read_text()


def test_pixels_are_fixed(folder):
    digest = hashlib.sha256()
    for split in SPLITS:
        for number in range(3):
            for kind in ("images", "masks"):
                digest.update(pixels_of(folder / kind / split / f"{number:06}.png").tobytes())
    assert digest.hexdigest() == PIXELS, "if this is intended, increase the version of the cache"


def test_a_small_set_is_the_start_of_a_large_one_and_seeds_differ(folder, tmp_path):
    write_canvases(tmp_path / "small", train=2, validation=1)
    write_canvases(tmp_path / "other", train=2, validation=1, seed=1)
    for number in range(2):
        name = f"images/train/{number:06}.png"
        assert np.array_equal(pixels_of(tmp_path / "small" / name), pixels_of(folder / name))
        assert not np.array_equal(pixels_of(tmp_path / "other" / name), pixels_of(folder / name))


@pytest.mark.parametrize("size", [32, 64])
def test_small_canvases(tmp_path, size):
    write_canvases(tmp_path / "small", train=8, validation=4, size=size)
    assert pixels_of(tmp_path / "small/images/train/000007.png").shape == (size, size, 3)
    assert coco_of(tmp_path / "small", "train").anns


# Images


def test_number_of_objects(canvases):
    objects = [len(canvas.categories) for canvas in canvases]
    assert objects.count(0) >= 1
    assert 3 < np.mean(objects) < 5.5
    assert max(objects) == 8


def test_classes_are_balanced(canvases):
    share = np.bincount(np.concatenate([canvas.classes.ravel() for canvas in canvases]), minlength=11)
    share = share / share.sum()
    assert 0.75 < share[0] < 0.9
    assert share[1:].min() > 0.006
    assert share[1:].max() < 4 * share[1:].min()


def test_every_object_is_visible(canvases):
    for canvas in canvases:
        seen = np.bincount(canvas.instances.ravel(), minlength=len(canvas.categories) + 1)[1:]
        assert len(seen) == len(canvas.categories)
        assert np.all(seen >= 10)


def test_objects_occlude_each_other_but_never_almost_completely(garments, monkeypatch):
    # A canvas draws garments in order: record what each of them covers when it is cut out.
    from fdconv_zoo.dense.canvases import compose as module

    drawn = []

    def recording(*arguments):
        window, gray, alpha = cut_out(*arguments)
        whole = np.zeros((128, 128), bool)
        whole[window] = alpha >= 0.5
        drawn.append(whole)
        return window, gray, alpha

    monkeypatch.setattr(module, "cut_out", recording)
    hidden = []
    for number in range(60):
        drawn.clear()
        canvas = compose(garments, np.random.default_rng((2, number)), 128)
        # Skip garments that were not placed: each object is the next one that covers its visible pixels.
        candidates = iter(drawn)
        for instance in range(1, len(canvas.categories) + 1):
            seen = canvas.instances == instance
            whole = next(mask for mask in candidates if not np.any(seen & ~mask))
            above = canvas.instances > instance
            assert np.array_equal(seen, whole & ~above), "occluded by something that is not above it"
            assert seen.sum() >= MIN_VISIBLE * whole.sum()
            hidden.append(1 - seen.sum() / whole.sum())
    assert np.mean(np.array(hidden) > 0.2) > 0.1


def test_masks_agree_with_the_image(garments, monkeypatch):
    # White garments on black, without light and noise: the image is the opacity.
    from fdconv_zoo.dense.canvases import compose as module

    monkeypatch.setattr(module, "dye", lambda rng, gray, around: np.ones((*gray.shape, 3)))
    monkeypatch.setattr(module, "background", lambda rng, size: np.zeros((size, size, 3)))
    monkeypatch.setattr(module, "expose", lambda rng, image: image)
    for number in range(20):
        canvas = compose(garments, np.random.default_rng((3, number)), 128)
        opacity = canvas.image[..., 0]
        assert np.all(opacity[canvas.instances > 0] >= 0.5)
        # Outside there are only edges, of one garment or of two adjacent ones.
        assert np.all(opacity[canvas.instances == 0] < 0.5 + 0.25)


def test_a_garment_is_at_its_pose():
    pixels = np.zeros((28, 28))
    pixels[:14, :14] = 1.0  # a square in the upper left corner: light above, dim below
    pixels[7:14, :14] = 0.25
    mask = pixels > 0
    for pose, rows, columns in (
        (Pose(64, 64, 56, 0.0, False), (36, 64), (36, 64)),
        (Pose(64, 64, 56, 0.0, True), (36, 64), (64, 92)),
        (Pose(64, 64, 56, np.pi / 2, False), (36, 64), (64, 92)),
        (Pose(20, 64, 56, 0.0, False), (0, 20), (36, 64)),
    ):
        window, gray, alpha = cut_out(pixels, mask, pose, 128)
        canvas = np.zeros((128, 128))
        canvas[window] = alpha
        found = np.nonzero(canvas >= 0.5)
        assert (found[0].min(), found[0].max() + 1) == rows
        assert (found[1].min(), found[1].max() + 1) == columns
        assert np.allclose(gray[alpha > 0.5].max(), 1)
        assert gray[alpha > 0.5].min() >= 0.25 - 1e-9, "the black around the garment shows at its edge"
        assert np.mean((alpha > 0) & (alpha < 1)) < 0.025, "the edge is wider than a pixel"


def test_bilinear_agrees_with_scipy():
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(0)
    planes = rng.random((2, 9, 11))
    positions = rng.uniform(-3, 13, (2, 50, 60))
    expected = [map_coordinates(plane, positions, order=1, mode="grid-constant") for plane in planes]
    np.testing.assert_allclose(bilinear(planes, *positions), expected, atol=1e-12)


@pytest.mark.parametrize("kind", [band_noise, grating, plaid])
@pytest.mark.parametrize("frequency", [1 / 64, 1 / 16, 0.1, 0.25, 0.4])
def test_textures_have_the_requested_frequency(kind, frequency):
    image = kind(np.random.default_rng(5), 128, frequency)
    assert abs(image.std() - 1) < 0.3
    window = np.hanning(128)
    power = np.abs(np.fft.fft2(image * window[:, None] * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    inside = (radius > frequency / 1.5 - 2 / 128) & (radius < frequency * 1.5 + 2 / 128)
    assert power[inside].sum() > 0.95 * power.sum()


def test_garment_masks_have_no_holes_and_no_specks():
    image = np.zeros((28, 28), np.uint8)
    image[5:20, 5:20] = 9
    image[10:12, 10:12] = 0  # black cloth
    image[25, 25] = 255  # a speck
    expected = np.zeros((28, 28), bool)
    expected[5:20, 5:20] = True
    assert np.array_equal(garment_mask(image), expected)


def test_splits_share_no_garment(garments):
    files = {split: {record["bytes"] for record in load_garments(split).records} for split in SPLITS}
    assert len(files["validation"]) == 1000
    assert not files["train"] & files["validation"]
    assert np.bincount(garments.labels).tolist() == [350] * 10


def test_canvases_have_garments_of_their_own_split(tmp_path, monkeypatch):
    def one_class(split):
        found, label = load_garments(split), {"train": 1, "validation": 9}[split]
        chosen = np.flatnonzero(found.labels == label)
        return Garments([found.records[index] for index in chosen], found.labels[chosen], found.class_names)

    monkeypatch.setattr(write, "load_garments", one_class)
    write_canvases(tmp_path / "made", train=4, validation=4, size=32)
    for split, category in (("train", 2), ("validation", 10)):
        found = coco_of(tmp_path / "made", split).anns.values()
        assert {annotation["category_id"] for annotation in found} == {category}


# Errors and cache


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train is 0"),
        ({"validation": -1}, "validation"),
        ({"size": 16}, "at least 32"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_arguments_are_named(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        write_canvases(tmp_path / "made", **wrong)
    assert os.listdir(tmp_path) == []


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"not an empty folder\. Remove it"):
        write_canvases(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt exists"):
        write_canvases(tmp_path / "notes.txt")


def test_a_failure_leaves_no_files(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(WriteError, match="no space left"):
        write_canvases(tmp_path / "made", train=1, validation=1)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for a small dataset; every creation appends a line to `made`."""

    def write(folder: Path) -> None:
        with (tmp_path / "made").open("a") as stream:
            stream.write("once\n")
        write_canvases(folder, train=2, validation=1, size=32)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "write_canvases", write)
    return tmp_path


def test_the_cache_is_filled_once(small_cache, caplog, monkeypatch):
    folder = canvases_folder()
    monkeypatch.delattr(cache, "FileLock")  # an existing cache needs no lock, and may be read-only
    assert folder == small_cache / "cache/fdconv_zoo/canvases-v1"
    assert str(folder) in caplog.text
    assert canvases_folder() == folder
    assert (small_cache / "made").read_text() == "once\n"
    assert len(coco_of(folder, "train").imgs) == 2


def test_the_cache_is_in_the_home_folder_by_default(small_cache, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(small_cache / "home"))
    assert canvases_folder() == small_cache / "home/.cache/fdconv_zoo/canvases-v1"


def test_concurrent_processes_create_it_once(small_cache):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=canvases_folder) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (small_cache / "made").read_text() == "once\n"
    assert set(os.listdir(small_cache / "cache/fdconv_zoo")) <= {"canvases-v1", "canvases-v1.lock"}


def test_leftovers_of_a_crash_are_replaced(small_cache):
    left = small_cache / "cache/fdconv_zoo/.writing-canvases-v1/images"
    left.mkdir(parents=True)
    assert (canvases_folder() / "classes.txt").is_file()
    assert not left.exists()


def test_an_unwritable_cache_is_named(small_cache):
    (small_cache / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"could not write .*canvases-v1.*Set XDG_CACHE_HOME"):
        canvases_folder()


def test_script(tmp_path, capsys):
    arguments = ["--train", "2", "--validation", "1", "--size", "32", "--seed", "3"]
    load_script("make_canvases").main(["--output", str(tmp_path / "made"), *arguments])
    assert "2 canvases for training, 1 for validation" in capsys.readouterr().out
    assert "32x32 pixels, seed 3" in (tmp_path / "made/README.txt").read_text()
