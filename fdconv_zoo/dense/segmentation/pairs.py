"""Pairs of images and masks, decoded on access."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset
from PIL import Image

from fdconv_zoo.data.image import open_image, reason
from fdconv_zoo.dense.segmentation.mask_file import open_mask
from fdconv_zoo.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageMaskPairs(Sequence[tuple[Image.Image, np.ndarray]]):
    """Images and masks of one split.

    Attributes:
        source: Dataset with the columns `image` and `mask`, both undecoded ({"bytes", "path"}).
        rows: The rows of `source` that belong to the split, (N,).
        split: Name of the split, for messages.
        lookup: The class index of each mask value, uint8 (256,).
    """

    source: Dataset
    rows: np.ndarray
    split: str
    lookup: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return the image, RGB and upright, and its class indices, uint8 (H, W).

        Raises:
            DataError: a file has become unreadable since it was checked.
        """
        record = self.source[int(self.rows[index])]
        try:
            return open_image(record["image"]), self.lookup[open_mask(record["mask"])]
        except Exception as error:  # Pillow's decoders raise a dozen types
            cause = error.__cause__ if isinstance(error, DataError) else error
            raise DataError(
                f"{self.describe(index, 'image')} or its mask cannot be read ({reason(cause)}). Repair or remove both."
            ) from error

    def describe(self, index: int, column: Literal["image", "mask"]) -> str:
        """Return the path of an image or a mask, or its row if it has no path."""
        row = int(self.rows[index])
        return (self.source[row][column] or {}).get("path") or f"{column} of row {row} of split {self.split!r}"
