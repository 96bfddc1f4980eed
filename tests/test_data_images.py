"""Decoding of single images, and the PyTorch datasets over them."""

import random
import struct
from io import BytesIO

import datasets
import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fdconv_zoo.data import ImageDataset, StreamedImageDataset, open_image
from fdconv_zoo.errors import DataError

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, format: str = "PNG", **options) -> dict:
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# open_image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("stored", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_every_mode_is_converted(stored, mode):
    image = open_image(encoded(noise(7, 5, stored)), mode)
    assert (image.mode, image.size) == (mode, (7, 5))


def test_plain_pixels_are_untouched():
    image = noise(7, 5)
    assert np.array_equal(open_image(encoded(image)), image)


def test_transparency_is_composited_over_white():
    alpha = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    alpha.putpixel((1, 0), (0, 0, 0, 0))
    assert np.array_equal(open_image(encoded(alpha)), [[[255, 0, 0], [255, 255, 255]]])
    assert np.array_equal(open_image(encoded(alpha), "L"), [[76, 255]])

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert np.array_equal(open_image(encoded(palette, transparency=1)), [[[255, 0, 0], [255, 255, 255]]])
    assert np.array_equal(open_image(encoded(palette)), [[[255, 0, 0], [0, 0, 0]]])

    key = Image.new("RGB", (2, 1), (255, 0, 0))
    key.putpixel((1, 0), (0, 0, 0))
    assert np.array_equal(open_image(encoded(key, transparency=(0, 0, 0))), [[[255, 0, 0], [255, 255, 255]]])


def test_cmyk_colours():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for record in (encoded(cmyk, "TIFF"), encoded(cmyk, "JPEG", quality=100)):
        assert np.abs(np.asarray(open_image(record), int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grayscale_is_scaled_not_clipped(format):
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert np.array_equal(open_image(encoded(Image.fromarray(levels), format), "L"), [[0, 1, 128, 255]])


def test_16_bit_files_of_fewer_bits_are_noticed(recwarn):
    dark = Image.fromarray(np.array([[0, 4095]], np.uint16))
    with pytest.warns(
        UserWarning, match=r"no value above 4095, .* so only 17 of 256 grey .* have 12 bits, multiply them by 16"
    ):
        assert np.array_equal(open_image(encoded(dark), "L"), [[0, 16]])
    with pytest.warns(UserWarning, match="no value above 255, .* so only 2 of 256"):
        open_image(encoded(Image.fromarray(np.array([[0, 200]], np.uint16))))
    for largest in (0, 1 << 14):
        open_image(encoded(Image.fromarray(np.array([[0, largest]], np.uint16))))
    assert not recwarn


def test_tiff_files_of_12_bits_keep_their_levels(recwarn):
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    pixels = bytes([0x80, 0x0F, 0xFF, 0])  # 0x800, 0xFFF
    file = b"II*\0" + struct.pack("<I", 12) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.array_equal(open_image({"bytes": file}, "L"), [[128, 255]])
    assert not recwarn


def test_images_without_a_defined_range_are_refused():
    for pixels in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 1 << 20, np.int32)):
        with pytest.raises(DataError, match="8 or 16 bits"):
            open_image(encoded(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation(format):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to view
    stored = Image.new("RGB", (24, 16), "black")
    stored.paste("white", (0, 0, 12, 16))
    upright = np.asarray(open_image(encoded(stored, format, exif=exif), "L"))
    assert upright.shape == (24, 16)
    assert upright[:8].min() > 200
    assert upright[16:].max() < 50


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_image_is_refused_or_decoded_completely(format, options):
    whole = encoded(noise(40, 30), format, **options)
    expected = np.asarray(open_image(whole))
    refused = []
    for share in np.linspace(0, 1, 40, endpoint=False):
        cut = {"bytes": whole["bytes"][: int(share * len(whole["bytes"]))], "path": "cut.img"}
        try:
            assert np.array_equal(open_image(cut), expected), f"pixels missing at {share:.2f}"
        except DataError as error:
            refused.append(str(error))
    assert len(refused) >= 35
    assert all("cut.img" in message and "--skip-bad-images" in message for message in refused)


def test_bad_records_are_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.jpg.*not an image format"):
        open_image({"bytes": None, "path": str(tmp_path / "notes.jpg")})
    with pytest.raises(DataError, match=r"gone\.jpg"):
        open_image({"bytes": None, "path": str(tmp_path / "gone.jpg")})
    for empty in (None, {"bytes": None, "path": None}):
        with pytest.raises(DataError, match="row 3"):
            open_image(empty, name="row 3")


# ImageDataset and StreamedImageDataset

COUNT = 12


def records(count: int = COUNT) -> dict:
    return {"image": [encoded(noise(40, 36)) for _ in range(count)], "label": [index % 3 for index in range(count)]}


@pytest.fixture(scope="module")
def source() -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(num_classes=3))
    return datasets.Dataset.from_dict(records(), features=features)


@pytest.fixture(scope="module")
def transform():
    return timm.data.create_transform(
        (3, 32, 32), is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, re_mode="pixel"
    )


def images(dataset, **loader) -> torch.Tensor:
    return torch.cat([batch for batch, _ in DataLoader(dataset, batch_size=2, **loader)])


def test_augmentation_depends_only_on_seed_epoch_and_index(source, transform):
    dataset = ImageDataset(source, transform, seed=1)
    dataset.set_epoch(3)
    first = images(dataset)
    assert first.shape == (COUNT, 3, 32, 32)
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    other = ImageDataset(source, transform, seed=1)
    other.set_epoch(3)
    assert torch.equal(other[7][0], first[7])
    assert torch.equal(images(other, num_workers=2), first)
    other.set_epoch(4)
    assert not torch.equal(other[7][0], first[7])
    assert not torch.equal(ImageDataset(source, transform, seed=2)[7][0], ImageDataset(source, transform, seed=1)[7][0])


def test_every_index_is_augmented_differently(transform):
    same = datasets.Dataset.from_dict({"image": [encoded(noise(40, 36))] * 2, "label": [0, 1]})
    dataset = ImageDataset(same, transform)
    assert not torch.equal(dataset[0][0], dataset[1][0])


def test_global_generators_are_unchanged(source, transform):
    def draws() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    ImageDataset(source, transform)[0]
    assert draws() == expected


@pytest.mark.parametrize("persistent", [False, True])
def test_set_epoch_reaches_workers(source, transform, persistent):
    dataset = ImageDataset(source, transform)
    loader = DataLoader(dataset, batch_size=COUNT, num_workers=1, persistent_workers=persistent)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (batch, labels), *_ = loader
        plain = [dataset[index] for index in range(COUNT)]
        assert torch.equal(batch, torch.stack([image for image, _ in plain]))
        assert labels.tolist() == [label for _, label in plain]


def test_evaluation_transform_and_grayscale(source):
    transform = timm.data.create_transform((1, 32, 32), mean=(0.5,), std=(0.5,), normalize=True)
    dataset = ImageDataset(source, transform, mode="L")
    assert dataset[0][0].shape == (1, 32, 32)
    assert torch.equal(images(dataset), images(dataset, num_workers=2))


def test_a_file_damaged_after_the_check_is_named(tmp_path, transform):
    path = tmp_path / "late.png"
    path.write_bytes(b"broken")
    source = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(path)}], "label": [0]})
    with pytest.raises(DataError, match=r"late\.png"):
        ImageDataset(source, transform)[0]


