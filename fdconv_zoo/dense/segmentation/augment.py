"""Random transforms of an image together with its mask."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.dense.segmentation.classes import IGNORE, INVALID

_TRIES = 10  # crops drawn, at most, until one is varied enough


def training_transform(
    crop_size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (0.5, 2.0),
    short_side: int | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    rotate: float = 0.0,
    photometric: bool = True,
    max_class_share: float = 0.75,
) -> v2.Transform:
    """Build the usual augmentation for segmentation: random scale, crop, flip and colours.

    Args:
        crop_size: Height and width in pixels, or one number for both. Smaller images are padded at random sides, with
            the mean colour and `IGNORE`.
        mean, std: Mean and standard deviation of each channel, for pixels in 0..1.
        scale: Range of the factor by which images are resized, drawn uniformly.
        short_side: Shorter side in pixels at factor 1. None: the image's own size.
        hflip, vflip: Probability of a horizontal and of a vertical flip.
        rotate: Largest angle, in degrees, of a random rotation to either side, before the crop. What it uncovers is
            filled like padding.
        photometric: Randomly change brightness, contrast, saturation and hue, each with probability 0.5.
        max_class_share: Largest share of a crop's labelled pixels that one class may have; otherwise another crop is
            drawn, up to ten times. With 1, only crops without labelled pixels are drawn again.

    Returns:
        A transform of `tv_tensors.Image` uint8 (3, H, W) and `tv_tensors.Mask` (H, W) to a normalized float32 image
        and a mask of `crop_size`.
    """
    fill = {tv_tensors.Image: [255 * value for value in mean], tv_tensors.Mask: IGNORE}
    colours = ({"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.05})
    return v2.Compose(
        [
            RandomScale(scale, short_side),
            # Left out if they do nothing: they would consume random numbers and so change the later transforms.
            *([v2.RandomRotation(rotate, InterpolationMode.BILINEAR, fill=fill)] if rotate else []),
            VariedCrop(crop_size, max_class_share, fill=fill),
            v2.RandomHorizontalFlip(hflip),
            *([v2.RandomVerticalFlip(vflip)] if vflip else []),
            *(v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in colours if photometric),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image (3, H, W) to a height and width, bilinear and antialiased."""
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def size_with_short_side(height: int, width: int, short_side: float) -> tuple[int, int]:
    """Return height and width with the same aspect ratio and a shorter side of `short_side` pixels."""
    factor = short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


class RandomScale(v2.Transform):
    """Resize an image and its mask by a factor drawn uniformly from `scale`; see `training_transform`."""

    def __init__(self, scale: tuple[float, float], short_side: int | None = None):
        super().__init__()
        self.scale = scale
        self.short_side = short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the new size."""
        height, width = v2.query_size(flat_inputs)
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": size_with_short_side(height, width, factor * (self.short_side or min(height, width)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize the image or the mask."""
        if not isinstance(inpt, tv_tensors.Mask):
            return resize(inpt, params["size"])
        # NEAREST is half a pixel off from the bilinear image; NEAREST_EXACT is not.
        mask = F.resize_image(inpt.as_subclass(Tensor)[None], params["size"], InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Mask(mask[0])


class VariedCrop(v2.RandomCrop):
    """A random crop, padded if needed, in which no class exceeds a share of pixels; see `training_transform`."""

    def __init__(self, size: int | tuple[int, int], max_class_share: float, fill: dict[type, Any]):
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.max_class_share = max_class_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop."""
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        for _ in range(_TRIES):
            params = super().make_params(flat_inputs)
            crop = self.transform(mask, params).as_subclass(Tensor)
            counts = torch.bincount(crop.flatten(), minlength=256)[:INVALID]
            if 0 < counts.max() <= self.max_class_share * counts.sum():
                break
        return params
