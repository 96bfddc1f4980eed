"""PyTorch datasets of images and masks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.data.dataset import RepeatableDataset
from fdconv_zoo.dense.segmentation.augment import resize, size_with_short_side

Pairs = Sequence[tuple[Image.Image, np.ndarray]]
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class SegmentationDataset(RepeatableDataset):
    """Images and masks for training; augmentation is a pure function of (seed, epoch, index).

    Args:
        source: RGB images with class indices uint8 (H, W), as returned by `load_segmentation_data`.
        transform: Maps an image uint8 (3, H, W) and a mask (H, W) to a normalized image and a mask of a fixed size, as
            `training_transform` does.
        seed: Seed of the augmentation.
    """

    def __init__(self, source: Pairs, transform: Transform, *, seed: int = 0):
        super().__init__(source, transform, seed=seed)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image float32 (3, H, W) and mask int64 (H, W). Raises DataError if a file cannot be read."""
        index = int(index)
        image, mask = self.source[index]
        image, mask = self.augment(index, tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    @staticmethod
    def collate(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack images to (B, 3, H, W) and masks to (B, H, W)."""
        images, masks = zip(*batch, strict=True)
        return torch.stack(images), torch.stack(masks)


class EvaluationDataset(data.Dataset):
    """Images prepared for a model, with masks at full size.

    Args:
        source: RGB images with class indices uint8 (H, W).
        mean, std: Mean and standard deviation of each channel, for pixels in 0..1.
        short_side: Shorter side in pixels to which images are resized; None keeps their size. Masks are not resized.
    """

    def __init__(self, source: Pairs, *, mean: Sequence[float], std: Sequence[float], short_side: int | None = None):
        self.source = source
        self.mean = list(mean)
        self.std = list(std)
        self.short_side = short_side

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Return image float32 (3, h, w), mask int64 (H, W) and index. Raises DataError if a file cannot be read."""
        index = int(index)
        image, mask = self.source[index]
        return self.prepare(image), torch.from_numpy(mask).long(), index

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize and normalize an RGB image; returns float32 (3, h, w)."""
        pixels = F.pil_to_tensor(image)
        if self.short_side is not None:
            pixels = resize(pixels, size_with_short_side(*pixels.shape[-2:], self.short_side))
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    @staticmethod
    def collate(batch: list[tuple[Tensor, Tensor, int]]) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Collect images, masks and indices in lists, because sizes differ."""
        images, masks, indices = zip(*batch, strict=True)
        return list(images), list(masks), list(indices)
