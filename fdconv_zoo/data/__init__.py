"""Labelled images for training: any of the usual sources in, checked; repeatable augmentation out.

`load_image_data` finds and checks them through the `datasets` library; `ImageDataset` and `StreamedImageDataset` decode
and transform them for a DataLoader.
"""

from fdconv_zoo.data.augmented import ImageDataset, StreamedImageDataset
from fdconv_zoo.data.error import DataError
from fdconv_zoo.data.image import open_image
from fdconv_zoo.data.loading import ImageData, load_image_data
from fdconv_zoo.data.sources import SAMPLE

__all__ = ["SAMPLE", "DataError", "ImageData", "ImageDataset", "StreamedImageDataset", "load_image_data", "open_image"]
