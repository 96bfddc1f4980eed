"""Train a network that gives every pixel a class, on any backbone of timm, FDConv or not; or evaluate one.

    python scripts/segment.py --model resnet50_fdconv --dataset path/to/images_and_masks --output runs/mine
    python scripts/segment.py --config models/resnet50_fdconv.upernet_ade20k.yaml --output runs/ade20k
    accelerate launch --num_processes 4 --mixed_precision bf16 scripts/segment.py ...         (GPUs)
    python scripts/segment.py --evaluate runs/mine --dataset path/to/images_and_masks --scales 0.75 1 1.25 --flip \\
        --output results/mine

The backbone starts from its published weights; --no-pretrained starts from random ones. README.md describes what a run
leaves in --output.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.utils import ParseKwargs
from torch import Tensor, nn

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo.cli.recipes import DEFAULT_WORKERS, ArgumentParser, run_script
from fdconv_zoo.dense.canvases import FASHION_CANVASES
from fdconv_zoo.dense.evaluation import evaluation_loader
from fdconv_zoo.dense.saved_model import export
from fdconv_zoo.dense.segmentation.augment import training_transform
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset, SegmentationDataset
from fdconv_zoo.dense.segmentation.evaluate import evaluate_segmenter
from fdconv_zoo.dense.segmentation.loading import SegmentationData, load_segmentation_data
from fdconv_zoo.dense.segmentation.model import DECODERS, Segmenter
from fdconv_zoo.dense.segmentation.pictures import draw_predictions
from fdconv_zoo.dense.stand_ins import stand_in
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.files import replacing, write_text
from fdconv_zoo.training.batches import TrainingBatches, own_batches
from fdconv_zoo.training.flags import add_optimization_flags, check_optimization
from fdconv_zoo.training.loop import Task, fit, start
from fdconv_zoo.training.norms import NORMS, set_norm

SMOKE = {
    "limit": 4,
    "workers": 0,
    "pretrained": False,
    "checkpoint": None,
    "crop_size": 64,
    "short_side": None,
    "window": None,
    "epochs": 1,
    "updates_per_epoch": 2,
    "warmup_epochs": 0,
    "batch_size": 2,
    "mixed_precision": None,
    "grad_accum": 1,
    "log_every": 1,
}
METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
DEFAULTS = {"batch_size": 16, "lr": 1e-4, "sched": "poly", "warmup_epochs": 0.5, "min_lr": 0.0}


def build_parser() -> ArgumentParser:
    """The flags of this script, which are also the keys of a recipe."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], task="segmentation")
    boolean = {"action": argparse.BooleanOptionalAction}
    parser.add_argument("--evaluate", metavar="MODEL", help="instead of training: the folder of a run, or hf-hub:NAME")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        help="folder with images/ and masks/, ADE20K's or Cityscapes', parquet or arrow files, a Hub dataset, or "
        f"{FASHION_CANVASES} (made at first use)",
    )
    data.add_argument("--image-column", metavar="NAME", help="where several columns could be the images")
    data.add_argument("--mask-column", metavar="NAME", help="where several columns could be the masks")
    data.add_argument("--class-names-file", metavar="FILE", help="one name a line, in the order of the mask values")
    data.add_argument("--ignore-index", type=int, default=255, help="mask value without a label")
    data.add_argument("--train-split", metavar="NAME")
    data.add_argument("--validation-split", metavar="NAME")
    data.add_argument("--validation-fraction", type=float, default=0.1, help="split off where there is one split only")
    data.add_argument("--limit", type=int, metavar="N", help="use only N images of each split")
    data.add_argument(
        "--workers", type=int, default=DEFAULT_WORKERS, help="processes that read images, for each training process"
    )

    model = parser.add_argument_group("model")
    model.add_argument("--model", help="the backbone: a timm name")
    model.add_argument("--model-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    model.add_argument("--decoder", choices=DECODERS, default="upernet")
    model.add_argument("--decoder-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    model.add_argument("--pretrained", **boolean, default=True, help="start from the backbone's published weights")
    model.add_argument("--checkpoint", metavar="FILE", help="start from these weights of the backbone instead")
    model.add_argument("--norm", choices=NORMS, default="batch", help="BatchNorm of the backbone in training")
    model.add_argument("--ce-weight", type=float, default=1.0, help="of cross-entropy in the loss")
    model.add_argument("--dice-weight", type=float, default=0.0, help="of the Dice loss")

    augment = parser.add_argument_group("augmentation")
    augment.add_argument("--crop-size", type=int, nargs="+", default=[512], help="height and width, or both in one")
    augment.add_argument("--scale", type=float, nargs=2, default=[0.5, 2.0], help="factor of the random resizing")
    augment.add_argument("--short-side", type=int, metavar="N", help="resize so before, and in evaluation")
    augment.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    augment.add_argument("--photometric", **boolean, default=True, help="change colours")

    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--window", type=int, nargs="+", help="height and width of a sliding window; else whole")
    evaluation.add_argument("--stride", type=int, nargs="+", help="of the window; by default two thirds of it")
    evaluation.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these sizes")
    evaluation.add_argument("--flip", **boolean, default=False, help="average over mirror images, too")
    evaluation.add_argument("--pictures", type=int, default=6, metavar="N", help="validation images to draw")

    add_optimization_flags(parser)
    parser.set_defaults(**DEFAULTS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse(argv, smoke=SMOKE)
    check_arguments(args)
    with stand_in(args.dataset) if args.smoke else nullcontext(args.dataset) as dataset:
        evaluate_only(args, dataset) if args.evaluate else train(args, dataset)


def train(args: argparse.Namespace, dataset: str) -> None:
    """Train, from the beginning or from where the run was stopped."""
    accelerator, run = start(args)
    with accelerator.local_main_process_first():  # it checks the data and downloads the weights
        data = load_data(args, dataset)
        model = build_model(args, data).to(accelerator.device)
    batches = training_batches(args, data, model, accelerator)
    validation = evaluation_data(args, data, model)
    loader = accelerator.prepare(evaluation_loader(validation, args.batch_size, args.workers))

    def evaluate(model: Segmenter) -> dict[str, Any]:
        result = asdict(evaluate_segmenter(accelerator, model, loader, **view(args)))
        if accelerator.is_main_process:
            save_pictures(args, model, validation, run.path / "pictures.png")
        return result

    task = Task(loss=loss, evaluate=evaluate, export=export, metrics=METRICS)
    facts = {"train_images": len(data.train), "class_names": data.class_names}
    history = fit(task, model, batches, args, facts, accelerator=accelerator, run=run)
    best = max(history, key=lambda row: row["miou"])
    accelerator.print(
        f"best: mIoU {best['miou']:.2f} % after epoch {best['epoch']}, over {best['images']} images; load it with\n"
        f"    fdconv_zoo.dense.Segmenter.from_pretrained('{run.path}')"
    )


def evaluate_only(args: argparse.Namespace, dataset: str) -> None:
    """Evaluate a trained model: print its table, and write that and pictures."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    output = Path(args.output)
    results = output / "results.json"
    if results.exists() and not args.overwrite:
        raise ConfigError(f"{results} exists: choose another --output, or replace it with --overwrite")
    with accelerator.local_main_process_first():
        model = Segmenter.from_pretrained(args.evaluate.removeprefix("hf-hub:")).to(accelerator.device)
        data = load_data(args, dataset, split="validation", class_names=model.class_names)
    validation = evaluation_data(args, data, model)
    loader = accelerator.prepare(evaluation_loader(validation, args.batch_size, args.workers))
    result = evaluate_segmenter(accelerator, model, loader, **view(args))
    accelerator.print(result.as_table())
    accelerator.print(f"mIoU {result.miou:.2f} %, pixel accuracy {result.pixel_accuracy:.2f} %, {result.images} images")
    if accelerator.is_main_process:
        save_pictures(args, model, validation, output / "pictures.png")
        write_text(results, json.dumps({"model": args.evaluate, "dataset": args.dataset, **asdict(result)}, indent=2))
    accelerator.end_training()


def load_data(args: argparse.Namespace, dataset: str, **kwargs: Any) -> SegmentationData:
    """The images and masks that the flags name."""
    names = ("image_column", "mask_column", "train_split", "validation_split", "validation_fraction")
    names += ("class_names_file", "ignore_index", "seed", "limit")
    if "class_names" in kwargs:
        names = [name for name in names if name != "class_names_file"]
    chosen = {name: getattr(args, name) for name in names}
    return load_segmentation_data(dataset, num_workers=args.workers, **chosen, **kwargs)


def build_model(args: argparse.Namespace, data: SegmentationData) -> Segmenter:
    """The network that the flags name, for the classes of the data."""
    model = Segmenter(
        args.model,
        data.class_names,
        args.decoder,
        backbone_args=args.model_kwargs,
        decoder_args=args.decoder_kwargs,
        ce_weight=args.ce_weight,
        dice_weight=args.dice_weight,
        pretrained=args.checkpoint or args.pretrained,
    )
    set_norm(model.backbone, args.norm)
    return model


def loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """What training minimizes, of one batch."""
    return sum(model(images, masks).values())


def training_batches(
    args: argparse.Namespace, data: SegmentationData, model: Segmenter, accelerator: Accelerator
) -> TrainingBatches:
    """This process's batches of images and masks."""
    transform = training_transform(
        pair(args.crop_size),
        mean=model.mean,
        std=model.std,
        scale=tuple(args.scale),
        short_side=args.short_side,
        hflip=args.hflip,
        photometric=args.photometric,
    )
    dataset = SegmentationDataset(data.train, transform, seed=args.seed)
    return own_batches(args, dataset, accelerator, SegmentationDataset.collate)


def evaluation_data(args: argparse.Namespace, data: SegmentationData, model: Segmenter) -> EvaluationDataset:
    """The validation images as `model` takes them."""
    return EvaluationDataset(data.validation, mean=model.mean, std=model.std, short_side=args.short_side)


def view(args: argparse.Namespace) -> dict[str, Any]:
    """How an image is looked at in evaluation."""
    return {
        "window": args.window and pair(args.window),
        "stride": args.stride and pair(args.stride),
        "scales": args.scales,
        "flip": args.flip,
    }


def save_pictures(args: argparse.Namespace, model: Segmenter, validation: EvaluationDataset, path: Path) -> None:
    """Draw the first validation images with truth and prediction."""
    if args.pictures:
        picture = draw_predictions(model, validation, range(min(args.pictures, len(validation))), **view(args))
        with replacing(path) as temporary:
            picture.save(temporary, format="png")


def pair(numbers: Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    return numbers[0], numbers[-1]


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what can be known to be wrong from the command line alone."""
    if not args.dataset:
        raise ConfigError(f"--dataset is needed: a folder, files, a Hub dataset, or {FASHION_CANVASES}")
    if not (args.model or args.evaluate):
        raise ConfigError("--model is needed, a backbone, or an entry of models/ with --config")
    for name in ("crop_size", "window", "stride"):
        value = getattr(args, name)
        if value is not None and (len(value) > 2 or min(value) < 1):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: one number or two, of at least 1")
    if not args.scales or min(args.scales) <= 0:
        raise ConfigError(f"--scales {args.scales}: must be above 0")
    check_optimization(args)


if __name__ == "__main__":
    run_script(main)
