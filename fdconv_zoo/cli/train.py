"""Training and fine-tuning of image classifiers."""

import argparse
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from timm.data import Mixup
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fdconv_zoo.cli.augmentation import add_augmentation_flags, training_transform
from fdconv_zoo.cli.class_weights import BALANCED
from fdconv_zoo.cli.losses import add_loss_flags, build_criterion, build_teacher, check_teacher_name
from fdconv_zoo.cli.named_transforms import named_transform
from fdconv_zoo.cli.recipes import RecipeParser, add_arguments_flag, add_split_flags, add_workers_flag
from fdconv_zoo.cli.task import SMOKE, CommandTask, run_task
from fdconv_zoo.data import SAMPLE, load_image_data
from fdconv_zoo.data.columns import read_labels
from fdconv_zoo.data.loading import ImageData
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import build_model, check_forward, check_model_name, image_mode, resolve_preprocessing
from fdconv_zoo.store.export import export_model
from fdconv_zoo.training.batches import TrainingBatches, make_batches, training_images
from fdconv_zoo.training.class_results import write_class_results
from fdconv_zoo.training.data_checksum import data_checksum
from fdconv_zoo.training.distillation import distillation_loss
from fdconv_zoo.training.evaluate import Evaluation, evaluate, evaluation_loader
from fdconv_zoo.training.run_folder import DATA
from fdconv_zoo.training.tuning import CHOICES, freeze


