"""Loading, checks and augmentation of images with masks."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from fdconv_zoo.dense.segmentation import sources
from fdconv_zoo.dense.segmentation.augment import RandomScale, VariedCrop, training_transform
from fdconv_zoo.dense.segmentation.classes import IGNORE, cityscapes_classes
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset, SegmentationDataset
from fdconv_zoo.dense.segmentation.loading import load_segmentation_data
from fdconv_zoo.dense.segmentation.mask_file import open_mask
from fdconv_zoo.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def mask_of(*values: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    """Return a mask with these values in its first pixels, and the last value elsewhere."""
    mask = np.full(shape, values[-1], np.uint8)
    mask.flat[: len(values)] = values
    return mask


def write(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image = image if mode is None else image.convert(mode)
    image.save(path, **options)
    return path


def picture(shape: tuple[int, int] = (6, 8), value: int = 90) -> np.ndarray:
    return np.full((*shape, 3), value, np.uint8)


def make_pairs(folder: Path, **splits: list[np.ndarray]) -> Path:
    """Write images/<split> and masks/<split> with these masks, and an image of the same size for each."""
    for split, masks in splits.items():
        for index, mask in enumerate(masks):
            write(folder / "images" / split / f"{index:03}.jpg", picture(mask.shape))
            write(folder / "masks" / split / f"{index:03}.png", mask)
    return folder


def good_pairs(folder: Path) -> Path:
    return make_pairs(folder, train=[mask_of(0, 1), mask_of(1, 2)], validation=[mask_of(0, 2)])


def values(pairs) -> list[set[int]]:
    """Return the class indices in each mask."""
    return [set(np.unique(mask).tolist()) for _, mask in pairs]


# Loading


def test_folder_of_pairs(tmp_path):
    folder = good_pairs(tmp_path / "my [own] set")
    (folder / "masks/train/.DS_Store").write_bytes(b"")
    (folder / "images/train/notes.txt").write_text("")
    data = load_segmentation_data(str(folder))
    assert data.class_names == ["class 0", "class 1", "class 2"]
    assert (len(data.train), len(data.validation)) == (2, 1)
    image, mask = data.train[1]
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, mask_of(1, 2))
    assert data.train.describe(1, "mask") == str(folder.resolve() / "masks/train/001.png")


def test_splits_above_images_and_masks(tmp_path):
    for split, last in (("training", 3), ("val", 2), ("test", 1)):
        write(tmp_path / split / "images/deep/a.webp", picture())
        write(tmp_path / split / "masks/deep/a.png", mask_of(0, last))
    data = load_segmentation_data(str(tmp_path))
    assert values(data.train) == [{0, 3}]
    assert values(data.validation) == [{0, 2}]
    assert values(load_segmentation_data(str(tmp_path), validation_split="test").validation) == [{0, 1}]


def test_class_names(tmp_path):
    folder = good_pairs(tmp_path)
    (folder / "classes.txt").write_text("ground\ntree\nhouse\n")
    assert load_segmentation_data(str(folder)).class_names == ["ground", "tree", "house"]
    other = tmp_path / "other.txt"
    other.write_text("\ufeffa\r\nb\r\nc\r\nd\r\n\r\n", encoding="utf-8")
    assert load_segmentation_data(str(folder), class_names_file=other).class_names == ["a", "b", "c", "d"]


def evaluated(folder: Path, names: str, **options) -> tuple[list[str], list[set[int]]]:
    """Class names and indices of the validation masks for a model with these classes."""
    data = load_segmentation_data(str(folder), trained=("runs/mine", names.split()), split="validation", **options)
    return data.class_names, values(data.validation)


def test_classes_of_a_model_are_found_by_name(tmp_path):
    folder = good_pairs(tmp_path)
    (folder / "classes.txt").write_text("ground\ntree\nhouse\n")
    assert evaluated(folder, "ground tree house") == (["ground", "tree", "house"], [{0, 2}])
    assert evaluated(folder, "tree house ground") == (["tree", "house", "ground"], [{1, 2}])
    assert evaluated(folder, "sky ground tree house") == (["sky", "ground", "tree", "house"], [{1, 3}])
    for names, words in (
        ("tree house sky", "runs/mine was trained on 3 classes, but .* does not know 'ground'"),
        ("Ground tree house", "'ground' is 'Ground' in the model"),
        ("ground tree", "does not know 'house'"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluated(folder, names)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert evaluated(folder, "c b a", class_names_file=tmp_path / "names.txt")[1] == [{2, 0}]
    with pytest.raises(ConfigError, match="does not know 'a', 'b', 'c'"):
        evaluated(folder, "ground tree house", class_names_file=tmp_path / "names.txt")


def test_classes_of_a_model_in_a_dataset_without_names(tmp_path, caplog):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1, 2, 3)], validation=[mask_of(0, 1, 3)])
    assert evaluated(folder, "p q r", ignore_index=1) == (["p", "q", "r"], [{0, 2, IGNORE}])
    assert "its mask values are read as the classes of runs/mine" in caplog.text
    named_by_value = load_segmentation_data(str(folder), ignore_index=0).class_names
    trained = ("runs/mine", named_by_value)
    data = load_segmentation_data(str(folder), trained=trained, split="validation", ignore_index=0)
    assert values(data.validation) == [{IGNORE, 0, 2}]
    with pytest.raises(DataError, match=r"000.png: 0\n"):  # the ignored value forgotten: no class moves
        load_segmentation_data(str(folder), trained=trained, split="validation")
    with pytest.raises(DataError, match="ignored value 2 is a class of runs/mine"):
        load_segmentation_data(str(folder), trained=trained, split="validation", ignore_index=2)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    assert load_segmentation_data(str(folder), trained=trained, split="validation", ignore_index=0).class_names == [
        "class 1", "class 2", "class 3"
    ]  # fmt: skip
    assert "classes are matched by their order" in caplog.text


def test_one_split_is_divided_by_the_seed(tmp_path):
    for index in range(20):
        write(tmp_path / f"images/{index}.png", picture())
        write(tmp_path / f"masks/{index}.png", mask_of(0, 1, index + 1))

    def parts(**options) -> tuple[set[int], set[int]]:
        data = load_segmentation_data(str(tmp_path), validation_fraction=0.25, **options)
        assert len(data.class_names) == 21
        return tuple({int(mask.max()) for _, mask in part} for part in (data.train, data.validation))

    train, validation = parts()
    assert (len(train), len(validation)) == (15, 5)
    assert train | validation == set(range(1, 21))
    assert parts() == (train, validation)
    assert parts(seed=1)[1] != validation
    held_out = load_segmentation_data(str(tmp_path), validation_fraction=0.25, split="held out")
    assert (held_out.train, held_out.split, held_out.train_count) == (None, "train", 15)
    assert {int(mask.max()) for _, mask in held_out.validation} == validation
    data = load_segmentation_data(str(tmp_path), split="validation", limit=3)
    assert data.train is None
    assert len(data.validation) == 3


def test_limit_only_checks_the_selected_images(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)] * 8, validation=[mask_of(0, 1)] * 3)
    data = load_segmentation_data(str(folder), limit=2)
    assert (len(data.train), len(data.validation)) == (2, 2)
    for index in set(range(8)) - set(data.train.rows.tolist()):
        (folder / f"masks/train/{index:03}.png").write_bytes(b"broken")
    np.testing.assert_array_equal(load_segmentation_data(str(folder), limit=2).train.rows, data.train.rows)


def test_the_ignored_value(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1, 2, 3, 255)], validation=[mask_of(0, 1, 255)])
    data = load_segmentation_data(str(folder))
    assert (data.class_names, values(data.train)) == (["class 0", "class 1", "class 2", "class 3"], [{0, 1, 2, 3, 255}])

    folder = make_pairs(tmp_path / "other", train=[mask_of(0, 1, 2, 3)], validation=[mask_of(0, 1)])
    data = load_segmentation_data(str(folder), ignore_index=1)
    assert data.class_names == ["class 0", "class 2", "class 3"]
    np.testing.assert_array_equal(data.train[0][1].flat[:4], [0, IGNORE, 1, 2])
    (folder / "classes.txt").write_text("a\nb\nc\nd")
    assert load_segmentation_data(str(folder), ignore_index=1).class_names == ["a", "c", "d"]


def test_palette_and_bilevel_masks(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)], validation=[mask_of(0, 1)])
    palette = Image.fromarray(mask_of(0, 3, 7))
    palette.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
    assert palette.mode == "P"
    palette.save(folder / "masks/train/000.png", transparency=0)
    write(folder / "masks/validation/000.png", mask_of(0, 1) * 255, "1")
    data = load_segmentation_data(str(folder))
    np.testing.assert_array_equal(data.train[0][1], mask_of(0, 3, 7))
    np.testing.assert_array_equal(data.validation[0][1], mask_of(0, 1))
    assert data.pixels["train"].tolist() == [[1, 0, 0, 1, 0, 0, 0, 46]]
    assert data.pixels["validation"].tolist() == [[1, 47, 0, 0, 0, 0, 0, 0]]


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """Encode a grayscale PNG of less than 8 bits, which Pillow does not write."""
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(len(values), -1), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


STORED = np.arange(48, dtype=np.uint8).reshape(6, 8)
FEW_BITS = {
    "a PNG of 1 bit": (STORED % 2, lambda values: gray_png(values, 1)),
    "a PNG of 2 bits": (STORED % 4, lambda values: gray_png(values, 2)),
    "a PNG of 4 bits": (STORED % 16, lambda values: gray_png(values, 4)),
    "a binary PGM of 21 levels": (STORED % 21, lambda values: b"P5 8 6 20\n" + values.tobytes()),
    "a PGM of 151 levels in text": (
        STORED * 3,
        lambda values: b"P2 8 6 150\n" + " ".join(map(str, values.flat)).encode(),
    ),
}


@pytest.mark.parametrize(("values", "encode"), FEW_BITS.values(), ids=FEW_BITS)
def test_masks_hold_the_stored_numbers_not_grey_levels(values, encode):
    np.testing.assert_array_equal(open_mask({"bytes": encode(values)}), values)


def tiff_of_4_bits(white: int) -> bytes:
    """A TIFF of 2x1 pixels, 0 and 3; `white` is the tag that says whether 0 is black (1) or white (0)."""
    tags = {256: 2, 257: 1, 258: 4, 259: 1, 262: white, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 12) + b"\x03\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_tiff_masks_of_4_bits():
    assert open_mask({"bytes": tiff_of_4_bits(white=1)}).tolist() == [[0, 3]]
    with pytest.raises(ValueError, match="0 is white"):
        open_mask({"bytes": tiff_of_4_bits(white=0)})


LOSSY = {
    "TIFF with JPEG": ("tif", {"compression": "jpeg"}, "a TIFF file with jpeg compression"),
    "JPEG 2000": ("jp2", {"quality_mode": "rates", "quality_layers": [60], "irreversible": True}, "a JPEG2000 file"),
}


@pytest.mark.parametrize(("suffix", "options", "message"), LOSSY.values(), ids=LOSSY)
def test_lossy_masks_are_refused(tmp_path, suffix, options, message):
    folder = good_pairs(tmp_path)
    (folder / "masks/train/000.png").unlink()
    write(folder / f"masks/train/000.{suffix}", np.kron(STORED, np.ones((4, 4), np.uint8)), **options)
    with pytest.raises(DataError, match=f"1 masks cannot be used:\n.*000.{suffix}: ({message}), whose compression may"):
        load_segmentation_data(str(folder))


def test_lossless_compression_in_tiff(tmp_path):
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        file = write(tmp_path / "mask.tif", STORED, compression=compression)
        np.testing.assert_array_equal(open_mask({"path": str(file)}), STORED)


def test_grayscale_images_become_rgb(tmp_path):
    folder = good_pairs(tmp_path)
    write(folder / "images/train/000.jpg", picture(value=120), "L")
    image = load_segmentation_data(str(folder)).train[0][0]
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (120, 120, 120)


def make_ade20k(folder: Path) -> Path:
    for split, masks in (("training", [mask_of(0, 1, 150), mask_of(2, 13)]), ("validation", [mask_of(1, 2)])):
        for index, mask in enumerate(masks):
            write(folder / f"images/{split}/ADE_{split}_{index:08}.jpg", picture())
            write(folder / f"annotations/{split}/ADE_{split}_{index:08}.png", mask)
    return folder


def test_ade20k(tmp_path):
    folder = make_ade20k(tmp_path / "ADEChallengeData2016")
    rows = [f"{n}{' ' * (n % 2)}\t0.1\t9\t9\t0\tname {n}, synonym {n}   " for n in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("\r\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows, ""]))
    data = load_segmentation_data(str(folder))
    assert data.class_names == [f"name {n}" for n in range(1, 151)]
    assert values(data.train) == [{IGNORE, 0, 149}, {1, 12}]
    assert values(data.validation) == [{0, 1}]
    (tmp_path / "names.txt").write_text("x\ny")
    with pytest.raises(DataError, match="Got 2 class names, but this dataset has 150"):
        load_segmentation_data(str(folder), class_names_file=tmp_path / "names.txt")
    with pytest.raises(DataError, match="--ignore-index"):
        load_segmentation_data(str(folder), ignore_index=0)
    write(folder / "annotations/training/ADE_training_00000000.png", mask_of(0, 151))
    with pytest.raises(
        DataError, match=r"00000000.png: 151\nValid values are 0 to 150, 255, of which 0, 255 are ignored"
    ):
        load_segmentation_data(str(folder))


def test_ade20k_without_its_table(tmp_path, caplog):
    folder = make_ade20k(tmp_path)
    assert load_segmentation_data(str(folder)).class_names[::149] == ["class 1", "class 150"]
    assert "objectInfo150.txt is missing" in caplog.text
    (folder / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DataError, match=r"objectInfo150.txt: not the table of 150"):
        load_segmentation_data(str(folder))


def make_cityscapes(folder: Path, ids: list[int], ending: str = "labelIds") -> Path:
    for split, city in (("train", "aachen"), ("val", "lindau"), ("test", "bonn")):
        name = f"{city}/{city}_000000_000019"
        write(folder / f"leftImg8bit/{split}/{name}_leftImg8bit.png", picture())
        mask = np.zeros((6, 8), np.uint8) if split == "test" else mask_of(*ids)
        write(folder / f"gtFine/{split}/{name}_gtFine_{ending}.png", mask)
        write(folder / f"gtFine/{split}/{name}_gtFine_instanceIds.png", mask.astype(np.uint16))
    return folder


# The evaluated classes in the order of their training ids, as the benchmark publishes them.
CITYSCAPES_NAMES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_cityscapes(tmp_path):
    folder = make_cityscapes(tmp_path, list(range(34)))
    data = load_segmentation_data(str(folder))
    assert ", ".join(data.class_names) == CITYSCAPES_NAMES
    expected = [CITYSCAPES_IDS.index(value) if value in CITYSCAPES_IDS else IGNORE for value in range(34)]
    assert data.validation[0][1].flat[:34].tolist() == expected
    with pytest.raises(DataError, match=r"Split 'test': no pixel of its 1 masks"):
        load_segmentation_data(str(folder), validation_split="test")


def test_cityscapes_with_training_ids(tmp_path):
    make_cityscapes(tmp_path, list(range(34)))
    trained = make_cityscapes(tmp_path, [*range(19), 255], "labelTrainIds")
    data = load_segmentation_data(str(trained))
    assert data.validation[0][1].flat[:20].tolist() == [*range(19), IGNORE]
    next(trained.glob("gtFine/train/*/*_labelTrainIds.png")).unlink()  # then the published ids are used for all
    data = load_segmentation_data(str(trained))
    assert data.validation[0][1].flat[:9].tolist() == [IGNORE] * 7 + [0, 1]


def test_cityscapes_ids_agree_with_its_training_ids():
    for number, value in enumerate(CITYSCAPES_IDS):
        assert cityscapes_classes(train_ids=False).lookup[value] == cityscapes_classes(train_ids=True).lookup[number]


def encoded(pixels: np.ndarray, **options) -> dict:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return {"bytes": buffer.getvalue(), "path": None}


def make_table(path: Path, masks: list[np.ndarray], image: str, mask: str, **more: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {image: [encoded(picture(item.shape)) for item in masks], mask: [encoded(item) for item in masks], **more}
    table = datasets.Dataset.from_dict(columns)
    for name in (image, mask, *more):
        table = table.cast_column(name, datasets.Image())
    table.to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("image", "annotation", {}),
        ("pixel_values", "label", {}),
        ("label", "segments", {"image_column": "label"}),
        ("mask", "image", {"image_column": "mask", "mask_column": "image"}),
        ("image", "painted", {}),
        ("photo", "painted", {"mask_column": "painted"}),
    ],
)
def test_columns_of_tables(tmp_path, image, mask, options):
    make_table(tmp_path / "train.parquet", [mask_of(0, 4), mask_of(1, 2)], image, mask)
    make_table(tmp_path / "validation.parquet", [mask_of(3)], image, mask)
    data = load_segmentation_data(str(tmp_path), **options)
    assert values(data.train) == [{0, 4}, {1, 2}]
    assert values(data.validation) == [{3}]
    assert data.train.describe(1, "mask") == "mask of row 1 of split 'train'"
    assert np.asarray(data.train[0][0]).tolist() == picture().tolist()


def test_ambiguous_and_missing_columns(tmp_path):
    empty = [encoded(picture())] * 2
    path = make_table(tmp_path / "a.parquet", [mask_of(0, 4), mask_of(1, 2)], "image", "depth", normals=empty)
    with pytest.raises(DataError, match=r"Several columns could be the mask: depth, normals.*--mask-column"):
        load_segmentation_data(str(path))
    with pytest.raises(DataError, match=r"'image_id' does not hold masks. Image columns: image, depth, normals"):
        load_segmentation_data(str(path), mask_column="image_id")
    lone = make_table(tmp_path / "b.parquet", [mask_of(0, 4)], "image", "depth")
    datasets.Dataset.from_parquet(str(lone)).remove_columns("depth").to_parquet(lone)
    with pytest.raises(DataError, match=r"No mask column found. The columns are image"):
        load_segmentation_data(str(lone))


def test_arrow_files_of_a_saved_dataset(tmp_path):
    table = datasets.Dataset.from_parquet(str(make_table(tmp_path / "a.parquet", [mask_of(0, 1)] * 4, "image", "mask")))
    datasets.DatasetDict(train=table, test=table.select([0, 1])).save_to_disk(tmp_path / "saved")
    data = load_segmentation_data(str(tmp_path / "saved"))
    assert (len(data.train), len(data.validation)) == (4, 2)


# Errors


def refused(folder: Path, *words: str, **options) -> str:
    """Return the message of the error, which must contain all these words."""
    with pytest.raises(DataError) as caught:
        load_segmentation_data(str(folder), **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message


def test_files_without_a_partner(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)] * 13, validation=[mask_of(0, 1)])
    for index in range(12):
        (folder / f"masks/train/{index:03}.png").rename(folder / f"masks/train/x{index:03}.png")
    message = refused(folder, "12 images without a mask", "12 masks without an image", "train/x009.png", "and 2 more")
    assert "x010.png" not in message
    refused(
        make_pairs(tmp_path / "none", validation=[mask_of(0, 1)]), "no images for validation"
    )  # all of it is used for training
    (tmp_path / "none/images/train").mkdir()
    (tmp_path / "none/masks/train").mkdir()
    refused(tmp_path / "none", "images/train: no images found")


def test_masks_that_differ_only_in_suffix(tmp_path):
    folder = good_pairs(tmp_path)
    write(folder / "masks/train/000.tif", mask_of(0, 1))
    refused(folder, "000.png and ", "000.tif differ only in their suffix")


def test_a_broken_link_has_no_partner(tmp_path):
    folder = good_pairs(tmp_path)
    (folder / "masks/train/000.png").unlink()
    (folder / "masks/train/000.png").symlink_to(tmp_path / "gone.png")
    refused(folder, "1 images without a mask", "images/train/000.jpg")


def test_splits_without_masks(tmp_path, caplog):
    folder = good_pairs(tmp_path)
    write(folder / "images/test/0.jpg", picture())
    assert len(load_segmentation_data(str(folder)).validation) == 1
    assert "['test']" in caplog.text
    refused(folder, "There is no split 'test'", validation_split="test")


def test_masks_of_another_size(tmp_path):
    folder = good_pairs(tmp_path)
    write(folder / "masks/train/001.png", mask_of(0, 1, shape=(8, 6)))
    refused(folder, "1 masks differ in size", "masks/train/001.png: 6x8, but the image is 8x6", "nearest neighbour")


@pytest.mark.parametrize(
    ("part", "suffix", "keep"),
    [
        *(("image", suffix, keep) for suffix in ("jpg", "png", "bmp") for keep in (0, 0.5, -6)),
        ("image", "png", -12),  # all except the last chunk, which is empty
        *(("mask", suffix, keep) for suffix in ("png", "bmp") for keep in (0, 0.5)),
    ],
)
def test_truncated_files(tmp_path, part, suffix, keep):
    folder = good_pairs(tmp_path)
    target = folder / f"{part}s/train/001.{suffix}"
    for file in (folder / f"{part}s/train").glob("001.*"):
        file.unlink()
    noise = np.random.default_rng(0).integers(0, 3, (6, 8, 3)[: 3 if part == "image" else 2], np.uint8)
    write(target, noise)
    load_segmentation_data(str(folder))
    whole = target.read_bytes()
    target.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(folder, "001." + suffix, "1 images cannot be read" if part == "image" else "1 masks cannot be used")


def test_a_flipped_bit_in_a_png_is_found_without_decoding(tmp_path):
    folder = good_pairs(tmp_path)
    (folder / "images/train/000.jpg").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    file = write(folder / "images/train/000.png", noise)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    refused(folder, "images/train/000.png")


def test_masks_of_unsupported_formats(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)] * 5, validation=[mask_of(0, 1)])
    write(folder / "masks/train/000.png", picture())
    write(folder / "masks/train/001.png", mask_of(0, 1).astype(np.uint16))
    (folder / "masks/train/002.png").unlink()
    write(folder / "masks/train/002.jpg", mask_of(0, 1))
    write(folder / "masks/train/003.png", mask_of(0, 1), "LA")
    (folder / "masks/train/004.png").write_text("no image")
    message = refused(folder, "5 masks cannot be used", "000.png: mode RGB", "001.png: mode I;16", "class indices")
    assert "002.jpg: a JPEG file, whose compression" in message
    assert "003.png: mode LA" in message
    assert "004.png: not an image format" in message


def test_all_kinds_of_bad_files_are_named_at_once(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)] * 3, validation=[mask_of(0, 1)] * 2)
    (folder / "images/validation/000.jpg").write_bytes(b"")
    (folder / "masks/validation/000.png").write_bytes(b"")
    write(folder / "masks/train/002.png", mask_of(0, 1, shape=(3, 3)))
    refused(folder, "1 images cannot be read", "validation/000.jpg", "1 masks cannot be used", "validation/000.png")
    refused(folder, "train/002.png: 3x3")


def test_values_outside_the_classes(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1), mask_of(0, 3, 4, 9, 200)], validation=[mask_of(0, 1)])
    (folder / "classes.txt").write_text("a\nb\nc")
    message = refused(
        folder, "1 masks have values that are not a class", "train/001.png: 3 to 4, 9, 200", "Valid values are 0 to 2"
    )
    assert "255 are ignored" in message
    refused(folder, "3 to 4, 9", ignore_index=200)


def test_too_many_classes(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 255)], validation=[mask_of(0, 255)])
    refused(folder, "255 classes", ignore_index=0)
    refused(folder, "between 0 and 255", ignore_index=-1)


def test_one_class_only(tmp_path):
    folder = make_pairs(tmp_path, train=[mask_of(0, 255)] * 2, validation=[mask_of(0, 1)])
    refused(folder, "one class (class 0)", "--ignore-index")


def test_masks_without_labelled_pixels(tmp_path, caplog):
    folder = make_pairs(tmp_path, train=[mask_of(0, 1), mask_of(2), mask_of(2)], validation=[mask_of(1, 2)])
    data = load_segmentation_data(str(folder), ignore_index=2)
    assert values(data.train) == [{0, 1}, {IGNORE}, {IGNORE}]
    assert "2 masks have no labelled pixel" in caplog.text
    assert "masks/train/002.png" in caplog.text
    write(folder / "masks/validation/000.png", mask_of(2))
    refused(folder, "Split 'validation': no pixel of its 1 masks", "(2) are all ignored", ignore_index=2)


def test_classes_that_never_occur_in_training_are_logged(tmp_path, caplog):
    folder = make_pairs(tmp_path, train=[mask_of(0, 2)], validation=[mask_of(0, 1)])
    (folder / "classes.txt").write_text("sky\nsea\nland\nice")
    load_segmentation_data(str(folder))
    assert "2 of 4 classes have no training pixels: sea, ice." in caplog.text
    caplog.clear()
    load_segmentation_data(str(folder), split="validation")
    assert "no training pixels" not in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\n\nb", "without a class name"),
        ("", "without a class name"),
        ("a\nb\na", "more than once: a"),
        (None, "path"),
    ],
)
def test_bad_class_names(tmp_path, content, words):
    folder = good_pairs(tmp_path / "set")
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    refused(folder, words, class_names_file=tmp_path / "names.txt")


def test_folders_of_other_files(tmp_path):
    write(tmp_path / "cats/1.jpg", picture())
    refused(tmp_path, "images/train and masks/train")
    write(tmp_path / "annotations/train/1.png", mask_of(0, 1))  # ADE20K calls it "training"
    write(tmp_path / "images/train/1.jpg", picture())
    refused(tmp_path, "images/train and masks/train")
    refused(tmp_path / "nowhere", "no such file or folder")
    refused(good_pairs(tmp_path / "set"), "--mask-column", mask_column="mask")


def rotated_image(path: Path, shape: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(path, picture(shape), exif=exif)


def test_a_mask_of_an_image_that_exif_rotates(tmp_path, caplog):
    folder = good_pairs(tmp_path)
    rotated_image(folder / "images/train/000.jpg", (6, 8), 6)
    refused(folder, "000.png: 8x6, but the image is 6x8 (it fits the image before its EXIF tag rotates it upright)")
    write(folder / "masks/train/000.png", mask_of(0, 1, shape=(8, 6)))
    image, mask = load_segmentation_data(str(folder)).train[0]
    assert image.size[::-1] == mask.shape == (8, 6)
    assert "EXIF" not in caplog.text
    rotated_image(
        folder / "images/train/001.jpg", (6, 8), 3
    )  # upside down: the size does not tell how the mask was drawn
    load_segmentation_data(str(folder))
    assert "1 images are rotated upright by an EXIF tag" in caplog.text
    assert "train/001.jpg" in caplog.text


def test_a_png_that_exif_rotates(tmp_path):
    folder = good_pairs(tmp_path)
    (folder / "images/train/000.jpg").unlink()
    rotated_image(folder / "images/train/000.png", (6, 8), 6)
    refused(folder, "000.png: 8x6, but the image is 6x8")
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="8"/>')
    write(folder / "images/train/000.png", picture(), pnginfo=xmp)
    refused(folder, "000.png: 8x6, but the image is 6x8")


def test_checks_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    folder = good_pairs(tmp_path)
    load_segmentation_data(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr("fdconv_zoo.dense.segmentation.findings.open_mask", None)  # reading a mask would fail
        load_segmentation_data(str(folder))
    before = (folder / "masks/train/001.png").stat()
    write(folder / "masks/train/001.png", mask_of(1, 7))
    assert (folder / "masks/train/001.png").stat().st_size == before.st_size  # only its time differs
    assert len(load_segmentation_data(str(folder)).class_names) == 8


def test_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("fdconv_zoo.dense.segmentation.findings._PAIRS_PER_PROCESS", 2)
    folder = make_pairs(tmp_path, train=[mask_of(0, 1)] * 7 + [mask_of(1, 5)], validation=[mask_of(0, 1)])
    write(folder / "masks/train/003.png", picture())
    refused(folder, "masks/train/003.png", num_workers=2)
    write(folder / "masks/train/003.png", mask_of(0, 1))
    assert len(load_segmentation_data(str(folder), num_workers=2).class_names) == 6


def test_a_file_that_disappears_after_the_checks(tmp_path):
    folder = good_pairs(tmp_path)
    data = load_segmentation_data(str(folder))
    (folder / "masks/train/000.png").unlink()
    with pytest.raises(DataError, match=r"images/train/000.jpg or its mask cannot be read"):
        data.train[0]


# Augmentation


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """Return a mask of large patches of 4 classes."""
    coarse = np.random.default_rng(seed).integers(0, 4, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)[:height, :width]


def aligned_pair(height: int = 70, width: int = 90, seed: int = 0) -> tuple[Image.Image, np.ndarray]:
    """Return a mask, and an image whose red and green channels are 60 times the mask."""
    mask = blobs(height, width, seed)
    return Image.fromarray(np.stack([mask * 60, mask * 60, np.zeros_like(mask)], axis=-1)), mask


def plain_transform(crop_size, **options):
    """Return a transform that keeps pixels in 0..1."""
    return training_transform(crop_size, mean=(0, 0, 0), std=(1, 1, 1), photometric=False, max_class_share=1, **options)


@pytest.mark.parametrize("options", [{}, {"short_side": 50}, {"vflip": 0.5, "rotate": 30}], ids=str)
def test_image_and_mask_stay_aligned(options):
    dataset = SegmentationDataset([aligned_pair(seed=s) for s in range(12)], plain_transform(64, **options))
    padded = shares = 0
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for image, mask in dataset:
            assert image.shape == (3, 64, 64)
            assert image.dtype == torch.float32
            assert mask.shape == (64, 64)
            assert mask.dtype == torch.int64
            ignored = mask == IGNORE
            padded += int(ignored.any())
            assert "rotate" in options or (image[:, ignored] == 0).all()  # turned edges are smooth
            seen = (image[0] * 255 / 60).round()
            # At the edges of patches, the image interpolates between classes. Their interiors must agree exactly.
            inner = interior(mask) & ~ignored
            assert (seen[inner] == mask[inner]).all()
            shares += float((seen[~ignored] == mask[~ignored]).float().mean())
    assert 0 < padded < 36
    assert shares / 36 > 0.9


def interior(mask: torch.Tensor, margin: int = 2) -> torch.Tensor:
    """Return where all surrounding pixels are inside the crop and of the same class."""
    size = 2 * margin + 1
    pad = torch.nn.functional.pad(mask[None, None].float(), [margin] * 4, value=-1)  # unknown outside the crop
    high = torch.nn.functional.max_pool2d(pad, size, 1)
    return (high == -torch.nn.functional.max_pool2d(-pad, size, 1))[0, 0]


def test_the_mask_is_not_shifted_by_half_a_pixel():
    """The mean error over many scales; a mask resized with torch's "nearest" mode fails this."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (20, 1))
    image = tv_tensors.Image(torch.from_numpy(ramp.copy())[None].repeat(3, 1, 1))
    offsets = []
    for _ in range(40):
        scaled, mask = RandomScale((0.3, 0.9))(image, tv_tensors.Mask(torch.from_numpy(ramp)))
        assert scaled.shape[-2:] == mask.shape
        offsets.append((scaled[0].float() - mask.float())[:, 10:-10].mean())
    assert abs(float(torch.stack(offsets).mean())) < 0.1


