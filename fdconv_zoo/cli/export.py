"""Export of classifiers, segmenters and detectors to ONNX."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx  # noqa: F401 - torch's exporter needs both; if one is missing, the command fails at once
import onnxscript  # noqa: F401
import torch

from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import class_names, load_dense_model
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import timm_name
from fdconv_zoo.store.build import build_model, check_forward, image_mode, resolve_preprocessing
from fdconv_zoo.store.onnx import export_onnx, metadata

if TYPE_CHECKING:  # these need the extra `dense`
    from fdconv_zoo.dense import Detector, Segmenter

OLDEST_TORCH = (2, 9)  # as in pyproject.toml


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo export",
        description="Export a classifier, segmenter or detector to ONNX, and check the program against torch in "
        "onnxruntime. It has one image size, and stores class names and preprocessing.",
    )
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the program, such as model.onnx")
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width in pixels, or one number for both; default: the model's, which a detector and most "
        "segmenters do not have",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export a model. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    check_ranges(args)
    if len(args.img_size or []) > 2:
        raise ConfigError(f"--img-size {' '.join(map(str, args.img_size))}: must be one or two numbers")
    if torch.__version__ < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise ConfigError(f"torch {torch.__version__} cannot export FDConv to ONNX: pip install 'torch>={needed}'")
    if args.output.exists():
        raise ConfigError(f"--output {args.output} exists: choose another file, or remove it")
    name = timm_name(args.model)
    model = load_dense_model(name)
    if model is None:
        summary = _export_classifier(name, args.output, args.img_size)
    elif "decoder" in model.config:
        summary = _export_segmenter(model, name, args.output, args.img_size)
    else:
        summary = _export_detector(model, name, args.output, args.img_size)
    print(f"{args.output}: {summary}")


def _export_classifier(name: str, file: Path, sides: Sequence[int] | None) -> str:
    if len(set(sides or [])) > 1:
        raise ConfigError(f"--img-size {sides[0]} {sides[1]}: a classifier takes square images, so one number")
    side = sides[0] if sides else None
    model, _ = build_model(name, img_size=side)
    preprocessing = resolve_preprocessing(model, img_size=side, use_test_size=True)
    size = preprocessing["input_size"]
    check_forward(model, size)
    colours = "grayscale" if image_mode(preprocessing) == "L" else "RGB"
    described = metadata(
        class_names(model, name),
        preprocessing,
        f"images (B, C, H, W), float32: {colours} in 0..1, from which mean is subtracted before it is divided by std",
        "logits (B, K), float32: their softmax gives the probabilities of the classes",
    )
    deviation = export_onnx(model, file, size, described)
    return (
        f"images (B, {', '.join(map(str, size))}) -> logits (B, {model.num_classes}); it deviates from torch by "
        f"{deviation:.1e} of the largest logit"
    )


def _export_segmenter(model: "Segmenter", name: str, file: Path, sides: Sequence[int] | None) -> str:
    from fdconv_zoo.dense.segmentation.onnx import export_onnx

    height, width = _dense_size(sides or _sides(model.config["backbone_args"].get("img_size")), name)
    check_forward(model, (3, height, width))
    deviation = export_onnx(model, file, (height, width))
    return (
        f"images (B, 3, {height}, {width}) -> scores (B, {len(model.class_names)}, {height}, {width}); it deviates "
        f"from torch by {deviation:.1e} of the largest score"
    )


def _export_detector(model: "Detector", name: str, file: Path, sides: Sequence[int] | None) -> str:
    from fdconv_zoo.dense.detection.onnx import check_exportable, export_onnx

    check_exportable(model)
    height, width = _dense_size(sides, name)  # the sizes in the configuration are those to which images are resized
    deviation = export_onnx(model, file, (height, width))
    outputs = "boxes (N, 4), labels (N,), scores (N,)" + ", masks (N, 1, H, W)" * model.has_masks
    return (
        f"image (3, {height}, {width}) -> {outputs}; it deviates from torch by {deviation:.1e} of the largest score or "
        "of the image's longer side"
    )


def _sides(size: int | Sequence[int] | None) -> list[int]:
    return [size] if isinstance(size, int) else list(size or [])


def _dense_size(sides: Sequence[int] | None, name: str) -> tuple[int, int]:
    if not sides:
        raise ConfigError(
            f"--img-size is required: the program takes images of one size, and the configuration of {name} has none; "
            "give the height and width, such as --img-size 512 1024"
        )
    return sides[0], sides[-1]
