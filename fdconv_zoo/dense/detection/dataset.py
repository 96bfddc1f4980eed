"""PyTorch datasets over images with boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.data.augmented import seeded, shared
from fdconv_zoo.data.image import reason
from fdconv_zoo.dense.detection.augment import Transform
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.rle import decode_masks
from fdconv_zoo.errors import DataError


class DetectionDataset(data.Dataset):
    """Images with their objects; augmentation is a pure function of (seed, epoch, index).

    Args:
        references: the images, as `load_detection_data` returns them.
        transform: image and target -> both, as `training_transform` makes it.
        masks: whether targets have masks.
        seed: of the augmentation.
    """

    def __init__(self, references: CocoImages, transform: Transform, *, masks: bool, seed: int = 0):
        self.references = references
        self.transform = transform
        self.masks = masks
        self.seed = seed
        self._epoch = shared()

    def set_epoch(self, epoch: int) -> None:
        """Call before the epoch's DataLoader iterator is made; also reaches persistent workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An image and its target, as torchvision's detectors train on them.

        Returns:
            The image, float (3, H, W) in 0..1, and of its objects, without crowds: `boxes` float (N, 4), x1, y1, x2,
            y2 in pixels; `labels` long (N,), 1 to K; `masks` uint8 (N, H, W), if wanted; `image_id`, the file's.

        Raises:
            DataError: the image cannot be read.
        """
        index = int(index)
        image, target = read_image(self.references, index), read_target(self.references, index, masks=self.masks)
        with seeded(self.seed, int(self._epoch), index):
            image, target = self.transform(image, target)
        return _to_float(image), {name: value.as_subclass(Tensor) for name, value in target.items()}

    @staticmethod
    def collate(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Images and targets of a batch in two lists, because sizes differ."""
        images, targets = zip(*batch, strict=True)
        return list(images), list(targets)


class EvaluationDataset(data.Dataset):
    """Images as they are, with their ids.

    Args:
        references: the images, as `load_detection_data` returns them.
    """

    def __init__(self, references: CocoImages):
        self.references = references

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, float (3, H, W) in 0..1, and its id. Raises DataError for one that cannot be read."""
        return _to_float(read_image(self.references, index)), int(self.references.image_ids[index])

    @staticmethod
    def collate(batch: list[tuple[Tensor, int]]) -> tuple[list[Tensor], list[int]]:
        """Images and ids of a batch in two lists, because sizes differ."""
        images, image_ids = zip(*batch, strict=True)
        return list(images), list(image_ids)


def read_image(references: CocoImages, index: int) -> tv_tensors.Image:
    """The stored pixels of an image, uint8 (3, H, W).

    An EXIF tag does not turn it: boxes of COCO's format belong to the stored pixels, in COCO's own tools and in
    torchvision's.

    Raises:
        DataError: the file cannot be read, or has not the size that the annotation file says.
    """
    path = references.path(index)
    pixels = _decode(path)
    width, height = references.sizes[index].tolist()
    if pixels.size != (width, height):
        raise DataError(
            f"{path}: has {pixels.width}x{pixels.height} pixels, but {width}x{height} in "
            f"{references.annotation_file}. Correct either, or remove the image there."
        )
    return tv_tensors.Image(F.pil_to_tensor(pixels))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders fail with a dozen types
        raise DataError(
            f"{path}: cannot be read as an image ({reason(error)}). Repair it, or remove it from the annotation file."
        ) from error


def read_target(references: CocoImages, index: int, *, masks: bool) -> dict[str, Any]:
    """The objects of an image, as `DetectionDataset` gives them, but in torchvision's `tv_tensors`."""
    width, height = references.sizes[index].tolist()
    numbers = references.annotations(index)
    numbers = numbers[~references.is_crowd[numbers]]
    x, y, w, h = references.boxes[numbers].T
    boxes = np.stack([x, y, x + w, y + h], axis=1).clip(0, [width, height, width, height])
    target = {
        "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes).float(), format="XYXY", canvas_size=(height, width)),
        "labels": torch.from_numpy(references.labels[numbers]),
        "image_id": torch.tensor(int(references.image_ids[index])),
    }
    if masks:
        pixels = decode_masks([references.segmentation(number) for number in numbers], width, height)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(pixels))
    return target


def _to_float(image: tv_tensors.Image) -> Tensor:
    return F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