def test_the_scale_is_drawn_from_its_range():
    image, mask = tv_tensors.Image(torch.zeros(3, 100, 200, dtype=torch.uint8)), tv_tensors.Mask(torch.zeros(100, 200))
    for short_side, low, high in ((None, 50, 200), (40, 20, 80)):
        sides = []
        for _ in range(200):
            scaled, _ = RandomScale((0.5, 2.0), short_side)(image, mask)
            assert scaled.shape[-1] in range(2 * scaled.shape[-2] - 1, 2 * scaled.shape[-2] + 2)
            sides.append(scaled.shape[-2])
        assert low <= min(sides) < low * 1.2
        assert high * 0.9 < max(sides) <= high
        assert abs(np.mean(sides) - (low + high) / 2) < 0.1 * high


def test_padding_is_the_mean_colour_and_ignored():
    pair = Image.new("RGB", (20, 10), "white"), np.ones((10, 20), np.uint8)
    transform = training_transform(32, mean=MEAN, std=STD, scale=(1, 1), photometric=False)
    tops = set()
    dataset = SegmentationDataset([pair] * 20, transform)
    for image, mask in dataset:
        ignored = mask == IGNORE
        assert int(ignored.sum()) == 32 * 32 - 200
        assert (mask[~ignored] == 1).all()
        assert image[:, ignored].abs().max() < 0.5 / 255 / min(STD) + 1e-6  # the mean, to 8 bits
        white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(image[:, ~ignored], white[:, None].expand(3, 200))
        tops.add(int(torch.nonzero(~ignored)[0, 0]))
    assert len(tops) > 3  # at random sides


