"""PyTorch datasets of images with boxes and masks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.data.dataset import RepeatableDataset
from fdconv_zoo.data.image import decode_image, reason
from fdconv_zoo.dense.detection.augment import Transform
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.rle import decode_masks
from fdconv_zoo.errors import DataError


class DetectionDataset(RepeatableDataset):
    """Images and objects for training; augmentation is a pure function of (seed, epoch, index).

    Args:
        source: Images as returned by `load_detection_data`.
        transform: Maps an image and its target to an augmented image and target, as `training_transform` does.
        masks: Add masks to the targets.
        seed: Seed of the augmentation.
    """

    def __init__(self, source: CocoImages, transform: Transform, *, masks: bool, seed: int = 0):
        super().__init__(source, transform, seed=seed)
        self.masks = masks

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return an image and its target, in the format of torchvision's detectors.

        Returns:
            The image, float32 (3, H, W) in 0..1, and its objects without crowds: `boxes` float32 (N, 4), x1, y1, x2,
            y2 in pixels; `labels` int64 (N,), 1 to K; `masks` uint8 (N, H, W), if requested; and `image_id`, the id
            in the annotation file.

        Raises:
            DataError: the image cannot be read.
        """
        index = int(index)
        image, target = read_image(self.source, index), read_target(self.source, index, masks=self.masks)
        image, target = self.augment(index, image, target)
        return _to_float(image), {name: value.as_subclass(Tensor) for name, value in target.items()}

    @staticmethod
    def collate(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Collect images and targets in lists, because sizes differ."""
        images, targets = zip(*batch, strict=True)
        return list(images), list(targets)


class EvaluationDataset(data.Dataset):
    """Images at their stored size, with their ids.

    Args:
        source: Images as returned by `load_detection_data`.
    """

    def __init__(self, source: CocoImages):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image float32 (3, H, W) in 0..1 and image id. Raises DataError if the image cannot be read."""
        return _to_float(read_image(self.source, index)), int(self.source.image_ids[index])

    @staticmethod
    def collate(batch: list[tuple[Tensor, int]]) -> tuple[list[Tensor], list[int]]:
        """Collect images and ids in lists, because sizes differ."""
        images, image_ids = zip(*batch, strict=True)
        return list(images), list(image_ids)


def read_image(images: CocoImages, index: int) -> tv_tensors.Image:
    """Read the stored pixels of an image, uint8 (3, H, W). Transparent pixels are composited over white.

    EXIF rotation is not applied: boxes in COCO's format refer to the stored pixels, as in COCO's own tools and in
    torchvision's.

    Raises:
        DataError: the file cannot be read, or its size differs from the annotation file.
    """
    path = images.path(index)
    pixels = _decode(path)
    width, height = images.sizes[index].tolist()
    if pixels.size != (width, height):
        raise DataError(
            f"{path}: has {pixels.width}x{pixels.height} pixels, but {width}x{height} in "
            f"{images.annotation_file}. Correct one of them, or remove the image from the annotation file."
        )
    return tv_tensors.Image(F.pil_to_tensor(pixels))


def _decode(path: Path) -> Image.Image:
    try:
        return decode_image({"path": str(path)}, upright=False)
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise DataError(
            f"{path}: cannot be read as an image ({reason(error)}). Repair it, or remove it from the annotation file."
        ) from error


def read_target(images: CocoImages, index: int, *, masks: bool) -> dict[str, Any]:
    """Read the objects of an image as `DetectionDataset` returns them, but as torchvision's `tv_tensors`."""
    width, height = images.sizes[index].tolist()
    objects = images.annotations(index)
    objects = objects[~images.is_crowd[objects]]
    x, y, w, h = images.boxes[objects].T
    boxes = np.stack([x, y, x + w, y + h], axis=1).clip(0, [width, height, width, height])
    target = {
        "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes).float(), format="XYXY", canvas_size=(height, width)),
        "labels": torch.from_numpy(images.labels[objects]),
        "image_id": torch.tensor(int(images.image_ids[index])),
    }
    if masks:
        pixels = decode_masks([images.segmentation(annotation) for annotation in objects], width, height)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(pixels))
    return target


def _to_float(image: tv_tensors.Image) -> Tensor:
    return F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
