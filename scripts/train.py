"""Train or fine-tune an image classifier: any timm model, FDConv or not, on any labelled images.

Fine-tunes from the model's published weights by default; --no-pretrained starts from random ones.

    python scripts/train.py --model resnet50_fdconv --dataset path/to/images --output runs/mine
    python scripts/train.py --config models/resnet10s_fdconv.fashion_mnist.yaml --output runs/demo
    accelerate launch --num_processes 4 --mixed_precision bf16 scripts/train.py ...         (GPUs)
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/train.py ...               (processes on a CPU)

On several machines --output is a folder that all of them see. README.md describes what a run leaves there.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, ParseKwargs
from torch import Tensor, nn
from tqdm import tqdm

import fdconv_zoo
from fdconv_zoo.data import SAMPLE, load_image_data
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.build import build_model, check_forward, check_model_name, resolve_preprocessing
from fdconv_zoo.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fdconv_zoo.training.cli import DEFAULT_WORKERS, ArgumentParser, run_script
from fdconv_zoo.training.curves import draw_curves
from fdconv_zoo.training.errors import ConfigError
from fdconv_zoo.training.evaluate import evaluate, evaluation_loader
from fdconv_zoo.training.export import export_model
from fdconv_zoo.training.finite import check_finite
from fdconv_zoo.training.meter import Meter
from fdconv_zoo.training.randomness import seed_step
from fdconv_zoo.training.run_folder import RunFolder
from fdconv_zoo.training.tuning import CHOICES, freeze, train_mode

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

# What a resumed run may change: the result does not depend on it.
FREE_KEYS = ("config", "output", "resume", "overwrite", "workers", "checkpoint_every", "log_every", "versions")


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
    data.add_argument("--updates-per-epoch", type=int, metavar="N", help="length of an epoch; a stream needs it")
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

    optim = parser.add_argument_group("optimization")
    optim.add_argument("--epochs", type=int, default=20)
    optim.add_argument("--batch-size", type=int, default=64, help="images a batch and process")
    optim.add_argument("--grad-accum", type=int, default=1, help="batches accumulated for an update")
    optim.add_argument("--opt", default="adamw", help="any optimizer of timm")
    optim.add_argument("--lr", type=float, default=3e-4, help="at the end of the warm-up")
    optim.add_argument("--weight-decay", type=float, default=0.05, help="not for norms and biases")
    optim.add_argument("--layer-decay", type=float, help="learning rate factor from each layer to the one before it")
    optim.add_argument("--sched", choices=("cosine", "tanh", "poly"), default="cosine")
    optim.add_argument("--warmup-epochs", type=float, default=1)
    optim.add_argument("--warmup-lr", type=float, default=1e-6)
    optim.add_argument("--min-lr", type=float, default=1e-6)
    optim.add_argument("--clip-grad", type=float, default=1.0, help="norm of the gradient at most; 0 is off")
    optim.add_argument("--ema-decay", type=float, default=0.0, help="average weights, and evaluate those; 0 is off")
    optim.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="by default what accelerate is told")
    optim.add_argument("--seed", type=int, default=0)
    optim.add_argument("--checkpoint-every", type=int, default=0, metavar="N", help="updates; 0: every epoch only")
    optim.add_argument("--log-every", type=int, default=10, metavar="N", help="updates")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse(argv, smoke=SMOKE)
    check_arguments(args)
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.grad_accum,
            log_with="tensorboard",
            project_dir=args.output,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error  # such as bf16 on a GPU that has none
    run = RunFolder(args.output, resume=args.resume, overwrite=args.overwrite)
    set_seed(args.seed)

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
    batches = TrainingBatches(
        data.train,
        training_transform(args, preprocessing),
        mode="L" if preprocessing["input_size"][0] == 1 else "RGB",
        batch_size=args.batch_size,
        batches_per_update=accelerator.gradient_accumulation_steps,
        updates_per_epoch=args.updates_per_epoch,
        seed=args.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=args.workers,
        skip_bad_images=args.skip_bad_images,
        device=accelerator.device,
    )
    validation = evaluation_loader(
        data.validation, preprocessing, args.batch_size, args.workers, skip_bad_images=args.skip_bad_images
    )
    mix = None
    if args.mixup or args.cutmix:
        mix = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=len(data.class_names))
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.0 if mix else args.smoothing)  # Mixup smooths its labels itself

    # Optimization. The learning rate is a function of the update's number, so the scheduler has no state.
    optimizer = create_optimizer_v2(
        model, args.opt, lr=args.lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        min_lr=args.min_lr,
        step_on_epochs=False,
        updates_per_epoch=batches.updates_per_epoch,
    )
    # Copied before `prepare`, whose mixed-precision wrapper of forward() would go on using the original's weights.
    ema = ModelEmaV3(model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
    model, optimizer, validation = accelerator.prepare(model, optimizer, validation)
    plain_model = accelerator.unwrap_model(model)
    evaluated_model = ema.module if ema else plain_model

    # The run: a new one, or where it was stopped.
    config = {
        **vars(args),
        "grad_accum": accelerator.gradient_accumulation_steps,
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "updates_per_epoch": batches.updates_per_epoch,
        "train_images": getattr(data.train, "num_rows", None),  # a stream has no number
        "class_names": data.class_names,
        "versions": {"fdconv_zoo": fdconv_zoo.__version__, "timm": timm.__version__, "torch": torch.__version__},
    }
    if accelerator.is_main_process:
        run.start(config, free_keys=FREE_KEYS)
    accelerator.wait_for_everyone()
    progress = Progress()
    if run.newest_checkpoint is not None:
        accelerator.print(f"resuming from {run.newest_checkpoint}")
        progress = load_checkpoint(accelerator, run.newest_checkpoint, ema)
    elif args.resume:
        accelerator.print(f"--resume: no checkpoint in {run.path}, so the run begins from the beginning")
    if data.skipped:
        accelerator.print(f"left out {data.skipped} images that could not be read")
    with run.writing():
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": progress.update}})
        if accelerator.is_main_process:
            run.write_metrics(progress.history)  # a run killed between metrics and checkpoint has a line too many

    bar = tqdm(
        total=args.epochs * batches.updates_per_epoch,
        initial=progress.update,
        unit="update",
        mininterval=0.1 if sys.stderr.isatty() else 30,
        disable=not accelerator.is_main_process,
    )
    for epoch in range(progress.epoch, args.epochs):
        bar.set_description(f"epoch {epoch + 1}/{args.epochs}")
        train_mode(model)
        meter = Meter(accelerator, args.batch_size, progress.loss_sum, progress.step)
        for images, labels in batches.epoch(epoch, done=progress.step):
            scheduler.step_update(progress.update)
            seed_step(args.seed, epoch * batches.batches_per_epoch + progress.step, accelerator.process_index)
            with accelerator.accumulate(model):
                if mix:
                    images, labels = mix(images, labels)
                loss = loss_fn(model(images), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.clip_grad:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(loss)
            progress.step += 1
            if not accelerator.sync_gradients:
                continue

            progress.update += 1
            if ema:
                ema.update(plain_model, step=progress.update)
            bar.update()
            if progress.update % args.log_every == 0:
                loss, speed = meter.recent()
                check_finite(loss, update=progress.update, checkpoint=run.newest_checkpoint)
                lr = max(group["lr"] for group in optimizer.param_groups)
                bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.2e}, {speed:.0f} images/s")
                with run.writing():
                    accelerator.log({"train/loss": loss, "train/lr": lr}, step=progress.update)
            is_last = progress.step == batches.batches_per_epoch
            if args.checkpoint_every and progress.update % args.checkpoint_every == 0 and not is_last:
                progress.loss_sum = meter.total()
                check_finite(progress.loss_sum, plain_model, update=progress.update, checkpoint=run.newest_checkpoint)
                with run.writing():
                    save_checkpoint(accelerator, run.checkpoints, progress, ema)

        train_loss, train_speed = meter.epoch()
        check_finite(train_loss, plain_model, update=progress.update, checkpoint=run.newest_checkpoint)
        result = evaluate(accelerator, evaluated_model, validation)
        row = {
            "epoch": epoch + 1,
            "update": progress.update,
            "lr": max(group["lr"] for group in optimizer.param_groups),
            "train_loss": train_loss,
            "train_images_per_second": train_speed,
            **asdict(result),
        }
        is_best = result.top1 > progress.best_top1
        progress = Progress(epoch=epoch + 1, update=progress.update, history=[*progress.history, row])
        top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f} %"
        if accelerator.is_main_process:
            bar.write(
                f"epoch {epoch + 1}/{args.epochs}: training loss {train_loss:.3f}, validation loss {result.loss:.3f}, "
                f"top-1 {result.top1:.2f} %{top5}, {train_speed:.0f} images/s"
            )

        # The checkpoint comes last: a run killed before it repeats what lies between, and writes the same again.
        with run.writing():
            accelerator.log({"validation/loss": result.loss, "validation/top1": result.top1}, step=progress.update)
            if accelerator.is_main_process:
                for folder in [run.path / "last"] + [run.path] * is_best:
                    export_model(
                        evaluated_model,
                        folder,
                        class_names=data.class_names,
                        preprocessing=preprocessing,
                        model_args=model_args,
                    )
                run.write_metrics(progress.history)
                draw_curves(progress.history, run.path / "curves.png")
            save_checkpoint(accelerator, run.checkpoints, progress, ema)
    bar.close()
    if batches.skipped:
        accelerator.print(f"left out {batches.skipped} times an image of the stream that could not be read")
    with run.writing():
        accelerator.end_training()
    best = max(progress.history, key=lambda row: row["top1"])
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
    for name in ("epochs", "batch_size", "grad_accum", "log_every", "img_size", "updates_per_epoch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.opt not in list_optimizers():
        raise ConfigError(f"--opt {args.opt}: timm has {', '.join(list_optimizers())}")
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise ConfigError(
            f"--batch-size {args.batch_size}: --mixup and --cutmix pair the images of a batch; make it even"
        )


if __name__ == "__main__":
    run_script(main)
