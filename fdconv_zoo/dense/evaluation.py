"""Shared parts of the evaluation of segmenters and detectors."""

import torch
from torch.utils.data import DataLoader, Dataset


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader:
    """Load evaluation images in order, for `accelerator.prepare`.

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


def markdown_row(*cells: str | int | float | None) -> str:
    """Format a row of a Markdown table: floats with two decimals, None as "-"."""
    texts = ("-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"
