"""PyTorch datasets over images and masks: augmented and repeatable for training, as they are for evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from fdconv_zoo.data.augmented import seeded, shared
from fdconv_zoo.dense.segmentation.augment import resized, size_with_short_side

Pairs = Sequence[tuple[Image.Image, np.ndarray]]
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class SegmentationDataset(data.Dataset):
    """Images and masks for training; augmentation is a pure function of (seed, epoch, index).

    Args:
        references: RGB images with class numbers uint8 (H, W), as `load_segmentation_data` gives them.
        transform: uint8 image (3, H, W), mask (H, W) -> normalized image, mask, of one size for all; see
            `training_transform`.
        seed: of the augmentation.
    """

    def __init__(self, references: Pairs, transform: Transform, *, seed: int = 0):
        self.references = references
        self.transform = transform
        self.seed = seed
        self._epoch = shared()

    def set_epoch(self, epoch: int) -> None:
        """Call before the epoch's DataLoader iterator is made; also reaches persistent workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image float32 (3, H, W) and mask int64 (H, W). Raises DataError for files that cannot be read."""
        index = int(index)
        image, mask = self.references[index]
        with seeded(self.seed, int(self._epoch), index):
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    @staticmethod
    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and masks (B, H, W)."""
        images, masks = zip(*items, strict=True)
        return torch.stack(images), torch.stack(masks)


class EvaluationDataset(data.Dataset):
    """Images as a model takes them, with masks in full size.

    Args:
        references: RGB images with class numbers uint8 (H, W).
        mean: of each channel, for pixels in 0..1.
        std: the same.
        short_side: pixels of the shorter side of images; None leaves them in their size. Masks keep theirs.
    """

    def __init__(
        self, references: Pairs, *, mean: Sequence[float], std: Sequence[float], short_side: int | None = None
    ):
        self.references = references
        self.mean = list(mean)
        self.std = list(std)
        self.short_side = short_side

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Image float32 (3, h, w), mask int64 (H, W) and index. Raises DataError for files that cannot be read."""
        index = int(index)
        image, mask = self.references[index]
        return self.prepare(image), torch.from_numpy(mask).long(), index

    def prepare(self, image: Image.Image) -> Tensor:
        """The tensor of an RGB image, as a model takes it."""
        pixels = functional.pil_to_tensor(image)
        if self.short_side is not None:
            pixels = resized(pixels, size_with_short_side(*pixels.shape[-2:], self.short_side))
        return functional.normalize(functional.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    @staticmethod
    def collate(items: list[tuple[Tensor, Tensor, int]]) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Lists of images, masks and indices, since sizes differ."""
        images, masks, indices = zip(*items, strict=True)
        return list(images), list(masks), list(indices)
