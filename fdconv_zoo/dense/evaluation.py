"""Shared parts of the evaluation of segmenters and detectors."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader:
    """Build the DataLoader of evaluation images, in order, for `accelerator.prepare`.

    Args:
        dataset: `EvaluationDataset` of segmentation or detection.
        batch_size: Images per batch and process.
        workers: Processes that read images.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=torch.cuda.is_available(),
    )


def choose_varied(present: np.ndarray, number: int) -> list[int]:
    """Choose images greedily, so that together they show as many classes as possible.

    Args:
        present: Whether each class occurs in each image, bool (N, K).
        number: How many images to choose.

    Returns:
        Indices of the images, ascending. When no image adds a class, the first remaining images are chosen.
    """
    chosen: list[int] = []
    missing = present.any(axis=0)
    while len(chosen) < min(number, len(present)):
        gains = (present & missing).sum(axis=1)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        missing &= ~present[chosen[-1]]
    return sorted(chosen)


def markdown_row(*cells: str | int | float | None) -> str:
    """Format a row of a Markdown table: floats with two decimals, None as "-"."""
    texts = ("-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"
