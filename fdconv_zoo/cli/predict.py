"""Predictions for image files.

A classifier's classes are printed, and written to a table or JSON. For a segmenter or a detector, pictures are written.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

from fdconv_zoo.cli.class_predictions import ClassPredictions
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.data import open_image
from fdconv_zoo.errors import ConfigError, DataError, WeightsError, listed
from fdconv_zoo.store.build import build_model, image_mode, resolve_preprocessing, stored_class_names
from fdconv_zoo.store.config import read_config
from fdconv_zoo.store.fetch import fetch_file
from fdconv_zoo.store.names import CONFIG_FILE, HUB, LOCAL

DESCRIPTION = "Print the classes of images, or draw what a segmenter or a detector finds in images and videos."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        help="image files, or folders of them; also videos, for segmentation and detection",
    )
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--sample", type=int, help="also N validation images of the packaged sample")
    classes = parser.add_argument_group("classification")
    classes.add_argument("--top", type=int, default=3, metavar="K", help="classes to show per image")
    classes.add_argument("--csv", type=Path, metavar="FILE", help="also write the probabilities of all classes here")
    classes.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    dense = parser.add_argument_group("segmentation and detection")
    dense.add_argument("--output", type=Path, metavar="DIR", help="folder for the pictures; required")
    dense.add_argument("--score", type=float, default=0.5, help="lowest score of the objects to draw")
    dense.add_argument("--short-side", type=int, help="resize images to this shorter side before segmentation")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="device of the model")


def predict(args: argparse.Namespace) -> None:
    """Print the likeliest classes of every image, or draw what is in it.

    Args:
        args: The flags of `add_arguments`.

    Raises:
        ConfigError: there are no images, or no such model; or a file to be written exists.
        DataError: files cannot be read; raised after all others are done.
    """
    check_ranges(args)
    if not args.images and args.sample is None:
        raise ConfigError("no images: name image files or folders, or use --sample N")
    for flag in ("csv", "json"):
        if (file := getattr(args, flag)) is not None and file.exists():
            raise ConfigError(f"--{flag} {file} exists: choose another file, or remove it")
    dense_model = load_dense_model(args.model)
    if dense_model is None:
        _print_classes(args)
        return
    from fdconv_zoo.dense.prediction import predict_files
    from fdconv_zoo.dense.video import VIDEOS

    if args.output is None or args.sample is not None:
        raise ConfigError(f"{args.model} writes pictures: use --output DIR, and no --sample")
    if args.csv or args.json:
        raise ConfigError(f"--csv and --json are for classifiers, and {args.model} is none: leave them out")
    files = list(_find_files(args.images, {*Image.registered_extensions(), *VIDEOS}))
    model = dense_model.to(args.device)
    predict_files(model, files, args.output, least_score=args.score, short_side=args.short_side)


def load_dense_model(name: str) -> torch.nn.Module | None:
    """Load a segmenter or a detector, in eval mode.

    Args:
        name: A folder, or hf-hub:NAME.

    Returns:
        The model; None if it is of another kind.

    Raises:
        ConfigError: the libraries of dense prediction are not installed.
        HubError: the repository could not be downloaded.
        WeightsError: the files are damaged.
    """
    folder = Path(name.removeprefix(LOCAL))
    if name.startswith(HUB):
        repo_id, _, revision = name.removeprefix(HUB).partition("@")
        config = fetch_file(repo_id, CONFIG_FILE, revision or None)
        source, kwargs = repo_id, {"revision": revision or None}
    else:
        config, source, kwargs = folder / CONFIG_FILE, str(folder), {}
    if not config.is_file():
        return None
    try:
        described = read_config(config)
    except WeightsError:
        return None  # loading a classifier explains what is wrong
    if not is_dense(described):
        return None
    with needing_dense(name):
        from fdconv_zoo.dense import Detector, Segmenter
    return (Segmenter if "decoder" in described else Detector).from_pretrained(source, **kwargs)


def is_dense(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a segmenter or a detector."""
    return "backbone" in config and bool({"decoder", "head"} & config.keys())


@contextmanager
def needing_dense(name: str) -> Iterator[None]:
    """Explain a failed import in the block: the model `name` needs the extra `dense`."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{name} needs {error.name}: pip install 'fdconv-zoo[dense]'") from error


def _print_classes(args: argparse.Namespace) -> None:
    model, _ = build_model(args.model)
    model.eval().to(args.device)
    preprocessing = resolve_preprocessing(model, use_test_size=True)
    transform = create_transform(**preprocessing)
    names = class_names(model, args.model)

    problems: list[str] = []
    predictions = ClassPredictions(args.model, names)
    try:
        for name, image in read_images(args.images, args.sample, image_mode(preprocessing), problems):
            with torch.inference_mode():
                probabilities = model(transform(image)[None].to(args.device)).float().softmax(1)[0]
            best = probabilities.topk(min(args.top, len(names)))
            classes = ", ".join(
                f"{names[i]} {100 * p:.1f} %" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            )
            print(f"{name}: {classes}")
            if args.csv or args.json:
                predictions.add(name, probabilities.tolist())
    finally:  # also after an error or Ctrl-C, write the predictions so far
        if args.csv and predictions.files:
            predictions.write_csv(args.csv)
        if args.json and predictions.files:
            predictions.write_json(args.json)
    if problems:
        raise DataError(f"{len(problems)} files were left out:{listed(problems)}")


def class_names(model: torch.nn.Module, name: str) -> list[str]:
    """Return the class names in a model's configuration; without them ImageNet's for 1000 classes, else numbers.

    In ImageNet, some names belong to two classes, such as "crane". The second one has its number after the name.

    Raises:
        ConfigError: the names do not fit the model.
    """
    names = stored_class_names(model, name)
    if names is not None:
        return names
    if model.num_classes == 1000:
        info = ImageNetInfo()
        names = [info.index_to_description(index) for index in range(1000)]
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        return [name if first[name] == index else f"{name} ({index})" for index, name in enumerate(names)]
    return [f"class {index}" for index in range(model.num_classes)]


def read_images(
    paths: Sequence[Path], sample: int | None, mode: str, problems: list[str]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield a name and an image for every file, then for images of the sample, named with their true class.

    If a file cannot be read, the error message is appended to `problems`.
    """
    for file in _find_files(paths, set(Image.registered_extensions())):
        try:
            image = open_image({"path": str(file)}, mode, remedy="Repair or remove it.")
        except DataError as error:
            problems.append(str(error))
        else:
            yield str(file), image
    if sample is not None:
        yield from _read_sample(sample, mode)


def _find_files(paths: Sequence[Path], suffixes: set[str]) -> Iterator[Path]:
    """Yield the files among the paths, and the files with one of the suffixes in the folders among them."""
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path}: no images in this folder")
        yield from files


def _read_sample(number: int, mode: str) -> Iterator[tuple[str, Image.Image]]:
    try:
        from fdconv_zoo.data import SAMPLE, load_image_data  # needs the datasets library
    except ImportError as error:
        raise ConfigError(f"--sample needs {error.name}: pip install 'fdconv-zoo[train]'") from error
    data = load_image_data(SAMPLE, split="validation", limit=number)
    for record in data.validation:
        yield f"{SAMPLE} ({data.class_names[record['label']]})", open_image(record["image"], mode)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict. `argv` defaults to `sys.argv[1:]`."""
    parser = CommandParser(description=DESCRIPTION)
    add_arguments(parser)
    predict(parser.parse_args(argv))
