"""Random augmentation of a classifier's training images, from flags."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from fdconv_zoo.cli.named_transforms import check_transform, named_transform
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import image_mode


def add_augmentation_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for the random augmentation of images and labels."""
    group.add_argument("--scale", type=float, nargs=2, default=[0.35, 1.0], help="range of the crop's area")
    group.add_argument("--ratio", type=float, nargs=2, default=[0.75, 4 / 3], help="range of its aspect ratio")
    group.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    group.add_argument("--vflip", type=float, default=0.0, help="probability of a vertical flip")
    group.add_argument("--aa", default="rand-m7-mstd0.5-inc1", help="RandAugment policy, or none")
    group.add_argument("--color-jitter", type=float, default=0.4, help="only with --aa none")
    group.add_argument(
        "--transforms",
        nargs="+",
        default=[],
        metavar="NAME(...)",
        help="more of them, after the others: 'torchvision.NAME(ARGUMENT=VALUE)', of torchvision.transforms.v2, or "
        "'albumentations.NAME(...)'",
    )
    group.add_argument("--reprob", type=float, default=0.1, help="probability of random erasing")
    group.add_argument("--mixup", type=float, default=0.0, help="alpha of mixup; 0: off")
    group.add_argument("--cutmix", type=float, default=0.0, help="alpha of CutMix; 0: off")
    group.add_argument(
        "--aug-repeats", type=int, default=1, help="how often an image comes in an epoch, with fewer images in it"
    )


def training_transform(args: argparse.Namespace, preprocessing: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Build the random transform of a training image.

    Args:
        args: The flags of `add_augmentation_flags`.
        preprocessing: As `resolve_preprocessing` returns it.

    Raises:
        ConfigError: `--aa` is not a policy of timm, or `--transforms` cannot be used.
    """
    own = [named_transform(words) for words in args.transforms]
    for words, transform in zip(args.transforms, own, strict=True):
        check_transform(words, transform, image_mode(preprocessing), preprocessing["input_size"][:0:-1])
    try:
        before, colours, after = create_transform(
            preprocessing["input_size"],
            is_training=True,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=None if args.aa == "none" else args.aa,
            interpolation=preprocessing["interpolation"],
            mean=preprocessing["mean"],
            std=preprocessing["std"],
            re_prob=args.reprob,
            re_mode="pixel",
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"--aa {args.aa}: not a policy of timm, such as rand-m7-mstd0.5-inc1") from error
    return Compose([before, colours, *own, after])
