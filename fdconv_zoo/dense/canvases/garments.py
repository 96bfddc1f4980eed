"""The packaged images of Fashion-MNIST as cut-outs: pixels, outline and class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from datasets import Features
from scipy import ndimage

from fdconv_zoo.data.image import open_image
from fdconv_zoo.data.sources import SAMPLE_FOLDER

Split = Literal["train", "validation"]

_SPECK = 0.1  # parts smaller than this fraction of the largest are dropped


@dataclass(frozen=True)
class Garments:
    """The images of one split, decoded when they are asked for.

    Attributes:
        records: N undecoded images.
        labels: (N,) int64, 0 to 9.
        class_names: of the labels.
    """

    records: list[dict]
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Gray values (28, 28), float64 in 0..1, and the mask (28, 28), bool, of one garment."""
        image = np.asarray(open_image(self.records[index], "L"))
        return image / 255, garment_mask(image)


def load_garments(split: Split) -> Garments:
    """Read one split of the sample; no image is in both."""
    table = pq.read_table(SAMPLE_FOLDER / f"{split}.parquet")
    names = Features.from_arrow_schema(table.schema)["label"].names
    return Garments(table.column("image").to_pylist(), table.column("label").to_numpy(), names)


def garment_mask(image: np.ndarray) -> np.ndarray:
    """Where a garment is: all that is not 0, without specks, and without holes, which are the black of its cloth.

    Args:
        image: (H, W).

    Returns:
        (H, W) bool.
    """
    parts, _ = ndimage.label(image > 0, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return ndimage.binary_fill_holes((areas >= _SPECK * areas.max())[parts])
