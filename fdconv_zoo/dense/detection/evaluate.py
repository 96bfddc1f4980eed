"""Runs a detector over a validation set, the same on one process and on many."""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.dataset import EvaluationDataset
from fdconv_zoo.dense.detection.metrics import DetectionResult, score_detections
from fdconv_zoo.dense.detection.rle import encode_mask

Prediction = dict[str, Any]


def evaluation_loader(references: CocoImages, batch_size: int, workers: int) -> DataLoader:
    """Batches of images and their ids in order, for `accelerator.prepare`.

    Args:
        references: `DetectionData.validation`.
        batch_size: Images a batch and process.
        workers: Processes that read images.
    """
    return DataLoader(
        EvaluationDataset(references),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=EvaluationDataset.collate,
        pin_memory=torch.cuda.is_available(),
    )


def evaluate_detector(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[tuple[list[Tensor], list[int]]],
    truth: COCO,
    category_ids: list[int],
    *,
    masks: bool,
    predictions_file: Path | None = None,
) -> DetectionResult:
    """Evaluate `model` (put into eval mode) on a loader that `accelerator` prepared.

    Every process must call it; all get the result.

    Args:
        accelerator: Of the run.
        model: Images -> torchvision's list of dicts, boxes and masks in pixels of the image given.
        loader: From `evaluation_loader`.
        truth: From `coco_truth`, of the same images.
        category_ids: Of the labels 1 to K.
        masks: Also evaluate masks.
        predictions_file: Where the main process writes what was found, as json in COCO's results format.
    """
    start = time.perf_counter()
    predictions = predict_dataset(accelerator, model, loader, category_ids, masks=masks)
    speed = len(truth.imgs) / (time.perf_counter() - start)
    result = [None]
    if accelerator.is_main_process:
        if predictions_file is not None:
            predictions_file.write_text(json.dumps(predictions), encoding="utf-8")
        result = [replace(score_detections(truth, predictions, masks=masks), images_per_second=speed)]
    return broadcast_object_list(result)[0]


@torch.no_grad()
def predict_dataset(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[tuple[list[Tensor], list[int]]],
    category_ids: list[int],
    *,
    masks: bool,
) -> list[Prediction]:
    """What `model` finds in all images, on every process, in COCO's results format and the order of image ids.

    The arguments are those of `evaluate_detector`.
    """
    model.eval()
    found: list[tuple[int, list[Prediction]]] = []
    for images, image_ids in loader:
        with accelerator.autocast():
            outputs = model(images)
        for image_id, output in zip(image_ids, outputs, strict=True):
            found.append((image_id, to_coco_results(image_id, output, category_ids, masks=masks)))
    # By image: some fill up the last batches of several processes, and come twice.
    by_image = dict(gather_object(found))
    return [prediction for image_id in sorted(by_image) for prediction in by_image[image_id]]


def to_coco_results(
    image_id: int, output: dict[str, Tensor], category_ids: list[int], *, masks: bool
) -> list[Prediction]:
    """One image's detections in COCO's results format.

    Args:
        image_id: The annotation file's.
        output: `boxes` (N, 4), x1, y1, x2, y2 in pixels; `labels` (N,), 1 to K; `scores` (N,); and for masks
            `masks` (N, 1, H, W), the probability of every pixel, of which those above a half count.
        category_ids: Of the labels 1 to K.
        masks: Whether to give each a `segmentation`.
    """
    x1, y1, x2, y2 = output["boxes"].float().cpu().unbind(1)
    boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ]
    if masks:
        pixels = (output["masks"][:, 0] > 0.5).cpu().numpy()
        for result, mask in zip(results, pixels, strict=True):
            result["segmentation"] = encode_mask(mask)
    return results
