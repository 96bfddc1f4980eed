"""Random transforms of an image together with its boxes and masks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

_PADDING = (124, 116, 104)  # ImageNet's mean, which the detector turns into the 0 that it pads batches with

Target = dict[str, Any]
Transform = Callable[[tv_tensors.Image, Target], tuple[tv_tensors.Image, Target]]


def training_transform(
    *,
    hflip: float = 0.5,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: int = 1024,
    photometric: bool = False,
) -> Transform:
    """The random transform of a training image and its target.

    Torchvision's detectors bring every image to one size themselves, and draw that size where they are given several
    (`min_size`): resizing here, without a crop, would be undone there.

    Args:
        hflip: probability of a horizontal flip.
        scale_jitter: smallest and largest factor of a random scale, of which a square is cropped at random, or padded:
            (0.1, 2.0) is large scale jitter. None leaves the size alone.
        crop_size: side in pixels of that square; at factor 1 the image just fits into it.
        photometric: draw brightness, contrast, saturation, hue and the order of the channels.
    """
    steps: list[Callable] = []
    if photometric:
        steps.append(v2.RandomPhotometricDistort())
    if scale_jitter is not None:
        size = (crop_size, crop_size)
        steps += [
            v2.ScaleJitter(size, scale_range=scale_jitter),
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: _PADDING, "others": 0}),
            boxes_from_masks,
        ]
    # The last step takes out what the crop has left nothing of, and objects smaller than a pixel.
    return v2.Compose([*steps, v2.RandomHorizontalFlip(hflip), v2.SanitizeBoundingBoxes()])


def boxes_from_masks(image: tv_tensors.Image, target: Target) -> tuple[tv_tensors.Image, Target]:
    """Draws the boxes anew around what a crop has left of the masks, if there are any.

    A cropped box alone is too large: it goes up to the edge even where the object does not.
    """
    if "masks" not in target:
        return image, target
    boxes = tv_tensors.wrap(enclosing_boxes(target["masks"]), like=target["boxes"])
    return image, target | {"boxes": boxes}


def enclosing_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes around masks.

    Args:
        masks: (N, H, W), not zero where the object is.

    Returns:
        x1, y1, x2, y2 in pixels, float (N, 4), where x2 and y2 are the first column and row after the object; all 0
        for an empty mask.
    """
    masks, sides = masks.bool(), []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns (N, W), rows (N, H)
        places = torch.arange(occupied.shape[1])
        first = torch.where(occupied, places, occupied.shape[1]).amin(1)
        last = torch.where(occupied, places + 1, 0).amax(1)
        sides.append((first.minimum(last), last))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], dim=1).float()