def test_flips_happen_half_of_the_time():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 0] = 1
    pair = Image.fromarray(np.stack([mask * 255] * 3, axis=-1)), mask
    dataset = SegmentationDataset([pair] * 100, plain_transform(8, scale=(1, 1)))
    flipped = 0
    for image, mask in dataset:
        assert (image[0] == mask).all()
        flipped += int(mask[0, 7])
    assert 30 < flipped < 70


def test_vertical_flips_and_rotations():
    _, mask = aligned_pair(40, 40)
    image = Image.fromarray(np.stack([mask] * 3, -1))
    transform = plain_transform(40, scale=(1, 1), hflip=0, vflip=1)
    _, flipped = SegmentationDataset([(image, mask)], transform)[0]
    assert np.array_equal(flipped, mask[::-1])
    transform = plain_transform(40, scale=(1, 1), hflip=0, rotate=45)
    _, turned = SegmentationDataset([(image, mask)], transform)[0]
    assert 0 < (turned == IGNORE).float().mean() < 0.3


def test_colours_change_only_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    mask = blobs(16, 16, 0)
    options = dict(mean=MEAN, std=STD, scale=(1, 1), hflip=0.0)
    plain, _ = SegmentationDataset([(image, mask)], training_transform(16, photometric=False, **options))[0]
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    torch.testing.assert_close(plain, expected)
    changed = 0
    for item, kept in SegmentationDataset([(image, mask)] * 40, training_transform(16, **options)):
        assert (kept == torch.from_numpy(mask)).all()
        changed += int(not torch.equal(item, plain))
    assert 30 <= changed < 40  # one in sixteen is unchanged on average


