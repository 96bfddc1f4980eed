"""The classes of image files: what `scripts/predict.py` and `python -m fdconv_zoo predict` share."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

from fdconv_zoo.data import open_image
from fdconv_zoo.training.build import build_model, resolve_preprocessing
from fdconv_zoo.training.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of predicting."""
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--sample", type=int, metavar="N", help="N validation images of the packaged sample")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to show for an image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def predict(args: argparse.Namespace) -> None:
    """Print the likeliest classes of every image.

    Raises:
        ConfigError: nothing to predict, or no such model.
        DataError: a file is not an image.
    """
    if not args.images and args.sample is None:
        raise ConfigError("nothing to predict: name image files or folders, or use --sample N")
    model, _ = build_model(args.model)
    model.eval().to(args.device)
    preprocessing = resolve_preprocessing(model, use_test_size=True)
    transform = create_transform(**preprocessing)
    mode = "L" if preprocessing["input_size"][0] == 1 else "RGB"
    names = class_names(model)

    for name, image in read_images(args.images, args.sample, mode):
        with torch.inference_mode():
            probabilities = model(transform(image)[None].to(args.device)).softmax(1)[0]
        best = probabilities.topk(min(args.top, len(names)))
        classes = ", ".join(
            f"{names[i]} {100 * p:.1f} %" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(f"{name}: {classes}")


def class_names(model: torch.nn.Module) -> list[str]:
    """The names a trained model carries in its configuration, ImageNet's for a model of 1000 classes, else numbers."""
    labels = model.pretrained_cfg.get("label_names") or ()
    if len(labels) == model.num_classes:
        return list(labels)
    if model.num_classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(index) for index in range(1000)]
    return [f"class {index}" for index in range(model.num_classes)]


def read_images(paths: Sequence[Path], sample: int | None, mode: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield a name and an image for every file, then for images of the sample (their true class is in the name)."""
    suffixes = Image.registered_extensions()
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path}: no images in this folder")
        for file in files:
            yield str(file), open_image({"path": str(file)}, mode)
    if sample is not None:
        yield from _read_sample(sample, mode)


def _read_sample(number: int, mode: str) -> Iterator[tuple[str, Image.Image]]:
    try:
        from fdconv_zoo.data import SAMPLE, load_image_data  # the datasets library, which files do not need
    except ImportError as error:
        raise ConfigError(f"--sample needs {error.name}: pip install 'fdconv-zoo[train]'") from error
    data = load_image_data(SAMPLE, split="validation", limit=number)
    for record in data.validation:
        yield f"{SAMPLE} ({data.class_names[record['label']]})", open_image(record["image"], mode)
