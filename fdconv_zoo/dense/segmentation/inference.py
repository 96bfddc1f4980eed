"""Prediction with sliding windows, several scales and mirrored images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError

Size = tuple[int, int]


def slide(model: Callable[[Tensor], Tensor], images: Tensor, window: Size, stride: Size) -> Tensor:
    """Compute scores in sliding windows, averaged where the windows overlap.

    Args:
        model: Images (B, 3, h, w) -> scores (B, K, h, w).
        images: Images (B, 3, H, W).
        window: Height and width of the window; a smaller image is a single window.
        stride: Vertical and horizontal distance between windows. The last windows end at the border of the image.

    Returns:
        Scores (B, K, H, W).

    Raises:
        ConfigError: a stride is not positive, or leaves gaps between the windows.
    """
    if not all(0 < step <= side for step, side in zip(stride, window, strict=True)):
        raise ConfigError(
            f"stride {stride} with window {window}: each stride must be between 1 and the side of the window"
        )
    height, width = images.shape[-2:]
    window = (min(window[0], height), min(window[1], width))
    total: Tensor | None = None
    count = images.new_zeros(height, width)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            region = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            scores = model(images[region])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[region] += scores
            count[region] += 1
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
    """Predict class probabilities, averaged over scales and mirrored images.

    Args:
        model: The segmenter, in eval mode.
        images: Normalized images (B, 3, H, W).
        size: Height and width of the result. Default: those of the images.
        window, stride: As in `slide`. Default: the whole image at once, and a stride of two thirds of the window.
        scales: Factors by which the images are resized.
        flip: Also predict the horizontally mirrored images.

    Returns:
        Probabilities (B, K, *size); for ``mask2former``, its scores.
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
