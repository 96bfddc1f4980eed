"""COCO's average precision of boxes and masks."""

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.rle import to_rle

_OVERALL = {  # which overlaps and which sizes, of those that pycocotools computes
    "ap": (slice(None), 0),
    "ap50": (0, 0),
    "ap75": (5, 0),
    "ap_small": (slice(None), 1),
    "ap_medium": (slice(None), 2),
    "ap_large": (slice(None), 3),
}


@dataclass(frozen=True)
class ClassPrecision:
    """One class's share of a result.

    Attributes:
        name: of the class.
        objects: in the truth, without crowds.
        box_ap: in percent; None without objects.
        mask_ap: likewise; also None where masks were not evaluated.
    """

    name: str
    objects: int
    box_ap: float | None
    mask_ap: float | None


@dataclass(frozen=True)
class DetectionResult:
    """Average precision over one set of images, in percent, as COCO defines it.

    `ap` is the mean over classes and over the overlaps (IoU) 0.5, 0.55 to 0.95; `ap50` and `ap75` are at one overlap;
    small objects have up to 32^2 pixels, medium ones up to 96^2. None stands where the truth has no such objects, and
    for masks that were not evaluated; where there are objects but no detections it is 0.

    Attributes:
        images: Number of images, each counted once.
        images_per_second: Over all processes, without the computation of the precision itself.
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
    classes: list[ClassPrecision]
    images: int
    images_per_second: float | None = None

    def as_table(self) -> str:
        """Two tables in Markdown: all classes together, and each."""
        lines = [_row("", "AP", "AP50", "AP75", "small", "medium", "large"), _row(*["---"] * 7)]
        for kind in ("box", "mask") if self.mask_ap is not None else ("box",):
            lines.append(_row(kind, *(getattr(self, f"{kind}_{name}") for name in _OVERALL)))
        lines += ["", _row("class", "objects", "box AP", "mask AP"), _row(*["---"] * 4)]
        lines += [_row(part.name, part.objects, part.box_ap, part.mask_ap) for part in self.classes]
        return "\n".join(lines)


def _row(*cells: str | int | float | None) -> str:
    texts = ("-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


def coco_truth(images: CocoImages) -> COCO:
    """The annotations as pycocotools wants them: those used, crowds included, numbered from 1.

    Its evaluation counts an object whose annotation has the id 0 as never found.
    """
    with_masks = images.segmentations is not None
    sizes = images.sizes.tolist()
    annotations = [
        {
            "id": number + 1,
            "image_id": int(images.image_ids[row]),
            "category_id": list(images.categories)[images.labels[number] - 1],
            "bbox": images.boxes[number].tolist(),
            "area": float(images.areas[number]),
            "iscrowd": int(images.is_crowd[number]),
            **({"segmentation": to_rle(images.segmentation(number), *sizes[row])} if with_masks else {}),
        }
        for number, row in enumerate(images.rows)
    ]
    described = [
        {"id": image_id, "width": width, "height": height}
        for image_id, (width, height) in zip(images.image_ids.tolist(), sizes, strict=True)
    ]
    categories = [{"id": number, "name": name} for number, name in images.categories.items()]
    return _index(described, annotations, categories)


def _index(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with _silence():
        coco.createIndex()
    return coco


def score_detections(truth: COCO, predictions: list[dict[str, Any]], *, masks: bool) -> DetectionResult:
    """COCO's average precision, with at most 100 detections an image.

    Args:
        truth: from `coco_truth`; all its images count.
        predictions: in COCO's results format: `image_id`, `category_id`, `score`, `bbox` [x, y, width, height], and
            for masks `segmentation`, compressed run lengths.
        masks: also evaluate masks.
    """
    precision = {"box": _precision(truth, predictions, "bbox")}
    if masks:
        precision["mask"] = _precision(truth, predictions, "segm")
    overall = {
        f"{kind}_{name}": _mean(precision[kind][overlap, :, :, area]) if kind in precision else None
        for kind in ("box", "mask")
        for name, (overlap, area) in _OVERALL.items()
    }
    objects = Counter(entry["category_id"] for entry in truth.dataset["annotations"] if not entry["iscrowd"])
    classes = [
        ClassPrecision(
            category["name"],
            objects[category["id"]],
            box_ap=_mean(precision["box"][:, :, place, 0]),
            mask_ap=_mean(precision["mask"][:, :, place, 0]) if masks else None,
        )
        for place, category in enumerate(truth.dataset["categories"])
    ]
    return DetectionResult(**overall, classes=classes, images=len(truth.imgs))


def _precision(truth: COCO, predictions: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Precision by overlap, recall, class and size (all, small, medium, large); -1 where there are no objects."""
    detections = []
    for number, prediction in enumerate(predictions):
        # An object's size is that of what is evaluated: a small mask may fill a medium box.
        _, _, width, height = prediction["bbox"]
        area = width * height if kind == "bbox" else float(coco_mask.area(prediction["segmentation"]))
        detections.append({**prediction, "id": number + 1, "area": area, "iscrowd": 0})
    found = _index(truth.dataset["images"], detections, truth.dataset["categories"])
    evaluation = COCOeval(truth, found, kind)
    with _silence():
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]  # the most detections an image


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _silence() -> contextlib.redirect_stdout:
    return contextlib.redirect_stdout(io.StringIO())
