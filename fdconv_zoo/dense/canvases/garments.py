"""The packaged images of Fashion-MNIST as cut-outs: pixels, mask and class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from datasets import Features
from scipy import ndimage

from fdconv_zoo.data.image import open_image
from fdconv_zoo.data.sources import SAMPLE_FOLDER

Split = Literal["train", "validation"]

_MIN_PART = 0.1  # smaller parts, relative to the largest, are removed


@dataclass(frozen=True)
class Garments:
    """The images of one split, decoded on access.

    Attributes:
        records: N undecoded images.
        labels: Labels 0 to 9, int64 (N,).
        class_names: Names of the labels.
    """

    records: list[dict]
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return gray values in 0..1, float64 (28, 28), and mask, bool (28, 28), of a garment."""
        image = np.asarray(open_image(self.records[index], "L"))
        return image / 255, garment_mask(image)


def load_garments(split: Split) -> Garments:
    """Read one split of the sample. The splits have no images in common."""
    table = pq.read_table(SAMPLE_FOLDER / f"{split}.parquet")
    names = Features.from_arrow_schema(table.schema)["label"].names
    return Garments(table.column("image").to_pylist(), table.column("label").to_numpy(), names)


def garment_mask(image: np.ndarray) -> np.ndarray:
    """Segment a garment: all nonzero pixels, without small parts, and with holes (black cloth) filled.

    Args:
        image: Gray values (H, W).

    Returns:
        Mask, bool (H, W).
    """
    parts, _ = ndimage.label(image > 0, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return ndimage.binary_fill_holes((areas >= _MIN_PART * areas.max())[parts])
