"""Training and evaluation of segmenters."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset as Table
from PIL import Image

from fdconv_zoo.cli.class_weights import class_weights
from fdconv_zoo.cli.dense import DENSE_SMOKE, DenseTask, add_backbone_flags, add_weights_flags
from fdconv_zoo.cli.recipes import RecipeParser, add_arguments_flag, add_split_flags, add_workers_flag
from fdconv_zoo.cli.task import run_task
from fdconv_zoo.cli.trained_on import Evaluated, evaluated_part
from fdconv_zoo.dense.canvases import FASHION_CANVASES
from fdconv_zoo.dense.freezing import freeze_unused
from fdconv_zoo.dense.segmentation.augment import training_transform
from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset, SegmentationDataset
from fdconv_zoo.dense.segmentation.evaluate import evaluate_segmenter
from fdconv_zoo.dense.segmentation.loading import SegmentationData, load_segmentation_data
from fdconv_zoo.dense.segmentation.metrics import SegmentationResult
from fdconv_zoo.dense.segmentation.model import DECODERS, Segmenter
from fdconv_zoo.dense.segmentation.pairs import ImageMaskPairs
from fdconv_zoo.dense.segmentation.pictures import draw_predictions
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.batches import TrainingBatches, make_batches
from fdconv_zoo.training.confusion import draw_confusion, write_confusion

_LOWEST = 3  # classes that the line of an epoch names, those of lowest IoU


class SegmentationTask(DenseTask):
    """Training and evaluation of networks that give every pixel a class."""

    name = "segmentation"
    description = (
        "Train a network that gives every pixel a class, on any backbone of timm, FDConv or not; or evaluate one."
    )
    metrics: ClassVar = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
    smoke: ClassVar = {**DENSE_SMOKE, "short_side": None, "window": None}
    defaults: ClassVar = {"batch_size": 16, "lr": 1e-4, "sched": "poly", "warmup_epochs": 0.5, "min_lr": 0.0}
    model_type = Segmenter
    class_metrics = ("iou",)
    data: SegmentationData
    part: Evaluated

    @classmethod
    def add_flags(cls, parser: RecipeParser) -> None:
        """Add the task's own flags."""
        super().add_flags(parser)
        boolean = {"action": argparse.BooleanOptionalAction}

        data = parser.add_argument_group("data")
        data.add_argument(
            "--dataset",
            help="folder with images/ and masks/, folder of ADE20K or Cityscapes, parquet or arrow files, Hub dataset, "
            f"or {FASHION_CANVASES} (generated at first use)",
        )
        data.add_argument("--image-column", metavar="NAME", help="required if several columns could be the images")
        data.add_argument("--mask-column", metavar="NAME", help="required if several columns could be the masks")
        data.add_argument("--class-names-file", metavar="FILE", help="one name per line, in order of the mask values")
        data.add_argument(
            "--ignore-index", type=int, help="mask value of pixels without a label; default: 255, or the model's"
        )
        add_split_flags(data)
        add_workers_flag(data)

        model = parser.add_argument_group("model")
        add_backbone_flags(model)
        model.add_argument("--decoder", choices=DECODERS, default="upernet", help="decoder after the backbone")
        add_arguments_flag(model, "--decoder-kwargs", "decoder")
        add_weights_flags(model, norm="batch")
        model.add_argument("--ce-weight", type=float, default=1.0, help="weight of the cross-entropy in the loss")
        model.add_argument("--dice-weight", type=float, default=0.0, help="weight of the Dice loss")
        model.add_argument("--focal-weight", type=float, default=0.0, help="weight of the focal loss")
        model.add_argument("--lovasz-weight", type=float, default=0.0, help="weight of the Lovász-softmax loss")
        model.add_argument(
            "--class-weights",
            nargs="+",
            metavar="X",
            help="of each class in the cross-entropy, or 'balanced': inverse to its pixels",
        )
        model.add_argument(
            "--hard-pixels",
            type=float,
            default=1.0,
            help="share of pixels in the cross-entropy, those of largest loss",
        )
        model.add_argument(
            "--auxiliary-weight",
            type=float,
            default=0.0,
            help="weight of the loss of a second head, on the third stage and only in training; UPerNet's is 0.4",
        )

        augment = parser.add_argument_group("augmentation")
        augment.add_argument(
            "--crop-size", type=int, nargs="+", default=[512], help="height and width, or one for both"
        )
        augment.add_argument("--scale", type=float, nargs=2, default=[0.5, 2.0], help="range of the random resizing")
        augment.add_argument("--short-side", type=int, help="resize to this first, also in evaluation")
        augment.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
        augment.add_argument("--vflip", type=float, default=0.0, help="probability of a vertical flip")
        augment.add_argument("--rotate", type=float, default=0.0, help="largest angle of a random rotation, in degrees")
        augment.add_argument("--photometric", **boolean, default=True, help="change colours at random")

        evaluation = parser.add_argument_group("evaluation")
        evaluation.add_argument(
            "--window", type=int, nargs="+", help="height and width of a sliding window; default: whole images"
        )
        evaluation.add_argument("--stride", type=int, nargs="+", help="of the window; default: two thirds of it")
        evaluation.add_argument(
            "--scales", type=float, nargs="+", default=[1.0], help="average over these sizes of the image"
        )
        evaluation.add_argument("--flip", **boolean, default=False, help="also average over mirror images")
        evaluation.add_argument("--pictures", type=int, default=6, help="validation images to draw")

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that can be found without reading data."""
        if not args.dataset:
            raise ConfigError(f"--dataset is required: a folder, files, a Hub dataset, or {FASHION_CANVASES}")
        super().check_arguments(args)
        for name in ("crop_size", "window", "stride"):
            value = getattr(args, name)
            if value is not None and len(value) > 2:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be one or two numbers")

    @property
    def ignore_index(self) -> int:
        """The mask value of pixels without a label, in training."""
        return IGNORE if self.args.ignore_index is None else self.args.ignore_index

    def load_data(self, dataset: str, trained: Segmenter | None = None) -> None:
        """Find and check images and masks, and set `data`."""
        args = self.args
        options = {
            "train_split": args.train_split,
            "validation_split": args.validation_split,
            "validation_fraction": args.validation_fraction,
            "seed": args.seed,
            "ignore_index": self.ignore_index,
        }
        if trained is not None:
            self.part = evaluated_part(args.evaluate, dataset, args.validation_split)
            options |= {**self.part.options, "trained": (args.evaluate, trained.class_names)}
            if args.ignore_index is None:
                options["ignore_index"] = trained.ignore_index
        self.data = load_segmentation_data(
            dataset,
            image_column=args.image_column,
            mask_column=args.mask_column,
            class_names_file=args.class_names_file,
            limit=args.limit,
            num_workers=args.workers,
            **options,
        )
        if trained is not None:
            self.part.check_unchanged(args.evaluate, self.data.train_count, self.data.class_names)
            remark = self.part.remark(self.data.split, self.data.train_count)
            self.accelerator.print(f"images of {args.evaluate}: {remark}")

    def checked_content(self, part: ImageMaskPairs) -> Table:
        """Return a table of undecoded images and masks."""
        return part.source.select(part.rows)

    def build_model(self) -> Segmenter:
        """Build the segmenter that the flags name, for the classes of `data`, on the CPU."""
        args = self.args
        model = Segmenter(
            args.model,
            self.data.class_names,
            args.decoder,
            backbone_args=args.model_kwargs,
            decoder_args=args.decoder_kwargs,
            ignore_index=self.ignore_index,
            ce_weight=args.ce_weight,
            dice_weight=args.dice_weight,
            focal_weight=args.focal_weight,
            lovasz_weight=args.lovasz_weight,
            class_weights=args.class_weights and class_weights(args.class_weights, self.data.pixels["train"].sum(0)),
            hard_pixels=args.hard_pixels,
            auxiliary_weight=args.auxiliary_weight,
            pretrained=args.checkpoint or args.pretrained,
        )
        if self.accelerator.num_processes > 1:
            freeze_unused(model, lambda copy, images: copy(images, images[:, 0].long()).values())
        self.freeze(model.backbone)
        return model

    def training_batches(self, model: Segmenter) -> TrainingBatches:
        """Make this process's batches of images (B, 3, H, W) and masks (B, H, W)."""
        args = self.args
        transform = training_transform(
            pair(args.crop_size),
            mean=model.mean,
            std=model.std,
            scale=tuple(args.scale),
            short_side=args.short_side,
            hflip=args.hflip,
            vflip=args.vflip,
            rotate=args.rotate,
            photometric=args.photometric,
        )
        dataset = SegmentationDataset(self.data.train, transform, seed=args.seed)
        return make_batches(args, dataset, self.accelerator, SegmentationDataset.collate)

    def evaluation_dataset(self, model: Segmenter) -> EvaluationDataset:
        """Return the validation images and masks, in the form that the model takes."""
        return EvaluationDataset(self.data.validation, mean=model.mean, std=model.std, short_side=self.args.short_side)

    def measure(self, model: Segmenter) -> SegmentationResult:
        """Evaluate the model on the validation images. Every process must call it; all get the result."""
        return evaluate_segmenter(self.accelerator, model, self.validation, **self.inference)

    def describe(self, figures: Mapping[str, Any]) -> str:
        """Describe the metrics, and the classes with the lowest IoU."""
        known = [entry for entry in figures["classes"] if entry["iou"] is not None]
        lowest = sorted(known, key=lambda entry: entry["iou"])[:_LOWEST]
        names = ", ".join(f"{entry['name']} {entry['iou']:.1f} %" for entry in lowest)
        return f"{super().describe(figures)}, lowest IoU: {names}"

    def save_tables(self, result: SegmentationResult) -> None:
        """Write the confusion matrix, as CSV and as a picture."""
        write_confusion(result.confusion, self.data.class_names, self.output / "confusion.csv")
        draw_confusion(result.confusion, self.data.class_names, self.output / "confusion.png")

    @property
    def present(self) -> np.ndarray:
        """Whether each of K classes occurs in each of N validation images, bool (N, K)."""
        return self.data.pixels["validation"] > 0

    def draw(self, model: Segmenter, indices: Sequence[int], result: SegmentationResult) -> Image.Image:
        """Draw some of `validation_images` with truth and prediction, and the IoU of each class over all images."""
        iou = [entry.iou for entry in result.classes]
        return draw_predictions(model, self.validation_images, indices, iou=iou, **self.inference)

    @property
    def inference(self) -> dict[str, Any]:
        """The arguments of `segmentation.inference.predict`."""
        args = self.args
        return {
            "window": args.window and pair(args.window),
            "stride": args.stride and pair(args.stride),
            "scales": args.scales,
            "flip": args.flip,
        }


def pair(numbers: Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    return numbers[0], numbers[-1]


build_parser = SegmentationTask.build_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train or evaluate a segmenter. `argv` defaults to `sys.argv[1:]`."""
    run_task(SegmentationTask, argv)
