"""Evaluates a classifier on labelled images, with the same result for any number of processes."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fdconv_zoo.data import ImageDataset, StreamedImageDataset
from fdconv_zoo.store.build import image_mode
from fdconv_zoo.training.termination import outlive_sigterm


@dataclass(frozen=True)
class Evaluation:
    """Results over one set of images.

    Attributes:
        loss: Mean cross-entropy, in nats.
        top1: Percentage of images whose most likely class is correct.
        top5: Percentage of images whose class is among the five most likely; None for five classes or fewer.
        images: Number of images, each counted once.
        images_per_second: Throughput of all processes, including reading and preprocessing.
        labels: True class of each image, int64 (N,).
        predictions: Most likely class of each image, int64 (N,).
    """

    loss: float
    top1: float
    top5: float | None
    images: int
    images_per_second: float
    labels: np.ndarray = field(repr=False, compare=False)
    predictions: np.ndarray = field(repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """Return everything except `labels` and `predictions`, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("labels", "predictions")}


def evaluation_loader(
    source: Dataset | IterableDataset,
    preprocessing: Mapping[str, Any],
    batch_size: int,
    workers: int,
    *,
    skip_bad_images: bool = False,
) -> DataLoader:
    """Build the DataLoader of a validation set, for `accelerator.prepare`: in order, resized and cropped.

    Args:
        source: `ImageData.validation`.
        preprocessing: As `resolve_preprocessing` returns it.
        batch_size: Images per batch and process.
        workers: Processes that read images.
        skip_bad_images: For a stream, as in `StreamedImageDataset`.
    """
    transform = create_transform(**preprocessing)
    mode = image_mode(preprocessing)
    if isinstance(source, IterableDataset):
        dataset = StreamedImageDataset(source, transform, mode=mode, skip_bad_images=skip_bad_images)
    else:
        dataset = ImageDataset(source, transform, mode=mode)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_sigterm,
    )


# Not inference_mode: tensors that layers cache must stay usable by autograd when training continues.
@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], *, flip: bool = False
) -> Evaluation:
    """Evaluate `model` on the images of `loader`, and put it into eval mode.

    Every process must call this function.

    Args:
        accelerator: Accelerator of the run.
        model: Maps images to logits.
        loader: Batches of images (B, C, H, W) and class indices (B,), prepared by `accelerator`.
        flip: Average the logits of each image and its mirror image.
    """
    model.eval()
    start = time.perf_counter()
    rows = []
    for images, labels in loader:
        with accelerator.autocast():
            logits = model(images)
            if flip:
                logits = (logits + model(images.flip(-1))) / 2
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels[:, None]
        # gather_for_metrics drops the images that fill up the last batch of some processes
        row = [column.float() for column in (loss, hits[:, 0], hits.any(1), labels, best[:, 0])]
        rows.append(accelerator.gather_for_metrics(torch.stack(row, dim=1)))
    table = torch.cat(rows).cpu().double()
    loss, top1, top5 = table[:, :3].mean(0).tolist()
    labels, predictions = table[:, 3:].long().T.numpy()
    return Evaluation(
        loss=loss,
        top1=100 * top1,
        top5=100 * top5 if logits.shape[1] > 5 else None,
        images=len(table),
        images_per_second=len(table) / (time.perf_counter() - start),
        labels=labels,
        predictions=predictions,
    )
