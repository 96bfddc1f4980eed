import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from fdconv_zoo.cli.named_transforms import check_transform, named_transform
from fdconv_zoo.data.dataset import seeded
from fdconv_zoo.errors import ConfigError

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8))


def test_torchvision():
    assert named_transform("torchvision.RandomVerticalFlip(p=1.0)")(IMAGE) == ImageOps.flip(IMAGE)
    check_repeatable("torchvision.RandomAffine(30, translate=(0.1, 0.2))")


def test_albumentations():
    pytest.importorskip("albumentations", reason="albumentations is not installed")
    assert named_transform("albumentations.VerticalFlip(p=1.0)")(IMAGE) == ImageOps.flip(IMAGE)
    check_repeatable("albumentations.GaussNoise(std_range=(0.1, 0.3), p=1)")
    with pytest.raises(ConfigError, match="albumentations has no such transform"):
        named_transform("albumentations.Compose(transforms=[])")
    with pytest.raises(ConfigError, match="must keep size, channels and type"):
        check_transform("x", named_transform("albumentations.Resize(4, 4)"), "RGB", (12, 16))


def check_repeatable(words):
    transform = named_transform(words)
    check_transform(words, transform, "RGB", (12, 16))
    results = []
    for seed in (1, 1, 2):
        random.seed()
        with seeded(seed):
            results.append(transform(IMAGE))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RandomRotation(30)", r"must be torchvision\.NAME\(ARGUMENT=VALUE"),
        ("torchvision.RandomRotation", "must be torchvision"),
        ("torchvision.io.read_file('x')", "must be torchvision"),
        ("torchvision.Lambda(print)", "must be torchvision"),
        ("torchvision.RandomRotation(degrees=__import__('os').getpid())", "must be torchvision"),
        ("torchvision.RandomRotation(", "must be torchvision"),
        ("torchvision.functional(1)", "has no such transform"),
        ("torchvision.NoSuch()", "has no such transform"),
        ("torchvision.RandomRotation(degree=3)", "does not take these arguments .*degree"),
        ("torchvision.RandomRotation(-3)", "does not take these arguments"),
    ],
)
def test_others_are_refused_by_name(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        named_transform(words)
    assert words in str(caught.value)


@pytest.mark.parametrize("words", ["torchvision.Resize(4)", "torchvision.ToImage()", "torchvision.Grayscale()"])
def test_what_changes_the_kind_of_image_is_refused(words):
    with pytest.raises(ConfigError, match="must keep size, channels and type"):
        check_transform(words, named_transform(words), "RGB", (12, 16))
