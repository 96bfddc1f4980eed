"""Draws segmentations: over the image, or as image, truth and prediction side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fdconv_zoo.dense.colours import class_colour
from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset
from fdconv_zoo.dense.segmentation.inference import predict
from fdconv_zoo.dense.segmentation.model import Segmenter

Mask = NDArray[np.integer]  # class indices (H, W); 255 for ignored pixels

_SIDE = 192  # shorter side of a panel, in pixels
_GAP, _FONT_SIZE, _LINE = 8, 14, 22
_HATCH = ((70, 70, 70), (150, 150, 150))
_COLOURS = np.array([class_colour(index) for index in range(256)], np.uint8)


def draw_mask(mask: Mask) -> Image.Image:
    """Draw a mask in the colours of its classes; ignored pixels are hatched in grey."""
    picture = _COLOURS[mask]
    rows, columns = np.nonzero(mask == IGNORE)
    picture[rows, columns] = np.array(_HATCH, np.uint8)[(rows + columns) // 4 % 2]
    return Image.fromarray(picture)


def draw_segmentation(image: Image.Image, mask: Mask, alpha: float = 0.5) -> Image.Image:
    """Draw a mask over its image.

    Args:
        image: RGB image, W x H.
        mask: Class indices (H, W).
        alpha: Opacity of the mask, from 0 to 1.
    """
    return Image.blend(image.convert("RGB"), draw_mask(mask), alpha)


def draw_comparison(
    rows: Sequence[tuple[Image.Image, Mask | None, Mask]],
    class_names: Sequence[str],
    iou: Sequence[float | None] | None = None,
) -> Image.Image:
    """Draw one row per image with its truth and prediction, and a legend of the classes that occur.

    Args:
        rows: Image, truth or None, and prediction. Masks may have any size. Either all rows have a truth, or none.
        class_names: Names of the classes, in the order of their indices.
        iou: IoU of each class in percent, for the legend; None for a class without a value.
    """
    if iou is not None:
        class_names = [
            name if value is None else f"{name} {value:.1f} %" for name, value in zip(class_names, iou, strict=True)
        ]
    titles = ["image", "prediction"] if rows[0][1] is None else ["image", "truth", "prediction"]
    panels = []
    for image, *masks in rows:
        factor = _SIDE / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        scaled = [_resize(mask, size) for mask in masks if mask is not None]
        panels.append([image.convert("RGB").resize(size, Image.Resampling.BICUBIC), *map(draw_mask, scaled)])

    width = max(row[0].width for row in panels) + _GAP
    legend = _draw_legend([mask for row in rows for mask in row[1:] if mask is not None], class_names, 3 * width)
    tops = np.cumsum([_LINE, *(row[0].height + _GAP for row in panels)]).tolist()
    grid = Image.new("RGB", (_GAP + max(width * len(titles), legend.width), tops[-1] + legend.height), "white")
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * width, 2), title, "black", ImageFont.load_default(_FONT_SIZE))
        for row, top in zip(panels, tops[:-1], strict=True):
            grid.paste(row[column], (_GAP + column * width, top))
    grid.paste(legend, (_GAP, tops[-1]))
    return grid


@torch.no_grad()
def draw_predictions(
    model: Segmenter,
    dataset: EvaluationDataset,
    indices: Iterable[int],
    *,
    iou: Sequence[float | None] | None = None,
    **options: Any,
) -> Image.Image:
    """Draw images with their truth and the predictions of a model, which is put into eval mode.

    Args:
        model: The segmenter, on any device.
        dataset: The images.
        indices: Indices of the images to draw, at least one.
        iou: As in `draw_comparison`.
        **options: Options of `predict`.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for index in indices:
        image, truth = dataset.source[index]
        probabilities = predict(model, dataset.prepare(image)[None].to(device), truth.shape, **options)
        rows.append((image, truth, probabilities[0].argmax(0).cpu().numpy()))
    return draw_comparison(rows, model.class_names, iou)


def _resize(mask: Mask, size: tuple[int, int]) -> Mask:
    picture = Image.fromarray(np.asarray(mask, np.uint8))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def _draw_legend(masks: Sequence[Mask], class_names: Sequence[str], width: int) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    occurring = np.unique(np.concatenate([np.unique(mask) for mask in masks])).tolist()
    names = ["ignored" if index == IGNORE else class_names[index] for index in occurring]
    cell = int(max(map(font.getlength, names))) + _LINE + 2 * _GAP
    per_line = max(width // cell, 1)
    lines = -(-len(names) // per_line)
    legend = Image.new("RGB", (cell * min(per_line, len(names)), lines * _LINE + _GAP), "white")
    draw = ImageDraw.Draw(legend)
    for position, (index, name) in enumerate(zip(occurring, names, strict=True)):
        line, column = divmod(position, per_line)
        legend.paste(draw_mask(np.full((_FONT_SIZE, _FONT_SIZE), index)), (column * cell, line * _LINE + 2))
        draw.text((column * cell + _LINE, line * _LINE), name, "black", font)
    return legend
