"""Runs a segmenter over a validation set, the same on one process and on many."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset
from fdconv_zoo.dense.segmentation.inference import Size, predict
from fdconv_zoo.dense.segmentation.metrics import SegmentationMetrics, SegmentationResult
from fdconv_zoo.dense.segmentation.model import Segmenter


def evaluation_loader(dataset: EvaluationDataset, batch_size: int, workers: int) -> DataLoader:
    """Images and masks in order, for `accelerator.prepare`.

    Args:
        dataset: Of the validation images.
        batch_size: Images read together, by each process; the model gets them one by one, for their sizes differ.
        workers: Processes that read images.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=torch.cuda.is_available(),
    )


# Not inference_mode: what a layer memoises here must stay usable by autograd when training goes on.
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
    """Evaluate `model` (put into eval mode) on a loader that `accelerator` prepared.

    Every process must call it; all get the result.

    Args:
        accelerator: Of the run.
        model: On the accelerator's device, as it was before `prepare`.
        loader: Of batches as `EvaluationDataset.collate` makes them: images (3, h, w), masks (H, W), at whose size the
            classes are compared, and numbers of the images in the dataset.
        window, stride, scales, flip: As in `predict`.

    Raises:
        DataError: every pixel is ignored.
    """
    model.eval()
    metrics = SegmentationMetrics(model.class_names, accelerator.device)
    start = time.perf_counter()
    owners: dict[int, tuple[int, int, int]] = {}
    for number, (images, masks, indices) in enumerate(loader):
        # Some images fill up the last batches of several processes, and come twice: the first place has them.
        claims = [(index, (number, accelerator.process_index, place)) for place, index in enumerate(indices)]
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