def streamed(source: datasets.Dataset, transform, shards: int = 1, **options) -> StreamedImageDataset:
    stream = source.to_iterable_dataset(num_shards=shards).shuffle(seed=0, buffer_size=8)
    return StreamedImageDataset(stream, transform, **options)


def test_a_stream_is_repeatable_and_reshuffled(source, transform):
    dataset = streamed(source, transform)
    first = images(dataset)
    assert torch.equal(images(streamed(source, transform)), first)
    assert torch.equal(images(dataset, num_workers=2), images(dataset, num_workers=2))
    orders = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        orders.append([label for _, label in dataset])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize(("workers", "done_batches"), [(0, 3), (1, 3), (2, 2)])
def test_a_stream_resumes_where_it_stopped(source, transform, workers, done_batches):
    dataset = streamed(source, transform, shards=2)
    dataset.set_epoch(1)
    whole = images(dataset, num_workers=workers)
    dataset.set_epoch(1, done_batches, batch_size=2)
    assert len(whole) == COUNT
    assert torch.equal(images(dataset, num_workers=workers), whole[2 * done_batches :])


def test_skipped_batches_of_a_stream_are_not_decoded(source, transform):
    columns = {"image": [{"bytes": b"broken", "path": None}, source[0]["image"]], "label": [0, 0]}
    stream = datasets.Dataset.from_dict(columns, features=source.features).to_iterable_dataset()
    dataset = StreamedImageDataset(stream, transform)
    dataset.set_epoch(0, done_batches=1)
    assert len(list(dataset)) == 1


def test_a_stream_names_or_skips_bad_images(source, transform, caplog):
    broken = datasets.Dataset.from_dict(
        {"image": [*source["image"], {"bytes": b"broken", "path": "bad.png"}], "label": [0] * (COUNT + 1)},
        features=source.features,
    )
    with pytest.raises(DataError, match=r"bad\.png"):
        list(streamed(broken, transform))
    dataset = streamed(broken, transform, skip_bad_images=True)
    assert len(images(dataset, num_workers=1)) == COUNT
    assert dataset.skipped == 1
    assert len(list(dataset)) == COUNT
    assert "bad.png" in caplog.text


@pytest.mark.parametrize("label", [-1, None])
def test_a_stream_refuses_bad_labels(source, transform, label):
    columns = {"image": source["image"][:1], "label": [label]}
    with pytest.raises(DataError, match="0 to 2"):
        list(streamed(datasets.Dataset.from_dict(columns, features=source.features), transform))