def test_crops_of_one_class_are_drawn_again():
    mask = np.zeros((40, 400), np.uint8)
    mask[:, 300:] = 1
    mask[:, :100] = IGNORE
    image = tv_tensors.Image(torch.zeros(3, 40, 400, dtype=torch.uint8))

    def uniform(share: float) -> int:
        crop = VariedCrop(40, share, fill={tv_tensors.Mask: IGNORE, tv_tensors.Image: 0})
        crops = [crop(image, tv_tensors.Mask(torch.from_numpy(mask)))[1] for _ in range(100)]
        return sum(int(len(set(item.unique().tolist()) - {IGNORE}) < 2) for item in crops)

    assert uniform(1.0) > 75  # about 9 in 10
    assert uniform(0.75) < 75  # about one in three finds no varied crop in ten tries


def test_augmentation_is_exactly_repeatable():
    pairs = [aligned_pair(seed=s) for s in range(6)]
    transform = training_transform(32, mean=MEAN, std=STD)

    def items(epoch: int, seed: int = 3, workers: int = 0, order=range(6)) -> list[tuple[torch.Tensor, torch.Tensor]]:
        dataset = SegmentationDataset(pairs, transform, seed=seed)
        dataset.set_epoch(epoch)
        loader = DataLoader(dataset, batch_size=1, sampler=order, num_workers=workers, collate_fn=dataset.collate)
        by_index = dict(zip(order, loader, strict=True))
        return [by_index[index] for index in range(6)]

    def equal(first, second) -> list[bool]:
        return [torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)]

    first = items(1)
    torch.rand(7)
    assert all(equal(first, items(1, order=[3, 1, 5, 0, 2, 4])))
    assert all(equal(first, items(1, workers=2)))
    assert not any(equal(first, items(2)))
    assert not any(equal(first, items(1, seed=4)))
    same = SegmentationDataset([pairs[0]] * 2, transform)
    assert not equal([same[0]], [same[1]])[0]


