"""Random transforms of an image together with its boxes and masks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

_PADDING = (124, 116, 104)  # the mean of ImageNet, which becomes 0 when the detector normalizes, like its own padding

Target = dict[str, Any]
Transform = Callable[[tv_tensors.Image, Target], tuple[tv_tensors.Image, Target]]


def training_transform(
    *,
    hflip: float = 0.5,
    vflip: float = 0.0,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: int = 1024,
    photometric: bool = False,
) -> Transform:
    """Build the augmentation of training images and their targets.

    There is no resizing without a crop, because it would have no effect: torchvision's detectors resize every image
    themselves, to a size drawn at random if `min_size` lists several.

    Args:
        hflip, vflip: Probability of a horizontal and of a vertical flip.
        scale_jitter: Range of the random scale factor; the result is randomly cropped, or padded, to a square.
            (0.1, 2.0) is large scale jitter. None: no scaling.
        crop_size: Side of the square in pixels; at factor 1 the image just fits into it.
        photometric: Randomly change brightness, contrast, saturation, hue and the order of the channels.
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
    steps.append(v2.RandomHorizontalFlip(hflip))
    if vflip:
        steps.append(v2.RandomVerticalFlip(vflip))
    # The last step removes objects outside the crop, and objects smaller than a pixel.
    return v2.Compose([*steps, v2.SanitizeBoundingBoxes()])


def boxes_from_masks(image: tv_tensors.Image, target: Target) -> tuple[tv_tensors.Image, Target]:
    """Recompute the boxes from the cropped masks, if there are masks.

    A cropped box is too large if the object itself does not reach the border of the crop.
    """
    if "masks" not in target:
        return image, target
    boxes = tv_tensors.wrap(enclosing_boxes(target["masks"]), like=target["boxes"])
    return image, target | {"boxes": boxes}


def enclosing_boxes(masks: Tensor) -> Tensor:
    """Compute the smallest boxes around masks.

    Args:
        masks: Masks (N, H, W), nonzero inside the object.

    Returns:
        x1, y1, x2, y2 in pixels, float (N, 4); x2 and y2 are the first column and row after the object. All 0 for an
        empty mask.
    """
    masks, ranges = masks.bool(), []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns (N, W), rows (N, H)
        positions = torch.arange(occupied.shape[1])
        start = torch.where(occupied, positions, occupied.shape[1]).amin(1)
        stop = torch.where(occupied, positions + 1, 0).amax(1)
        ranges.append((start.minimum(stop), stop))
    (x1, x2), (y1, y2) = ranges
    return torch.stack([x1, y1, x2, y2], dim=1).float()
