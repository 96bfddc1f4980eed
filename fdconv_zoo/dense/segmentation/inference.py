"""Prediction in parts and from several views: sliding windows, scales and mirror images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError

Size = tuple[int, int]


def slide(model: Callable[[Tensor], Tensor], images: Tensor, window: Size, stride: Size) -> Tensor:
    """Scores of windows over the images, averaged where they overlap.

    Args:
        model: Images (B, 3, h, w) to scores (B, K, h, w).
        images: (B, 3, H, W).
        window: Height and width; a smaller image is one window.
        stride: From one window to the next, down and to the right. The last windows end with the image.

    Returns:
        Scores (B, K, H, W).

    Raises:
        ConfigError: a stride that is no stride, or leaves gaps between the windows.
    """
    if not all(0 < step <= side for step, side in zip(stride, window, strict=True)):
        raise ConfigError(f"stride {stride} with windows of {window}: must be from 1 to the window's side")
    height, width = images.shape[-2:]
    window = (min(window[0], height), min(window[1], width))
    total: Tensor | None = None
    count = images.new_zeros(height, width)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            scores = model(images[place])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[place] += scores
            count[place] += 1
    return total / count


def _starts(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]


def predict(
    model: Segmenter,
    images: Tensor,
    size: Size | None = None,
    *,
    window: Size | None = None,
    stride: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Probabilities of the classes, averaged over scales and mirror images.

    Args:
        model: In eval mode.
        images: (B, 3, H, W), normalized.
        size: Height and width of the result; by default those of the images.
        window, stride: As in `slide`; None: the whole image at once, and two thirds of the window.
        scales: Factors on the images' sides.
        flip: Also predict each from left to right reversed.

    Returns:
        (B, K, *size); of ``mask2former`` its scores.
    """
    height, width = images.shape[-2:]
    size = size or (height, width)
    if window and not stride:
        stride = (-(-window[0] * 2 // 3), -(-window[1] * 2 // 3))

    def view(images: Tensor) -> Tensor:
        scores = slide(model, images, window, stride) if window else model(images)
        return model.probabilities(_resize(scores.float(), size))

    total: Tensor | float = 0.0
    for scale in scales:
        scaled = _resize(images, (max(round(height * scale), 1), max(round(width * scale), 1)))
        total = total + view(scaled)
        if flip:
            total = total + view(scaled.flip(-1)).flip(-1)
    return total / (len(scales) * (1 + flip))


def _resize(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear")
