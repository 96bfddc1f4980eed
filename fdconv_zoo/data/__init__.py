"""Labelled images for training: finds and checks images, and augments them reproducibly.

`load_image_data` finds and checks images through the `datasets` library. `ImageDataset` and `StreamedImageDataset`
decode and transform them for a DataLoader. `open_image` needs Pillow only; names that need `datasets` are imported on
first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fdconv_zoo.data.image import open_image
from fdconv_zoo.errors import DataError

if TYPE_CHECKING:
    from fdconv_zoo.data.dataset import ImageDataset, StreamedImageDataset
    from fdconv_zoo.data.loading import ImageData, load_image_data
    from fdconv_zoo.data.sources import SAMPLE

_LAZY = {
    "SAMPLE": "sources",
    "ImageData": "loading",
    "ImageDataset": "dataset",
    "StreamedImageDataset": "dataset",
    "load_image_data": "loading",
}

__all__ = ["SAMPLE", "DataError", "ImageData", "ImageDataset", "StreamedImageDataset", "load_image_data", "open_image"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
