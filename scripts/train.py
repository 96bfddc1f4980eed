"""Train or fine-tune an image classifier: any timm model, FDConv or not, on any labelled images.

Fine-tunes from the model's published weights by default; --no-pretrained starts from random ones.

    python scripts/train.py --model resnet50_fdconv --dataset path/to/images --output runs/mine
    python scripts/train.py --config models/resnet10s_fdconv.fashion_mnist.demo.yaml --output runs/demo
    accelerate launch --num_processes 4 --mixed_precision bf16 scripts/train.py ...         (GPUs)
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/train.py ...               (processes on a CPU)

On several machines --output is a folder that all of them see. README.md describes what a run leaves there.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import Mixup, create_transform
from timm.utils import ParseKwargs
from torch import Tensor, nn

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo.cli.recipes import DEFAULT_WORKERS, ArgumentParser, run_script
from fdconv_zoo.data import SAMPLE, load_image_data
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import build_model, check_forward, check_model_name, resolve_preprocessing
from fdconv_zoo.store.export import export_model
from fdconv_zoo.training.batches import own_batches, training_images
from fdconv_zoo.training.evaluate import evaluate, evaluation_loader
from fdconv_zoo.training.flags import add_optimization_flags, check_optimization
from fdconv_zoo.training.loop import Task, fit, start
from fdconv_zoo.training.tuning import CHOICES, freeze

SMOKE = {
    "dataset": SAMPLE,
    "image_column": None,
    "label_column": None,
    "train_split": None,
    "validation_split": None,
    "streaming": False,
    "limit": 8,
    "workers": 0,
    "pretrained": False,
    "checkpoint": None,
    "epochs": 1,
    "warmup_epochs": 0,
    "batch_size": 2,
    "mixed_precision": None,
    "grad_accum": 1,
    "log_every": 1,
}


def build_parser() -> ArgumentParser:
    """The flags of this script, which are also the keys of a recipe."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    boolean = {"action": argparse.BooleanOptionalAction}

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help=f"folder, parquet or arrow files, a Hub dataset, or {SAMPLE} (in the package)")
    data.add_argument("--image-column", metavar="NAME", help="where several columns hold images")
    data.add_argument("--label-column", metavar="NAME", help="where several columns could be the class")
    data.add_argument("--train-split", metavar="NAME")
    data.add_argument("--validation-split", metavar="NAME")
    data.add_argument("--validation-fraction", type=float, default=0.1, help="split off where there is one split only")
    data.add_argument("--limit", type=int, metavar="N", help="use only N images of each split")
    data.add_argument("--skip-bad-images", **boolean, default=False, help="leave out unreadable images and count them")
    data.add_argument("--streaming", **boolean, default=False, help="read while training; for what does not fit")
    data.add_argument(
        "--workers", type=int, default=DEFAULT_WORKERS, help="processes that read images, for each training process"
    )

    model = parser.add_argument_group("model")
    model.add_argument("--model", help="timm name, hf-hub:NAME, or the output folder of a run")
    model.add_argument("--model-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    model.add_argument("--pretrained", **boolean, default=True, help="start from the model's published weights")
    model.add_argument("--checkpoint", metavar="FILE", help="start from these weights instead")
    model.add_argument("--in-chans", type=int, choices=(1, 3), help="1: grayscale, 3: RGB; by default the model's own")
    model.add_argument("--img-size", type=int, metavar="N", help="side in pixels; by default the model's own")
    model.add_argument("--mean", type=float, nargs="+", help="of the pixels, in 0..1; by default the model's own")
    model.add_argument("--std", type=float, nargs="+")
    model.add_argument("--interpolation", choices=("bilinear", "bicubic", "nearest"))
    model.add_argument("--crop-pct", type=float, help="part of the resized image that validation crops out")
    model.add_argument("--drop", type=float, help="dropout before the classifier")
    model.add_argument("--drop-path", type=float, help="stochastic depth")
    model.add_argument("--tune", choices=CHOICES, default="all", help="modulators: KSM, FBM and the head; rest frozen")
    model.add_argument("--grad-checkpointing", **boolean, default=False, help="less memory, more time")

    augment = parser.add_argument_group("augmentation")
    augment.add_argument("--scale", type=float, nargs=2, default=[0.35, 1.0], help="area of the random crop")
    augment.add_argument("--ratio", type=float, nargs=2, default=[0.75, 4 / 3], help="aspect ratio of the random crop")
    augment.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    augment.add_argument("--aa", default="rand-m7-mstd0.5-inc1", help="RandAugment policy, or none")
    augment.add_argument("--color-jitter", type=float, default=0.4, help="only where --aa is none")
    augment.add_argument("--reprob", type=float, default=0.1, help="probability of random erasing")
    augment.add_argument("--mixup", type=float, default=0.0, help="alpha; 0 is off")
    augment.add_argument("--cutmix", type=float, default=0.0, help="alpha; 0 is off")
    augment.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")

    add_optimization_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse(argv, smoke=SMOKE)
    check_arguments(args)
    accelerator, run = start(args)

    # Data and model. One process of each machine goes first: it checks the images and downloads the weights.
    args.model = check_model_name(args.model)
    with accelerator.local_main_process_first():
        data = load_image_data(
            args.dataset,
            image_column=args.image_column,
            label_column=args.label_column,
            train_split=args.train_split,
            validation_split=args.validation_split,
            validation_fraction=args.validation_fraction,
            seed=args.seed,
            streaming=args.streaming,
            skip_bad_images=args.skip_bad_images,
            num_workers=args.workers,
            limit=args.limit,
        )
        model, model_args = build_model(
            args.model,
            num_classes=len(data.class_names),
            pretrained=args.pretrained,
            checkpoint=args.checkpoint,
            in_chans=args.in_chans,
            img_size=args.img_size,
            regularisation={"drop_rate": args.drop, "drop_path_rate": args.drop_path},
            model_kwargs=args.model_kwargs,
        )
    preprocessing = resolve_preprocessing(
        model,
        in_chans=args.in_chans,
        img_size=args.img_size,
        mean=args.mean,
        std=args.std,
        interpolation=args.interpolation,
        crop_pct=args.crop_pct,
    )
    check_forward(model, preprocessing["input_size"])
    freeze(model, args.tune)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except AssertionError as error:
            raise ConfigError(f"--grad-checkpointing: {args.model} does not offer it") from error
    model.to(accelerator.device)

    # Batches.
    dataset = training_images(
        data.train,
        training_transform(args, preprocessing),
        mode="L" if preprocessing["input_size"][0] == 1 else "RGB",
        seed=args.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        skip_bad_images=args.skip_bad_images,
    )
    batches = own_batches(args, dataset, accelerator)
    validation = accelerator.prepare(
        evaluation_loader(
            data.validation, preprocessing, args.batch_size, args.workers, skip_bad_images=args.skip_bad_images
        )
    )
    mix = None
    if args.mixup or args.cutmix:
        mix = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=len(data.class_names))
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.0 if mix else args.smoothing)  # Mixup smooths its labels itself

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if mix:
            images, labels = mix(images, labels)
        return loss_fn(model(images), labels)

    def export(model: nn.Module, folder: Path) -> None:
        export_model(model, folder, class_names=data.class_names, preprocessing=preprocessing, model_args=model_args)

    task = Task(
        loss=loss,
        evaluate=lambda model: asdict(evaluate(accelerator, model, validation)),
        export=export,
        metrics={"top1": "top-1", "top5": "top-5"},
    )
    facts = {
        "train_images": getattr(data.train, "num_rows", None),  # a stream has no number
        "class_names": data.class_names,
    }
    if data.skipped:
        accelerator.print(f"left out {data.skipped} images that could not be read")
    history = fit(task, model, batches, args, facts, accelerator=accelerator, run=run)
    if batches.skipped:
        accelerator.print(f"left out {batches.skipped} times an image of the stream that could not be read")
    best = max(history, key=lambda row: row["top1"])
    accelerator.print(
        f"best: top-1 {best['top1']:.2f} % after epoch {best['epoch']}, over {best['images']} images; load it with\n"
        f"    timm.create_model('local-dir:{run.path}', pretrained=True)"
    )


def training_transform(args: argparse.Namespace, preprocessing: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """The random transform of a training image."""
    try:
        return create_transform(
            preprocessing["input_size"],
            is_training=True,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            color_jitter=args.color_jitter,
            auto_augment=None if args.aa == "none" else args.aa,
            interpolation=preprocessing["interpolation"],
            mean=preprocessing["mean"],
            std=preprocessing["std"],
            re_prob=args.reprob,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"--aa {args.aa}: not a policy that timm knows, such as rand-m7-mstd0.5-inc1") from error


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what can be known to be wrong from the command line alone."""
    if args.dataset is None:
        raise ConfigError(f"--dataset is needed: a folder, files, a Hub dataset, or {SAMPLE}")
    if args.model is None:
        raise ConfigError("--model is needed, or an entry of models/ with --config")
    if args.img_size is not None and args.img_size < 1:
        raise ConfigError(f"--img-size {args.img_size}: must be at least 1")
    check_optimization(args)
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise ConfigError(
            f"--batch-size {args.batch_size}: --mixup and --cutmix pair the images of a batch; make it even"
        )


if __name__ == "__main__":
    run_script(main)
