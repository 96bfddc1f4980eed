"""What happens to an image and its mask alike before training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from fdconv_zoo.dense.segmentation.classes import IGNORE, OUTSIDE

_TRIES = 10  # crops drawn until one has variety enough


def training_transform(
    crop_size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (0.5, 2.0),
    short_side: int | None = None,
    hflip: float = 0.5,
    photometric: bool = True,
    max_class_share: float = 0.75,
) -> v2.Transform:
    """The usual augmentation for segmentation: random scale, crop, flip and colours.

    Args:
        crop_size: height and width in pixels, or both in one. Smaller images are padded, by their mean colour and by
            `IGNORE`, at random sides.
        mean: of each channel, for pixels in 0..1.
        std: the same.
        scale: range of the factor by which images are resized, drawn uniformly.
        short_side: the factor applies to images with a shorter side of so many pixels; None, to each in its own size.
        hflip: probability of a mirror image.
        photometric: change brightness, contrast, saturation and hue, each of them half of the time.
        max_class_share: at most this share of a crop's labelled pixels may be of one class, else another crop is drawn,
            ten times at most. With 1, crops without any label alone are drawn again.

    Returns:
        `tv_tensors.Image` uint8 (3, H, W), `tv_tensors.Mask` (H, W) -> the same of `crop_size`, the image normalized
        float32.
    """
    fill = {tv_tensors.Image: [255 * value for value in mean], tv_tensors.Mask: IGNORE}
    colours = ({"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.05})
    return v2.Compose(
        [
            RandomScale(scale, short_side),
            VariedCrop(crop_size, max_class_share, fill=fill),
            v2.RandomHorizontalFlip(hflip),
            *(v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in colours if photometric),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image (3, H, W) at another height and width: bilinear, smoothed where it shrinks."""
    return functional.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def size_with_short_side(height: int, width: int, short_side: float) -> tuple[int, int]:
    """Height and width of the same shape with a shorter side of so many pixels."""
    factor = short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


class RandomScale(v2.Transform):
    """Resizes an image and its mask by a factor drawn uniformly from `scale`; see `training_transform`."""

    def __init__(self, scale: tuple[float, float], short_side: int | None = None):
        super().__init__()
        self.scale = scale
        self.short_side = short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the new size."""
        height, width = v2.query_size(flat_inputs)
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": size_with_short_side(height, width, factor * (self.short_side or min(height, width)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one of both."""
        if not isinstance(inpt, tv_tensors.Mask):
            return resized(inpt, params["size"])
        # Exact, because the other nearest neighbour lies half a pixel off where the bilinear image lies.
        mask = functional.resize_image(inpt.as_subclass(Tensor)[None], params["size"], InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Mask(mask[0])


class VariedCrop(v2.RandomCrop):
    """A random crop, padded where needed, in which no class has more than its share; see `training_transform`."""

    def __init__(self, size: int | tuple[int, int], max_class_share: float, fill: dict[type, Any]):
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.max_class_share = max_class_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the crop."""
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        for _ in range(_TRIES):
            params = super().make_params(flat_inputs)
            crop = self.transform(mask, params).as_subclass(Tensor)
            counts = torch.bincount(crop.flatten(), minlength=256)[:OUTSIDE]
            if 0 < counts.max() <= self.max_class_share * counts.sum():
                break
        return params
