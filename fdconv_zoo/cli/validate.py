"""Evaluation of image classifiers."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch import nn

from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.recipes import add_workers_flag
from fdconv_zoo.cli.trained_on import Evaluated, class_numbers, evaluated_part
from fdconv_zoo.data import SAMPLE, ImageData, load_image_data
from fdconv_zoo.data.columns import renumber_labels
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import (
    build_model,
    check_forward,
    check_model_name,
    resolve_preprocessing,
    stored_class_names,
)
from fdconv_zoo.store.files import write_text
from fdconv_zoo.training.class_results import FILES, write_class_results
from fdconv_zoo.training.evaluate import evaluate, evaluation_loader


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo validate",
        description="Evaluate image classifiers: top-1, top-5, loss and images per second, for one or several models.",
    )
    boolean = {"action": argparse.BooleanOptionalAction, "default": False}
    parser.add_argument("--model", nargs="+", required=True, help="timm names, hf-hub:NAME, or output folders of runs")
    parser.add_argument(
        "--dataset", required=True, help=f"folder, CSV, parquet or arrow files, Hub dataset, or {SAMPLE} (packaged)"
    )
    parser.add_argument("--image-column", metavar="NAME", help="required if several columns hold images")
    parser.add_argument("--label-column", metavar="NAME", help="required if several columns could be the class")
    parser.add_argument(
        "--validation-split",
        metavar="NAME",
        help="default: as the run of the model, or else validation, val, valid, dev or test",
    )
    parser.add_argument("--limit", type=int, help="use only N images")
    parser.add_argument("--skip-bad-images", **boolean, help="skip and count unreadable images")
    parser.add_argument("--streaming", **boolean, help="read while evaluating, for large datasets")
    add_workers_flag(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch and process")
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: accelerate's configuration")
    parser.add_argument("--flip", **boolean, help="average over each image and its mirror image")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"write what the model makes of each class into this folder: {', '.join(FILES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate classifiers. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    check_ranges(args)
    check_output(args)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    names = [check_model_name(name) for name in args.model]
    loaded: dict[str, ImageData] = {}  # models with the same images share them
    results = []
    for name in names:
        part = evaluated_part(name, args.dataset, args.validation_split)
        key = repr(part.options)
        with accelerator.local_main_process_first():
            if key not in loaded:
                loaded[key] = load_data(args, part)
            data = loaded[key]
            part.check_unchanged(name, data.train_count, data.class_names)
            model, _ = build_model(name)
        validation = as_numbered_by(name, model, data)
        class_names = stored_class_names(model, name) or data.class_names
        preprocessing = resolve_preprocessing(model, use_test_size=True)
        check_forward(model, preprocessing["input_size"])
        loader = evaluation_loader(
            validation, preprocessing, args.batch_size, args.workers, skip_bad_images=args.skip_bad_images
        )
        model, loader = model.to(accelerator.device), accelerator.prepare(loader)
        result = evaluate(accelerator, model, loader, flip=args.flip)
        size = "x".join(map(str, preprocessing["input_size"][1:]))
        split = part.remark(data.split, data.train_count)
        results.append({"model": name, "image_size": size, **result.figures(), "split": split})
        if args.output and accelerator.is_main_process:
            write_class_results(result.labels, result.predictions, class_names, args.output)
        accelerator.free_memory()

    accelerator.print(as_table(results))
    if skipped := max(data.skipped for data in loaded.values()):
        accelerator.print(f"skipped {skipped} images that could not be read")
    if args.json and accelerator.is_main_process:
        write_text(args.json, json.dumps({"dataset": args.dataset, "results": results}, indent=2) + "\n")
    accelerator.end_training()


def check_output(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for several models with one `--output`, or if files in it would be replaced."""
    if args.output is None:
        return
    if len(args.model) > 1:
        raise ConfigError("--output takes the tables of one model: name one --model, or leave it out")
    if existing := [name for name in FILES if (args.output / name).exists()]:
        raise ConfigError(f"--output: {args.output / existing[0]} exists; choose another folder, or remove it")


def load_data(args: argparse.Namespace, part: Evaluated) -> ImageData:
    """Load the images of a part of the dataset.

    Raises:
        DataError: something is wrong with them.
    """
    return load_image_data(
        args.dataset,
        image_column=args.image_column or part.run.get("image_column"),
        label_column=args.label_column or part.run.get("label_column"),
        streaming=args.streaming,
        skip_bad_images=args.skip_bad_images,
        num_workers=args.workers,
        limit=args.limit,
        **part.options,
    )


def as_numbered_by(name: str, model: nn.Module, data: ImageData) -> Dataset | IterableDataset:
    """Return the validation images, labelled with the model's numbers of the same class names.

    Args:
        name: Name of the model.
        model: A timm model.
        data: The dataset.

    Raises:
        ConfigError: the model does not have the classes of the dataset.
    """
    trained = stored_class_names(model, name) or data.class_names
    return renumber_labels(data.validation, class_numbers(name, model, data.class_names), trained)


def as_table(results: Sequence[dict[str, Any]]) -> str:
    """Format the results as an aligned table."""
    width = max(len(row["model"]) for row in results)
    lines = [
        f"{'model':<{width}}  {'size':>9}  {'top-1 %':>7}  {'top-5 %':>7}  {'loss':>7}  {'images':>7}  {'images/s':>8}"
    ]
    for row in results:
        top5 = "-" if row["top5"] is None else f"{row['top5']:.2f}"
        lines.append(
            f"{row['model']:<{width}}  {row['image_size']:>9}  {row['top1']:>7.2f}  {top5:>7}  {row['loss']:>7.4f}  "
            f"{row['images']:>7}  {row['images_per_second']:>8.1f}"
        )
    if len(splits := {row["split"] for row in results}) == 1:
        lines.append(f"images: {splits.pop()}")
    else:
        lines += [f"images of {row['model']}: {row['split']}" for row in results]
    if any(row["top5"] is None for row in results):
        lines.append("(top-5 is reported for more than five classes only)")
    return "\n".join(lines)
