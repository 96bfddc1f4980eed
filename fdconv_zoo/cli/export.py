"""Export of classifiers to ONNX."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import onnx  # noqa: F401 - torch's exporter needs both, and a missing one is named before work starts
import onnxscript  # noqa: F401

from fdconv_zoo.cli.predict import class_names, load_dense_model
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.recipes import HelpFormatter
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import timm_name
from fdconv_zoo.store.build import build_model, check_forward, resolve_preprocessing
from fdconv_zoo.store.onnx import export_onnx


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo export",
        description="Export a classifier to ONNX, and check the program against torch in onnxruntime.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the program, such as model.onnx")
    parser.add_argument("--img-size", type=int, help="side in pixels; default: the model's")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export a classifier; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    check_ranges(args)
    if args.output.exists():
        raise ConfigError(f"--output {args.output} exists: choose another file, or remove it")
    name = timm_name(args.model)
    if load_dense_model(name) is not None:
        raise ConfigError(f"{name} is not a classifier: its class has an `export_onnx` of its own, see the README")
    model, _ = build_model(name, img_size=args.img_size)
    preprocessing = resolve_preprocessing(model, img_size=args.img_size, use_test_size=True)
    size = preprocessing["input_size"]
    check_forward(model, size)
    metadata = {"class_names": class_names(model, name), "preprocessing": preprocessing}
    deviation = export_onnx(model, args.output, size, {key: json.dumps(value) for key, value in metadata.items()})
    print(
        f"{args.output}: images (B, {', '.join(map(str, size))}) -> logits (B, {model.num_classes}); it deviates from "
        f"torch by {deviation:.1e} of the largest logit"
    )
