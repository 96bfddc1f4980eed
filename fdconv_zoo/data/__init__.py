"""Labelled images for training: any of the usual sources in, checked; repeatable augmentation out.

`load_image_data` finds and checks them through the `datasets` library; `ImageDataset` and `StreamedImageDataset` decode
and transform them for a DataLoader. `open_image` needs Pillow only: what builds on `datasets` is imported when it is
first asked for.
"""

from importlib import import_module
from typing import Any

from fdconv_zoo.data.image import open_image

_LATER = {
    "SAMPLE": "sources",
    "ImageData": "loading",
    "ImageDataset": "augmented",
    "StreamedImageDataset": "augmented",
    "load_image_data": "loading",
}

__all__ = ["SAMPLE", "ImageData", "ImageDataset", "StreamedImageDataset", "load_image_data", "open_image"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
