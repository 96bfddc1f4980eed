"""Images with their masks, decoded when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps

from fdconv_zoo.data.image import open_image, read_bytes, reason
from fdconv_zoo.errors import DataError


@dataclass(frozen=True, eq=False)
class References(Sequence[tuple[Image.Image, np.ndarray]]):
    """Images and masks of one split.

    Attributes:
        source: columns `image` and `mask`, both undecoded ({"bytes", "path"}).
        rows: those of `source` that belong to it, (N,).
        split: its name, for messages.
        numbers: the class number of each mask value, uint8 (256,).
    """

    source: Dataset
    rows: np.ndarray
    split: str
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """The image, RGB and upright, and its class numbers, uint8 (H, W).

        Raises:
            DataError: a file that has become unreadable since it was checked.
        """
        record = self.source[int(self.rows[index])]
        try:
            return open_image(record["image"]), self.numbers[open_mask(record["mask"])]
        except Exception as error:  # Pillow's decoders fail with a dozen types
            cause = error.__cause__ if isinstance(error, DataError) else error
            raise DataError(
                f"{self.place(index, 'image')} or its mask cannot be read ({reason(cause)}). Repair or remove both."
            ) from error

    def place(self, index: int, column: Literal["image", "mask"]) -> str:
        """Names an image or a mask: its path, or else its row."""
        row = int(self.rows[index])
        return (self.source[row][column] or {}).get("path") or f"{column} of row {row} of split {self.split!r}"


def open_mask(record: dict | None) -> np.ndarray:
    """Decodes a mask: grayscale values or palette indices as they are stored, uint8 (H, W).

    Args:
        record: what a `datasets` image column holds undecoded: `bytes`, or else `path`.

    Raises:
        ValueError: not 8-bit grayscale or palette, or JPEG. Pillow's and the file system's errors pass as they are.
    """
    mask = Image.open(BytesIO(read_bytes(record)))
    if mask.format == "JPEG":
        raise ValueError("a JPEG file, whose compression changes class numbers")
    if mask.mode not in ("1", "L", "P"):
        raise ValueError(f"mode {mask.mode}, not 8-bit grayscale or palette")
    mask.load()
    ImageOps.exif_transpose(mask, in_place=True)  # as images are
    return np.asarray(mask).astype(np.uint8)
