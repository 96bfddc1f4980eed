"""Evaluates a detector on a dataset, with the same result for any number of processes."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pycocotools.coco import COCO
from torch import Tensor, nn

from fdconv_zoo.dense.detection.inference import predict
from fdconv_zoo.dense.detection.metrics import DetectionResult, score_detections
from fdconv_zoo.dense.detection.rle import encode_mask
from fdconv_zoo.store.files import write_text

Prediction = dict[str, Any]


def evaluate_detector(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[tuple[list[Tensor], list[int]]],
    truth: COCO,
    category_ids: list[int],
    *,
    masks: bool,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    predictions_file: Path | None = None,
) -> DetectionResult:
    """Evaluate a detector, and put it into eval mode.

    All processes must call this function; all of them get the result.

    Args:
        accelerator: The accelerator of the run.
        model: Maps images to a list of torchvision's dicts, with boxes and masks in pixels of the input image.
        loader: Batches from `evaluation_loader`, prepared by `accelerator`.
        truth: Ground truth of the same images, from `coco_truth`.
        category_ids: Category ids of the labels 1 to K.
        masks: Also evaluate masks.
        scales, flip: As in `predict`.
        predictions_file: The main process writes the detections to this file atomically, as JSON in COCO's results
            format.
    """
    start = time.perf_counter()
    predictions = predict_dataset(accelerator, model, loader, category_ids, masks=masks, scales=scales, flip=flip)
    images_per_second = len(truth.imgs) / (time.perf_counter() - start)
    result = [None]
    if accelerator.is_main_process:
        if predictions_file is not None:
            write_text(predictions_file, json.dumps(predictions))
        result = [replace(score_detections(truth, predictions, masks=masks), images_per_second=images_per_second)]
    return broadcast_object_list(result)[0]


@torch.no_grad()
def predict_dataset(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[tuple[list[Tensor], list[int]]],
    category_ids: list[int],
    *,
    masks: bool,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> list[Prediction]:
    """Detect objects in all images.

    The arguments are those of `evaluate_detector`.

    Returns:
        On every process, all detections in COCO's results format, in the order of image ids.
    """
    model.eval()
    found: list[tuple[int, list[Prediction]]] = []
    for images, image_ids in loader:
        with accelerator.autocast():
            outputs = predict(model, images, scales=scales, flip=flip)
        for image_id, output in zip(image_ids, outputs, strict=True):
            found.append((image_id, to_coco_results(image_id, output, category_ids, masks=masks)))
    # By image: images that pad the last batches of several processes occur twice.
    by_image = dict(gather_object(found))
    return [prediction for image_id in sorted(by_image) for prediction in by_image[image_id]]


def to_coco_results(
    image_id: int, output: dict[str, Tensor], category_ids: list[int], *, masks: bool
) -> list[Prediction]:
    """Convert the detections of an image to COCO's results format.

    Args:
        image_id: Image id in the annotation file.
        output: `boxes` (N, 4), x1, y1, x2, y2 in pixels; `labels` (N,), 1 to K; `scores` (N,); and, with `masks`,
            `masks` (N, 1, H, W), pixel probabilities that are thresholded at 0.5.
        category_ids: Category ids of the labels 1 to K.
        masks: Add a `segmentation` to each detection.
    """
    x1, y1, x2, y2 = output["boxes"].float().cpu().unbind(1)
    boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ]
    if masks:
        binary_masks = (output["masks"][:, 0] > 0.5).cpu().numpy()
        for result, mask in zip(results, binary_masks, strict=True):
            result["segmentation"] = encode_mask(mask)
    return results
