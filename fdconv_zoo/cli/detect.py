"""Training and evaluation of detectors."""

import argparse
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset as Table
from PIL import Image
from pycocotools.coco import COCO

from fdconv_zoo.cli.dense import DENSE_SMOKE, DenseTask, add_backbone_flags, add_weights_flags, starts_at_random
from fdconv_zoo.cli.recipes import RecipeParser, add_arguments_flag, add_workers_flag
from fdconv_zoo.cli.task import run_task
from fdconv_zoo.dense.canvases import FASHION_CANVASES
from fdconv_zoo.dense.detection.augment import training_transform
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.curves import draw_curves, write_curves
from fdconv_zoo.dense.detection.dataset import DetectionDataset, EvaluationDataset
from fdconv_zoo.dense.detection.evaluate import evaluate_detector
from fdconv_zoo.dense.detection.heads import HEADS
from fdconv_zoo.dense.detection.loading import DetectionData, load_detection_data
from fdconv_zoo.dense.detection.metrics import DetectionResult, coco_truth
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.detection.pictures import draw_predictions
from fdconv_zoo.dense.freezing import freeze_unused
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.files import write_text
from fdconv_zoo.training.batches import TrainingBatches, make_batches


class DetectionTask(DenseTask):
    """Training and evaluation of networks that find objects, their boxes and masks."""

    name = "detection"
    description = (
        "Train a network that finds objects, their boxes and masks, on any backbone of timm, FDConv or not; or "
        "evaluate one."
    )
    smoke: ClassVar = {**DENSE_SMOKE, "fpn_channels": 64, "min_size": 64, "max_size": 128}
    defaults: ClassVar = {
        "batch_size": 2,
        "lr": 1e-4,
        "sched": "multistep",
        "epochs": 12,
        "warmup_epochs": 0.1,
        "min_lr": 0.0,
    }
    model_type = Detector
    class_metrics = ("box_ap", "mask_ap")
    data: DetectionData

    @property
    def metrics(self) -> dict[str, str]:
        """Box AP, and mask AP if the head predicts masks, else box AP50."""
        second = {"mask_ap": "mask AP"} if self.args.head == "mask_rcnn" else {"box_ap50": "box AP50"}
        return {"box_ap": "box AP", **second}

    @classmethod
    def add_flags(cls, parser: RecipeParser) -> None:
        """Add the task's own flags."""
        super().add_flags(parser)
        boolean = {"action": argparse.BooleanOptionalAction}

        data = parser.add_argument_group("data")
        data.add_argument(
            "--dataset",
            help="folder in the format of COCO, YOLO (or its data.yaml) or Pascal VOC, or "
            f"{FASHION_CANVASES} (generated at first use)",
        )
        data.add_argument("--train-annotations", metavar="FILE", help="in COCO's format, instead of the dataset's")
        data.add_argument("--validation-annotations", metavar="FILE", help="in COCO's format, instead of the dataset's")
        data.add_argument("--train-images", metavar="DIR", help="instead of the dataset's")
        data.add_argument("--validation-images", metavar="DIR", help="instead of the dataset's")
        data.add_argument("--skip-bad-boxes", **boolean, default=False, help="remove and count bad annotations")
        data.add_argument("--limit", type=int, help="use only N images of each split")
        add_workers_flag(data)

        model = parser.add_argument_group("model")
        add_backbone_flags(model)
        model.add_argument("--head", choices=tuple(HEADS), default="mask_rcnn", help="all but mask_rcnn: boxes only")
        add_arguments_flag(model, "--head-kwargs", "head")
        model.add_argument("--fpn-channels", type=int, default=256, help="channels of the feature pyramid")
        model.add_argument(
            "--anchor-sizes",
            type=float,
            nargs=5,
            help="in pixels; default: 32 to 512 for a backbone whose first map has stride 4",
        )
        model.add_argument(
            "--min-size",
            type=int,
            nargs="+",
            default=[800],
            help="shorter side in pixels; one of several is drawn",
        )
        model.add_argument("--max-size", type=int, default=1333, help="largest longer side in pixels")
        add_weights_flags(model, norm="frozen")

        augment = parser.add_argument_group("augmentation")
        augment.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
        augment.add_argument("--vflip", type=float, default=0.0, help="probability of a vertical flip")
        augment.add_argument("--scale-jitter", type=float, nargs=2, help="range of a random resizing before a crop")
        augment.add_argument("--crop-size", type=int, default=1024, help="side of that crop in pixels")
        augment.add_argument("--photometric", **boolean, default=False, help="change colours at random")

        evaluation = parser.add_argument_group("evaluation")
        evaluation.add_argument(
            "--scales", type=float, nargs="+", default=[1.0], help="join the objects found at these sizes of the image"
        )
        evaluation.add_argument("--flip", **boolean, default=False, help="also join those found in mirror images")
        evaluation.add_argument("--pictures", type=int, default=6, help="validation images to draw")

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that can be found without reading data."""
        if not (args.dataset or args.validation_annotations):
            raise ConfigError(f"--dataset is required: a folder with images and their objects, or {FASHION_CANVASES}")
        super().check_arguments(args)
        if args.norm == "frozen" and starts_at_random(args):
            raise ConfigError(
                "--norm frozen keeps statistics, but random weights do not have any: use --norm batch or sync"
            )
        if args.cuda_graphs:
            raise ConfigError("--cuda-graphs needs images of one size, and those of detection differ: use --compile")

    def load_data(self, dataset: str, trained: Detector | None = None) -> None:
        """Find and check images and objects, and set `data`."""
        args = self.args
        self.data = load_detection_data(
            dataset,
            train_annotations=args.train_annotations,
            validation_annotations=args.validation_annotations,
            train_images=args.train_images,
            validation_images=args.validation_images,
            limit=args.limit,
            skip_bad_boxes=args.skip_bad_boxes,
            num_workers=args.workers,
            masks=trained.has_masks if trained else args.head == "mask_rcnn",
            split="validation" if trained else None,
        )
        if trained and trained.class_names != self.data.class_names:
            raise ConfigError(
                f"{args.evaluate} was trained on {', '.join(trained.class_names)}, but the dataset has "
                f"{', '.join(self.data.class_names)}: evaluate it on a dataset with its classes, in their order"
            )

    @property
    def left_out(self) -> str:
        """Describe how many bad annotations were removed or changed."""
        return f"removed, clipped or corrected {self.data.skipped} bad annotations" if self.data.skipped else ""

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the run depends on besides the flags, such as the class names."""
        return {**super().facts, "category_ids": self.data.category_ids}

    def checked_content(self, part: CocoImages) -> Table:
        """Return a table of undecoded images and their objects."""
        return part.as_table()

    def build_model(self) -> Detector:
        """Build the detector that the flags name, for the classes of `data`, on the CPU."""
        args = self.args
        model = Detector(
            args.model,
            self.data.class_names,
            args.head,
            backbone_args=args.model_kwargs,
            head_args=args.head_kwargs,
            fpn_channels=args.fpn_channels,
            min_size=args.min_size,
            max_size=args.max_size,
            anchor_sizes=args.anchor_sizes,
            pretrained=args.checkpoint or args.pretrained,
        )
        if self.accelerator.num_processes > 1:
            freeze_unused(model.network.backbone, lambda backbone, images: backbone(images).values())
        self.freeze(model.backbone)
        return model

    def training_batches(self, model: Detector) -> TrainingBatches:
        """Make this process's batches: a list of images (3, H, W), and a list of their objects."""
        args = self.args
        transform = training_transform(
            hflip=args.hflip,
            vflip=args.vflip,
            scale_jitter=args.scale_jitter and tuple(args.scale_jitter),
            crop_size=args.crop_size,
            photometric=args.photometric,
        )
        dataset = DetectionDataset(self.data.train, transform, masks=model.has_masks, seed=args.seed)
        return make_batches(args, dataset, self.accelerator, DetectionDataset.collate)

    def evaluation_dataset(self, model: Detector) -> EvaluationDataset:
        """Return the validation images, in the form that the model takes."""
        return EvaluationDataset(self.data.validation)

    @cached_property
    def truth(self) -> COCO:
        """The true objects in the validation images."""
        return coco_truth(self.data.validation)

    def measure(self, model: Detector) -> DetectionResult:
        """Evaluate the model, and write predictions.json. Every process must call it; all get the result."""
        return evaluate_detector(
            self.accelerator,
            model,
            self.validation,
            self.truth,
            self.data.category_ids,
            masks=model.has_masks,
            scales=self.args.scales,
            flip=self.args.flip,
            predictions_file=self.output / "predictions.json",
        )

    def save_tables(self, result: DetectionResult) -> None:
        """Write the precision-recall curves. If the dataset is not in COCO's format, truth.json defines the ids."""
        names = self.data.class_names
        write_curves(result.curves, names, self.output / "precision_recall.csv")
        draw_curves(result.curves, names, self.output / "precision_recall.png")
        if self.data.validation.annotation_file.suffix != ".json":
            write_text(self.output / "truth.json", json.dumps(self.truth.dataset))

    @property
    def present(self) -> np.ndarray:
        """Whether each of K classes occurs in each of N validation images, bool (N, K)."""
        validation = self.data.validation
        present = np.zeros((len(validation), len(self.data.class_names)), bool)
        present[validation.rows, validation.labels - 1] = True
        return present

    def draw(self, model: Detector, indices: Sequence[int], result: DetectionResult) -> Image.Image:
        """Draw some of `validation_images` with truth and prediction."""
        return draw_predictions(model, self.validation_images, indices, scales=self.args.scales, flip=self.args.flip)


build_parser = DetectionTask.build_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train or evaluate a detector. `argv` defaults to `sys.argv[1:]`."""
    run_task(DetectionTask, argv)