def test_set_epoch_reaches_running_workers():
    dataset = SegmentationDataset([aligned_pair(seed=s) for s in range(4)], plain_transform(32))
    loader = DataLoader(
        dataset, batch_size=2, num_workers=1, persistent_workers=True, collate_fn=SegmentationDataset.collate
    )
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        images, masks = zip(*loader, strict=True)
        assert images[0].shape == (2, 3, 32, 32)
        expected = [dataset[index] for index in range(4)]
        assert torch.equal(torch.cat(images), torch.stack([image for image, _ in expected]))
        assert torch.equal(torch.cat(masks), torch.stack([mask for _, mask in expected]))


# Evaluation


def test_evaluation_keeps_masks_at_full_size():
    pairs = [aligned_pair(40, 60), aligned_pair(33, 21)]
    dataset = EvaluationDataset(pairs, mean=MEAN, std=STD, short_side=20)
    images, masks, indices = next(iter(DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)))
    assert [tuple(image.shape) for image in images] == [(3, 20, 30), (3, 31, 20)]
    assert indices == [0, 1]
    for mask, (_, expected) in zip(masks, pairs, strict=True):
        assert mask.dtype == torch.int64
        assert torch.equal(mask, torch.from_numpy(expected).long())

    image = EvaluationDataset(pairs, mean=MEAN, std=STD)[0][0]
    expected = (np.asarray(pairs[0][0]) / 255 - MEAN) / STD
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    small = EvaluationDataset(pairs, mean=(0, 0, 0), std=(1, 1, 1), short_side=20)[0][0]
    by_pillow = np.asarray(pairs[0][0].resize((30, 20), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(small.permute(1, 2, 0), by_pillow, atol=1.01 / 255)


def test_the_demo_data(tmp_path, monkeypatch, caplog):
    folder = good_pairs(tmp_path)
    (folder / "classes.txt").write_text("background\nbag\nshirt\n")
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_train.json").write_text("{}")  # for detection
    monkeypatch.setattr(sources, "canvases_folder", lambda: folder)
    data = load_segmentation_data("fashion_canvases")
    assert data.class_names == ["background", "bag", "shirt"]
    assert len(data.train) == 2
    assert not caplog.text