class ClassificationTask(CommandTask):
    """Training of any timm model on any labelled images."""

    name = "classification"
    description = "Train or fine-tune an image classifier: any timm model, FDConv or not, on any labelled images."
    metrics: ClassVar = {"top1": "top-1", "top5": "top-5"}
    smoke: ClassVar = {
        **SMOKE,
        "dataset": SAMPLE,
        "image_column": None,
        "label_column": None,
        "train_split": None,
        "validation_split": None,
        "streaming": False,
        "limit": 8,
    }
    data: ImageData
    result: Evaluation  # the latest one

    @classmethod
    def add_flags(cls, parser: RecipeParser) -> None:
        """Add the task's own flags."""
        boolean = {"action": argparse.BooleanOptionalAction}

        data = parser.add_argument_group("data")
        data.add_argument("--dataset", help=f"folder, CSV, parquet or arrow files, Hub dataset, or {SAMPLE} (packaged)")
        data.add_argument("--image-column", metavar="NAME", help="required if several columns hold images")
        data.add_argument("--label-column", metavar="NAME", help="required if several columns could be the class")
        add_split_flags(data)
        data.add_argument("--skip-bad-images", **boolean, default=False, help="skip and count unreadable images")
        data.add_argument("--streaming", **boolean, default=False, help="read while training, for large datasets")
        data.add_argument(
            "--balanced-sampling", **boolean, default=False, help="draw images of all classes equally often"
        )
        add_workers_flag(data)

        model = parser.add_argument_group("model")
        model.add_argument("--model", help="timm name, hf-hub:NAME, or the output folder of a run")
        add_arguments_flag(model, "--model-kwargs", "model")
        model.add_argument("--pretrained", **boolean, default=True, help="start from the model's published weights")
        model.add_argument("--checkpoint", metavar="FILE", help="start from these weights instead")
        model.add_argument("--in-chans", type=int, choices=(1, 3), help="1: grayscale, 3: RGB; default: the model's")
        model.add_argument("--img-size", type=int, help="side in pixels; default: the model's")
        model.add_argument("--mean", type=float, nargs="+", help="of the pixels, in 0..1; default: the model's")
        model.add_argument("--std", type=float, nargs="+", help="of the pixels, in 0..1; default: the model's")
        model.add_argument(
            "--interpolation", choices=("bilinear", "bicubic", "nearest"), help="of resizing; default: the model's"
        )
        model.add_argument("--crop-pct", type=float, help="part of the resized image that validation crops out")
        model.add_argument("--drop", type=float, help="dropout rate before the classifier")
        model.add_argument("--drop-path", type=float, help="rate of stochastic depth")
        model.add_argument(
            "--tune", choices=CHOICES, default="all", help="what to train; modulators: KSM, FBM and the head"
        )
        model.add_argument("--grad-checkpointing", **boolean, default=False, help="less memory, more time")

        add_augmentation_flags(parser.add_argument_group("augmentation"))

        add_loss_flags(parser.add_argument_group("loss"))

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that can be found without reading data; bring model names to timm's form."""
        if args.dataset is None:
            raise ConfigError(f"--dataset is required: a folder, files, a Hub dataset, or {SAMPLE}")
        if args.model is None:
            raise ConfigError("--model is required, or an entry of models/ with --config")
        super().check_arguments(args)
        if args.scale[1] > 1:
            raise ConfigError(f"--scale {args.scale}: parts of the image's area, so at most 1")
        if (args.mixup or args.cutmix) and args.batch_size % 2:
            raise ConfigError(
                f"--batch-size {args.batch_size}: --mixup and --cutmix pair the images of a batch; make it even"
            )
        if args.streaming and (args.balanced_sampling or args.class_weights == [BALANCED] or args.aug_repeats > 1):
            raise ConfigError(
                "--streaming: --balanced-sampling, --class-weights balanced and --aug-repeats need to know all images "
                "beforehand; load without streaming, or leave them out"
            )
        for words in args.transforms:
            named_transform(words)
        args.model = check_model_name(args.model)
        if args.teacher:
            args.teacher = check_teacher_name(args.teacher)

    def load_data(self, dataset: str) -> None:
        """Find and check the images of a dataset, and set `data`."""
        args = self.args
        self.data = load_image_data(
            dataset,
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

    @property
    def left_out(self) -> str:
        """Describe how many images could not be read."""
        return f"skipped {self.data.skipped} images that could not be read" if self.data.skipped else ""

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the run depends on besides the flags, such as the class names."""
        facts = {
            "num_train_images": getattr(self.data.train, "num_rows", None),  # the length of a stream is unknown
            "class_names": self.data.class_names,
        }
        if not self.args.streaming:
            facts[DATA] = data_checksum([self.data.train, self.data.validation], self.args.workers)
        return facts

    def build_model(self) -> nn.Module:
        """Build the model that the flags name. Also sets the loss, and for export `model_args` and `preprocessing`."""
        args = self.args
        model, self.model_args = build_model(
            args.model,
            num_classes=len(self.data.class_names),
            pretrained=args.pretrained,
            checkpoint=args.checkpoint,
            in_chans=args.in_chans,
            img_size=args.img_size,
            regularisation={"drop_rate": args.drop, "drop_path_rate": args.drop_path},
            model_kwargs=args.model_kwargs,
        )
        self.preprocessing = resolve_preprocessing(
            model,
            in_chans=args.in_chans,
            img_size=args.img_size,
            mean=args.mean,
            std=args.std,
            interpolation=args.interpolation,
            crop_pct=args.crop_pct,
        )
        check_forward(model, self.preprocessing["input_size"])
        self._reset_other_classifier(model)
        freeze(model, args.tune)
        self.criterion = self._build_criterion().to(self.accelerator.device)
        self.teacher = None
        if args.teacher:
            self.teacher = build_teacher(args.teacher, self.data.class_names, self.preprocessing)
            self.teacher.to(self.accelerator.device)
        if args.grad_checkpointing:
            try:
                model.set_grad_checkpointing()
            except AssertionError as error:
                raise ConfigError(f"--grad-checkpointing: {args.model} does not support it") from error
        return model

    def _reset_other_classifier(self, model: nn.Module) -> None:
        """Reinitialize the classifier if only the names of its classes differ. timm does so if their number differs."""
        args = self.args
        labels = list(model.pretrained_cfg.get("label_names") or ())
        loaded = args.pretrained and not args.checkpoint and len(labels) == model.num_classes
        if loaded and labels != self.data.class_names:
            self.accelerator.print(f"{args.model} was trained on other classes: its classifier is reinitialized")
            model.reset_classifier(model.num_classes)

    def _build_criterion(self) -> nn.Module:
        counts = np.zeros(len(self.data.class_names), int)
        if self.args.class_weights == [BALANCED]:
            counts = np.bincount(read_labels(self.data.train), minlength=len(counts))
        return build_criterion(self.args, counts)

    def training_batches(self, model: nn.Module) -> TrainingBatches:
        """Make this process's batches of images (B, C, H, W) and class numbers (B,)."""
        dataset = training_images(
            self.data.train,
            training_transform(self.args, self.preprocessing),
            mode=image_mode(self.preprocessing),
            seed=self.args.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            skip_bad_images=self.args.skip_bad_images,
        )
        weights = None
        if self.args.balanced_sampling:
            labels = read_labels(self.data.train)
            weights = 1 / np.bincount(labels)[labels]
        return make_batches(self.args, dataset, self.accelerator, repeats=self.args.aug_repeats, weights=weights)

    def validation_loader(self, model: nn.Module) -> DataLoader:
        """Make the loader of the validation images and their class numbers."""
        return evaluation_loader(
            self.data.validation,
            self.preprocessing,
            self.args.batch_size,
            self.args.workers,
            skip_bad_images=self.args.skip_bad_images,
        )

    @cached_property
    def mix(self) -> Mixup | None:
        """Mixup and CutMix of a batch; None if both are off."""
        args = self.args
        if not (args.mixup or args.cutmix):
            return None
        classes = len(self.data.class_names)
        return Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch of images (B, C, H, W) and class numbers (B,)."""
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        logits = model(images)
        loss = self.criterion(logits, labels)
        if self.teacher is None:
            return loss
        with self.accelerator.autocast():
            aim = self.teacher(images)
        return loss + self.args.distill_weight * distillation_loss(logits, aim, self.args.temperature)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Evaluate the model, and return the figures of `Evaluation`."""
        self.result = evaluate(self.accelerator, model, self.validation)
        return self.result.figures()

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model in the form that `timm.create_model` loads, and its results for each class."""
        write_class_results(self.result.labels, self.result.predictions, self.data.class_names, folder)
        export_model(
            model,
            folder,
            class_names=self.data.class_names,
            preprocessing=self.preprocessing,
            model_args=self.model_args,
        )

    def loading_code(self) -> str:
        """Return the Python code that loads the trained model, on one line."""
        return f"import timm, fdconv_zoo; model = timm.create_model({f'local-dir:{self.output}'!r}, pretrained=True)"


build_parser = ClassificationTask.build_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train a classifier. `argv` defaults to `sys.argv[1:]`."""
    run_task(ClassificationTask, argv)
