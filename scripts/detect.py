"""Train a network that finds objects, their boxes and masks, on any backbone of timm, FDConv or not; or evaluate one.

    python scripts/detect.py --model resnet50_fdconv --dataset path/to/coco --output runs/mine
    python scripts/detect.py --config models/resnet50_fdconv.mask_rcnn_coco.yaml --output runs/coco
    accelerate launch --num_processes 8 --mixed_precision bf16 scripts/detect.py ...         (GPUs)
    python scripts/detect.py --evaluate runs/mine --dataset path/to/coco --output results/mine

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
from fdconv_zoo.dense.detection.augment import training_transform
from fdconv_zoo.dense.detection.dataset import DetectionDataset, EvaluationDataset
from fdconv_zoo.dense.detection.evaluate import evaluate_detector
from fdconv_zoo.dense.detection.loading import DetectionData, load_detection_data
from fdconv_zoo.dense.detection.metrics import coco_truth
from fdconv_zoo.dense.detection.model import HEADS, Detector
from fdconv_zoo.dense.detection.pictures import draw_predictions
from fdconv_zoo.dense.evaluation import evaluation_loader
from fdconv_zoo.dense.saved_model import export
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
    "min_size": 64,
    "max_size": 128,
    "crop_size": 64,
    "epochs": 1,
    "updates_per_epoch": 2,
    "warmup_epochs": 0,
    "batch_size": 2,
    "mixed_precision": None,
    "grad_accum": 1,
    "log_every": 1,
}
METRICS = {
    "faster_rcnn": {"box_ap": "box AP", "box_ap50": "box AP50"},
    "mask_rcnn": {"box_ap": "box AP", "mask_ap": "mask AP"},
}
DEFAULTS = {"batch_size": 2, "lr": 1e-4, "sched": "multistep", "epochs": 12, "warmup_epochs": 0.1, "min_lr": 0.0}


def build_parser() -> ArgumentParser:
    """The flags of this script, which are also the keys of a recipe."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], task="detection")
    boolean = {"action": argparse.BooleanOptionalAction}
    parser.add_argument("--evaluate", metavar="MODEL", help="instead of training: the folder of a run, or hf-hub:NAME")

    data = parser.add_argument_group("data, in COCO's format")
    data.add_argument(
        "--dataset", help=f"folder with images and annotations/, or {FASHION_CANVASES} (made at first use)"
    )
    data.add_argument("--train-annotations", metavar="FILE", help="instead of the dataset's own")
    data.add_argument("--validation-annotations", metavar="FILE")
    data.add_argument("--train-images", metavar="DIR")
    data.add_argument("--validation-images", metavar="DIR")
    data.add_argument("--skip-bad-boxes", **boolean, default=False, help="leave out bad annotations and count them")
    data.add_argument("--limit", type=int, metavar="N", help="use only N images of each split")
    data.add_argument(
        "--workers", type=int, default=DEFAULT_WORKERS, help="processes that read images, for each training process"
    )

    model = parser.add_argument_group("model")
    model.add_argument("--model", help="the backbone: a timm name")
    model.add_argument("--model-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    model.add_argument("--head", choices=tuple(HEADS), default="mask_rcnn")
    model.add_argument("--head-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    model.add_argument("--fpn-channels", type=int, default=256)
    model.add_argument("--anchor-sizes", type=float, nargs=5, help="in pixels; by default 8 times each level's stride")
    model.add_argument("--min-size", type=int, nargs="+", default=[800], help="shorter side; of several one is drawn")
    model.add_argument("--max-size", type=int, default=1333, help="limit of the longer side")
    model.add_argument("--pretrained", **boolean, default=True, help="start from the backbone's published weights")
    model.add_argument("--checkpoint", metavar="FILE", help="start from these weights of the backbone instead")
    model.add_argument("--norm", choices=NORMS, default="frozen", help="BatchNorm of the backbone in training")

    augment = parser.add_argument_group("augmentation")
    augment.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    augment.add_argument("--scale-jitter", type=float, nargs=2, help="factors of a random scale before a crop")
    augment.add_argument("--crop-size", type=int, default=1024, help="side of that crop")
    augment.add_argument("--photometric", **boolean, default=False, help="change colours")

    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="validation images to draw")
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
    if data.skipped:
        accelerator.print(f"left out, or clipped, {data.skipped} bad annotations")
    batches = training_batches(args, data, model, accelerator)
    truth = coco_truth(data.validation)
    loader = accelerator.prepare(evaluation_loader(EvaluationDataset(data.validation), args.batch_size, args.workers))

    def evaluate(model: Detector) -> dict[str, Any]:
        file = run.path / "predictions.json"
        result = evaluate_detector(
            accelerator, model, loader, truth, data.category_ids, masks=model.has_masks, predictions_file=file
        )
        if accelerator.is_main_process:
            save_pictures(args, model, data, run.path / "pictures.png")
        return asdict(result)

    task = Task(loss=loss, evaluate=evaluate, export=export, metrics=METRICS[args.head])
    facts = {"train_images": len(data.train), "class_names": data.class_names, "category_ids": data.category_ids}
    history = fit(task, model, batches, args, facts, accelerator=accelerator, run=run)
    best = max(history, key=lambda row: row["box_ap"])
    accelerator.print(
        f"best: box AP {best['box_ap']:.2f} % after epoch {best['epoch']}, over {best['images']} images; load it with\n"
        f"    fdconv_zoo.dense.Detector.from_pretrained('{run.path}')"
    )


def evaluate_only(args: argparse.Namespace, dataset: str) -> None:
    """Evaluate a trained model: print its table, and write that, what it found, and pictures."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    output = Path(args.output)
    results = output / "results.json"
    if results.exists() and not args.overwrite:
        raise ConfigError(f"{results} exists: choose another --output, or replace it with --overwrite")
    output.mkdir(parents=True, exist_ok=True)
    with accelerator.local_main_process_first():
        model = Detector.from_pretrained(args.evaluate.removeprefix("hf-hub:")).to(accelerator.device)
        data = load_data(args, dataset, masks=model.has_masks, split="validation")
    if data.class_names != model.class_names:
        raise ConfigError(
            f"{args.evaluate} finds {', '.join(model.class_names)}, but the dataset has {', '.join(data.class_names)}: "
            "evaluate it on the classes it was trained on, in their order"
        )
    loader = accelerator.prepare(evaluation_loader(EvaluationDataset(data.validation), args.batch_size, args.workers))
    truth = coco_truth(data.validation)
    file = output / "predictions.json"
    result = evaluate_detector(
        accelerator, model, loader, truth, data.category_ids, masks=model.has_masks, predictions_file=file
    )
    accelerator.print(result.as_table())
    if accelerator.is_main_process:
        save_pictures(args, model, data, output / "pictures.png")
        write_text(results, json.dumps({"model": args.evaluate, "dataset": args.dataset, **asdict(result)}, indent=2))
    accelerator.end_training()


def load_data(args: argparse.Namespace, dataset: str, **kwargs: Any) -> DetectionData:
    """The images and objects that the flags name."""
    names = ("train_annotations", "validation_annotations", "train_images", "validation_images")
    chosen = {name: getattr(args, name) for name in (*names, "limit", "skip_bad_boxes")}
    kwargs = {"masks": args.head == "mask_rcnn"} | kwargs
    return load_detection_data(dataset, num_workers=args.workers, **chosen, **kwargs)


def build_model(args: argparse.Namespace, data: DetectionData) -> Detector:
    """The network that the flags name, for the classes of the data."""
    model = Detector(
        args.model,
        data.class_names,
        args.head,
        backbone_args=args.model_kwargs,
        head_args=args.head_kwargs,
        fpn_channels=args.fpn_channels,
        min_size=args.min_size,
        max_size=args.max_size,
        anchor_sizes=args.anchor_sizes,
        pretrained=args.checkpoint or args.pretrained,
    )
    set_norm(model.backbone, args.norm)
    return model


def loss(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """What training minimizes, of one batch."""
    return sum(model(images, targets).values())


def training_batches(
    args: argparse.Namespace, data: DetectionData, model: Detector, accelerator: Accelerator
) -> TrainingBatches:
    """This process's batches of images and objects."""
    transform = training_transform(
        hflip=args.hflip,
        scale_jitter=args.scale_jitter and tuple(args.scale_jitter),
        crop_size=args.crop_size,
        photometric=args.photometric,
    )
    dataset = DetectionDataset(data.train, transform, masks=model.has_masks, seed=args.seed)
    return own_batches(args, dataset, accelerator, DetectionDataset.collate)


def save_pictures(args: argparse.Namespace, model: Detector, data: DetectionData, path: Path) -> None:
    """Draw what is found in the first validation images beside what is there."""
    if args.pictures:
        picture = draw_predictions(
            model, EvaluationDataset(data.validation), range(min(args.pictures, len(data.validation)))
        )
        with replacing(path) as temporary:
            picture.save(temporary, format="png")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what can be known to be wrong from the command line alone."""
    if not (args.dataset or args.validation_annotations):
        raise ConfigError(f"--dataset is needed: a folder in COCO's format, or {FASHION_CANVASES}")
    if not (args.model or args.evaluate):
        raise ConfigError("--model is needed, a backbone, or an entry of models/ with --config")
    if args.norm == "frozen" and not (args.pretrained or args.checkpoint or args.smoke or args.evaluate):
        raise ConfigError("--norm frozen keeps statistics that random weights do not have: give --norm batch or sync")
    for name in ("min_size", "max_size", "crop_size", "fpn_channels"):
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    check_optimization(args)


if __name__ == "__main__":
    run_script(main)
