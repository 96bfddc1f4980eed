"""Evaluation of image classifiers."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fdconv_zoo.cli.recipes import HelpFormatter, add_workers_flag
from fdconv_zoo.data import SAMPLE, load_image_data
from fdconv_zoo.store.build import build_model, check_classes, check_forward, check_model_name, resolve_preprocessing
from fdconv_zoo.store.files import write_text
from fdconv_zoo.training.evaluate import evaluate, evaluation_loader


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo validate",
        description="Evaluate image classifiers: top-1, top-5, loss and images per second, for one or several models.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    boolean = {"action": argparse.BooleanOptionalAction, "default": False}
    parser.add_argument("--model", nargs="+", required=True, help="timm names, hf-hub:NAME, or output folders of runs")
    parser.add_argument(
        "--dataset", required=True, help=f"folder, parquet or arrow files, Hub dataset, or {SAMPLE} (packaged)"
    )
    parser.add_argument("--image-column", metavar="NAME", help="required if several columns hold images")
    parser.add_argument("--label-column", metavar="NAME", help="required if several columns could be the class")
    parser.add_argument("--validation-split", metavar="NAME", help="default: validation, val, valid, dev or test")
    parser.add_argument("--limit", type=int, help="use only N images")
    parser.add_argument("--skip-bad-images", **boolean, help="skip and count unreadable images")
    parser.add_argument("--streaming", **boolean, help="read while evaluating, for large datasets")
    add_workers_flag(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch and process")
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: accelerate's configuration")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate classifiers; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    names = [check_model_name(name) for name in args.model]
    with accelerator.local_main_process_first():
        data = load_image_data(
            args.dataset,
            image_column=args.image_column,
            label_column=args.label_column,
            validation_split=args.validation_split,
            streaming=args.streaming,
            skip_bad_images=args.skip_bad_images,
            num_workers=args.workers,
            limit=args.limit,
            split="validation",
        )

    results = []
    for name in names:
        with accelerator.local_main_process_first():
            model, _ = build_model(name)
        check_classes(name, model, data.class_names)
        preprocessing = resolve_preprocessing(model, use_test_size=True)
        check_forward(model, preprocessing["input_size"])
        loader = evaluation_loader(
            data.validation, preprocessing, args.batch_size, args.workers, skip_bad_images=args.skip_bad_images
        )
        model, loader = model.to(accelerator.device), accelerator.prepare(loader)
        result = evaluate(accelerator, model, loader)
        size = "x".join(map(str, preprocessing["input_size"][1:]))
        results.append({"model": name, "image_size": size, **asdict(result)})
        accelerator.free_memory()

    accelerator.print(as_table(results))
    if data.skipped:
        accelerator.print(f"skipped {data.skipped} images that could not be read")
    if args.json and accelerator.is_main_process:
        write_text(args.json, json.dumps({"dataset": args.dataset, "results": results}, indent=2) + "\n")
    accelerator.end_training()


def as_table(results: Sequence[dict[str, Any]]) -> str:
    """The results as an aligned table."""
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
    if any(row["top5"] is None for row in results):
        lines.append("(top-5 is reported for more than five classes only)")
    return "\n".join(lines)
