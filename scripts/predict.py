"""Name the classes of images: files, folders, or some of the images that ship with the package.

python scripts/predict.py --model runs/mine photo.jpg holiday/
python scripts/predict.py --model resnet50_fdconv.a1_in1k photo.jpg
python scripts/predict.py --model runs/demo --sample 8
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.training.build import build_model, resolve_preprocessing
from fdconv_zoo.training.cli import run_script
from fdconv_zoo.training.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="timm name, hf-hub:NAME, or the output folder of a run")
    parser.add_argument("--sample", type=int, metavar="N", help="N validation images of the packaged sample")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to show for an image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
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
    labels = model.pretrained_cfg.get("label_names")
    if labels:
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
        data = load_image_data(SAMPLE, split="validation", limit=sample)
        for record in data.validation:
            yield f"{SAMPLE} ({data.class_names[record['label']]})", open_image(record["image"], mode)


if __name__ == "__main__":
    run_script(main)
