"""Labelled images for training: any of the usual sources in, checked; repeatable augmentation out.

`load_image_data` finds and checks them through the `datasets` library; `ImageDataset` and `StreamedImageDataset` decode
and transform them for a DataLoader.
"""

from .augmented import ImageDataset, StreamedImageDataset
from .error import DataError
from .image import open_image
from .loading import ImageData, load_image_data
from .sources import SAMPLE

__all__ = ["SAMPLE", "DataError", "ImageData", "ImageDataset", "StreamedImageDataset", "load_image_data", "open_image"]
