"""Average precision of boxes and masks, as COCO defines it."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.rle import to_rle
from fdconv_zoo.dense.evaluation import markdown_row

_OVERALL = {  # indices of IoU thresholds and object sizes in the arrays of pycocotools
    "ap": (slice(None), 0),
    "ap50": (0, 0),
    "ap75": (5, 0),
    "ap_small": (slice(None), 1),
    "ap_medium": (slice(None), 2),
    "ap_large": (slice(None), 3),
}


CURVES_AT = (0.5, 0.75)  # IoU of the precision-recall curves
RECALLS = np.linspace(0, 1, 101)  # at which COCO's precision is taken


@dataclass(frozen=True)
class Curves:
    """Precision-recall curves of objects of all sizes; NaN for classes without objects.

    Attributes:
        precision: Precision in 0..1 by IoU of `CURVES_AT`, recall of `RECALLS` and class, (2, 101, K); 0 where the
            recall is not reached.
        scores: The lowest score of the detections needed to reach each recall, (2, 101, K); 0 where it is not reached.
    """

    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """The result of one class.

    Attributes:
        name: Name of the class.
        objects: Number of its objects in the ground truth, without crowds.
        box_ap: Box AP in percent; None without objects.
        mask_ap: Mask AP in percent; None without objects, or if masks were not evaluated.
    """

    name: str
    objects: int
    box_ap: float | None
    mask_ap: float | None


@dataclass(frozen=True)
class DetectionResult:
    """Average precision (AP) over a set of images, in percent, as COCO defines it.

    `ap` is the mean over classes and over the IoU thresholds 0.5, 0.55, ..., 0.95; `ap50` and `ap75` are at one
    threshold. Small objects have up to 32^2 pixels, medium objects up to 96^2. A value is None if the ground truth has
    no such objects or masks were not evaluated; it is 0 if there are objects but no detections.

    Attributes:
        classes: The result of each class.
        images: Number of images, each counted once.
        images_per_second: Throughput of all processes, excluding the computation of the metrics.
        curves: Precision-recall curves of ``box`` and, where masks were evaluated, ``mask``.
    """

    box_ap: float | None
    box_ap50: float | None
    box_ap75: float | None
    box_ap_small: float | None
    box_ap_medium: float | None
    box_ap_large: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_ap75: float | None
    mask_ap_small: float | None
    mask_ap_medium: float | None
    mask_ap_large: float | None
    classes: list[ClassResult]
    images: int
    images_per_second: float | None = None
    curves: Mapping[str, Curves] = field(default_factory=dict, repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """Return everything except the curves, as JSON values."""
        figures = asdict(self)
        del figures["curves"]
        return figures

    def as_table(self) -> str:
        """Format two Markdown tables: all classes together, and each class."""
        lines = [markdown_row("", "AP", "AP50", "AP75", "small", "medium", "large"), markdown_row(*["---"] * 7)]
        for kind in ("box", "mask") if self.mask_ap is not None else ("box",):
            lines.append(markdown_row(kind, *(getattr(self, f"{kind}_{name}") for name in _OVERALL)))
        lines += ["", markdown_row("class", "objects", "box AP", "mask AP"), markdown_row(*["---"] * 4)]
        lines += [markdown_row(result.name, result.objects, result.box_ap, result.mask_ap) for result in self.classes]
        return "\n".join(lines)


def coco_truth(images: CocoImages) -> COCO:
    """Convert annotations, including crowds, to the format of pycocotools.

    The annotation ids start at 1, because pycocotools counts an object with annotation id 0 as never found.
    """
    with_masks = images.segmentations is not None
    sizes = images.sizes.tolist()
    annotations = [
        {
            "id": index + 1,
            "image_id": int(images.image_ids[row]),
            "category_id": list(images.categories)[images.labels[index] - 1],
            "bbox": images.boxes[index].tolist(),
            "area": float(images.areas[index]),
            "iscrowd": int(images.is_crowd[index]),
            **({"segmentation": to_rle(images.segmentation(index), *sizes[row])} if with_masks else {}),
        }
        for index, row in enumerate(images.rows)
    ]
    image_entries = [
        {"id": image_id, "file_name": name, "width": width, "height": height}
        for image_id, name, (width, height) in zip(
            images.image_ids.tolist(), images.file_names.to_pylist(), sizes, strict=True
        )
    ]
    categories = [{"id": category_id, "name": name} for category_id, name in images.categories.items()]
    return _index(image_entries, annotations, categories)


def _index(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with _silence():
        coco.createIndex()
    return coco


def score_detections(truth: COCO, predictions: list[dict[str, Any]], *, masks: bool) -> DetectionResult:
    """Compute COCO's average precision, with at most 100 detections per image.

    Args:
        truth: Ground truth from `coco_truth`; all its images count.
        predictions: Detections in COCO's results format: `image_id`, `category_id`, `score`, `bbox` [x, y, width,
            height], and, with `masks`, `segmentation`, compressed run lengths.
        masks: Also evaluate masks.
    """
    evaluated = {"box": _evaluate(truth, predictions, "bbox")}
    if masks:
        evaluated["mask"] = _evaluate(truth, predictions, "segm")
    precision = {kind: found["precision"] for kind, found in evaluated.items()}
    overall = {
        f"{kind}_{name}": _mean(precision[kind][overlap, :, :, area]) if kind in precision else None
        for kind in ("box", "mask")
        for name, (overlap, area) in _OVERALL.items()
    }
    objects = Counter(entry["category_id"] for entry in truth.dataset["annotations"] if not entry["iscrowd"])
    classes = [
        ClassResult(
            category["name"],
            objects[category["id"]],
            box_ap=_mean(precision["box"][:, :, index, 0]),
            mask_ap=_mean(precision["mask"][:, :, index, 0]) if masks else None,
        )
        for index, category in enumerate(truth.dataset["categories"])
    ]
    curves = {
        kind: Curves(*(_curve(found[name]) for name in ("precision", "scores"))) for kind, found in evaluated.items()
    }
    return DetectionResult(**overall, classes=classes, images=len(truth.imgs), curves=curves)


def _evaluate(truth: COCO, predictions: list[dict[str, Any]], kind: str) -> dict[str, np.ndarray]:
    """Return precision and scores by IoU, recall, class and size (all, small, medium, large); -1 without objects."""
    detections = []
    for index, prediction in enumerate(predictions):
        # The size of a detection is that of its mask if masks are evaluated: a small mask may have a medium box.
        _, _, width, height = prediction["bbox"]
        area = width * height if kind == "bbox" else float(coco_mask.area(prediction["segmentation"]))
        detections.append({**prediction, "id": index + 1, "area": area, "iscrowd": 0})
    detected = _index(truth.dataset["images"], detections, truth.dataset["categories"])
    evaluation = COCOeval(truth, detected, kind)
    with _silence():
        evaluation.evaluate()
        evaluation.accumulate()
    # The last axis is the number of detections per image.
    return {name: evaluation.eval[name][..., -1] for name in ("precision", "scores")}


def _curve(values: np.ndarray) -> np.ndarray:
    """Select the IoU thresholds of the curves, and objects of all sizes."""
    values = values[[0, 5], :, :, 0]
    return np.where(values > -1, values, np.nan)


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _silence() -> contextlib.redirect_stdout:
    return contextlib.redirect_stdout(io.StringIO())
