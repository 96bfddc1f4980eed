"""Evaluates a segmenter on a dataset, with the same result for any number of processes."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from fdconv_zoo.dense.segmentation.inference import Size, predict
from fdconv_zoo.dense.segmentation.metrics import SegmentationMetrics, SegmentationResult
from fdconv_zoo.dense.segmentation.model import Segmenter


# Not inference_mode: tensors that layers cache must stay usable by autograd when training continues.
@torch.no_grad()
def evaluate_segmenter(
    accelerator: Accelerator,
    model: Segmenter,
    loader: Iterable[tuple[Sequence[Tensor], Sequence[Tensor], Sequence[int]]],
    *,
    window: Size | None = None,
    stride: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> SegmentationResult:
    """Evaluate a segmenter, and put it into eval mode.

    All processes must call this function; all of them get the result.

    Args:
        accelerator: The accelerator of the run.
        model: The unwrapped model, on the accelerator's device.
        loader: Batches from `evaluation_loader`, prepared by `accelerator`: images (3, h, w), masks (H, W) and indices
            of the images in the dataset. Images are predicted one by one, because their sizes differ, and compared at
            the size of the mask.
        window, stride, scales, flip: As in `predict`.

    Raises:
        DataError: every pixel is ignored.
    """
    model.eval()
    metrics = SegmentationMetrics(model.class_names, accelerator.device)
    start = time.perf_counter()
    owners: dict[int, tuple[int, int, int]] = {}
    for batch, (images, masks, indices) in enumerate(loader):
        # Images that pad the last batches of several processes occur twice: only the first occurrence counts.
        claims = [(index, (batch, accelerator.process_index, position)) for position, index in enumerate(indices)]
        for index, claim in gather_object(claims):
            owners.setdefault(index, claim)
        for image, mask, (index, claim) in zip(images, masks, claims, strict=True):
            if owners[index] != claim:
                continue
            with accelerator.autocast():
                probabilities = predict(
                    model, image[None], tuple(mask.shape), window=window, stride=stride, scales=scales, flip=flip
                )
            metrics.update(probabilities[0].argmax(0), mask)
    result = metrics.compute()
    return replace(result, images_per_second=result.images / (time.perf_counter() - start))
