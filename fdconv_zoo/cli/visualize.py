"""Writes a report on what FDConv does in a model: maps of frequency bands, spectra and kernels, in one HTML file."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from fdconv_zoo.analysis.report import ReportImage, check_layers, render_report
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import class_names, load_dense_model, read_images
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.errors import ConfigError, DataError, listed
from fdconv_zoo.index import timm_name
from fdconv_zoo.store.build import build_model, image_mode, resolve_preprocessing
from fdconv_zoo.store.files import write_text

if TYPE_CHECKING:  # these need the extra `dense`
    from fdconv_zoo.dense import Detector, Segmenter

NamedImages = Iterable[tuple[str, Image.Image]]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo visualize",
        description="Write a report on what FDConv does in a model, for some images: predictions, the map of each "
        "frequency band beside the image and its correlation with edges, spectra, groups and similarity of "
        "kernels, and how far kernels move between the first two images. It is one HTML file, with all its pictures.",
    )
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the report, such as report.html")
    parser.add_argument("--overwrite", action="store_true", help="replace the report, if there is one")
    parser.add_argument("--sample", type=int, help="also N validation images of the packaged sample")
    parser.add_argument(
        "--layers",
        metavar="GLOB",
        help="draw the layers with these names, such as 'layer4.*'; default: the first, the middle and the last of "
        "each stage",
    )
    parser.add_argument("--top", type=int, default=3, metavar="K", help="a classifier's classes to show per image")
    parser.add_argument("--short-side", type=int, help="resize images to this shorter side before segmentation")
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a classifier's trained weights, not random ones",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="device of the model")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write a report. `argv` defaults to `sys.argv[1:]`.

    Raises:
        ConfigError: there are no images, no such model, or no such FDConv layers in it; or the output exists.
        DataError: images cannot be read; raised after the report on the others is written.
    """
    args = build_parser().parse_args(argv)
    check_ranges(args)
    if not args.images and args.sample is None:
        raise ConfigError("no images: name image files or folders, or use --sample N")
    if args.output.is_dir() or (args.output.exists() and not args.overwrite):
        raise ConfigError(f"--output {args.output} exists: choose another file, or replace a report with --overwrite")
    name = timm_name(args.model)
    problems: list[str] = []
    dense_model = load_dense_model(name)
    if dense_model is None:
        model, _ = build_model(name, pretrained=args.pretrained)
        model.eval().to(args.device)
        check_layers(model, args.layers)
        preprocessing = resolve_preprocessing(model, use_test_size=True)
        found = read_images(args.images, args.sample, image_mode(preprocessing), problems)
        images = [*_classified(model, class_names(model, name), preprocessing, found, args.top)]
    else:
        if not args.pretrained:
            raise ConfigError(f"--no-pretrained is for classifiers, and {args.model} is none: leave it out")
        dense_model.to(args.device)
        model = dense_model.backbone
        check_layers(model, args.layers)
        found = read_images(args.images, args.sample, "RGB", problems)
        images = [*_predicted(dense_model, found, args.short_side)]
    if not images:
        raise DataError(f"no image could be read:{listed(problems)}")
    write_text(args.output, render_report(model, args.model, images, args.layers))
    print(f"{args.output}: {len(images)} image{'s' * (len(images) != 1)}")
    if problems:
        raise DataError(f"{len(problems)} files were left out:{listed(problems)}")


def _classified(
    model: nn.Module, names: Sequence[str], preprocessing: dict, images: NamedImages, top: int
) -> Iterator[ReportImage]:
    transform = create_transform(**preprocessing)
    device = next(model.parameters()).device
    for name, image in images:
        pixels = transform(image)[None]
        with torch.inference_mode():
            best = model(pixels.to(device)).float().softmax(1)[0].topk(min(top, len(names)))
        classes = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        prediction = "\n".join(f"{names[index]} {100 * probability:.1f} %" for probability, index in classes)
        yield ReportImage(
            _short(name), pixels, as_picture(pixels, preprocessing["mean"], preprocessing["std"]), prediction
        )


def _predicted(model: "Segmenter | Detector", images: NamedImages, short_side: int | None) -> Iterator[ReportImage]:
    from fdconv_zoo.dense.prediction import make_predictor

    predictor = make_predictor(model, short_side=short_side)
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:1].cpu()))
    try:
        for name, image in images:
            seen.clear()
            picture, prediction, _ = predictor(image)
            seen_picture = as_picture(seen[0], model.config["mean"], model.config["std"])
            yield ReportImage(_short(name), seen[0].clone(), seen_picture, prediction, picture)
    finally:
        hook.remove()


def _short(name: str) -> str:
    """Return a file's name without its folder, because reports are shared."""
    return Path(name).name if Path(name).is_file() else name


def as_picture(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalization of an image (1, C, H, W). Returns float32 in 0..1, (H, W, 3) or (H, W)."""
    scaled = pixels[0].float() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return scaled.clamp(0, 1).permute(1, 2, 0).numpy().squeeze(2 if len(scaled) == 1 else ())
