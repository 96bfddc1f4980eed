"""Pictures of what a detector found."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from fdconv_zoo.dense.colours import Colour, class_colour
from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.dataset import read_image, read_target
from fdconv_zoo.dense.detection.model import Detector

_SIDE = 480  # pixels: pictures whose shorter side is smaller are enlarged, so that labels can be read
_GAP = 8  # white pixels between pictures


def draw_detections(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    masks: Tensor | None,
    class_names: Sequence[str],
    truth: Mapping[str, Tensor] | None = None,
) -> Image.Image:
    """Draws objects over an image, in the colours of their classes; a small image is enlarged first.

    Args:
        image: RGB, W x H.
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the image.
        labels: (N,), 1 to K.
        scores: (N,), 0 to 1, written beside the name; None for none.
        masks: (N, H, W) or (N, 1, H, W), probabilities or 0 and 1; None for none.
        class_names: of the labels 1 to K.
        truth: `boxes`, `labels` and perhaps `masks`, for a second picture to the left.

    Returns:
        The picture.
    """
    factor = max(1, round(_SIDE / min(image.size)))
    picture = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    colours = [class_colour(label) for label in labels.tolist()]
    if masks is not None and len(masks):
        solid = masks.detach().cpu().reshape(-1, image.height, image.width) > 0.5
        solid = solid.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        picture = F.to_pil_image(_overlay(F.pil_to_tensor(picture), solid, colours))
    captions = [class_names[label - 1] for label in labels.tolist()]
    if scores is not None:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, scores.tolist(), strict=True)]
    objects = list(zip((boxes * factor).tolist(), colours, captions, strict=True))[::-1]  # the first, surest on top
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(14, min(picture.size) // 40))
    for box, colour, _ in objects:
        draw.rectangle(box, outline=colour, width=max(2, min(picture.size) // 300))
    for box, colour, caption in objects:  # after all boxes, so that none crosses them
        _write(draw, font, caption, box, colour, picture.size)
    if truth is None:
        return picture
    left = draw_detections(image, truth["boxes"], truth["labels"], None, truth.get("masks"), class_names)
    return draw_grid([left, picture], columns=2)


@torch.no_grad()
def draw_predictions(
    model: Detector, references: CocoImages, indices: Iterable[int], *, least_score: float = 0.5
) -> Image.Image:
    """Draw images with their objects and, to the right, what a model, put into eval mode, finds in them.

    Args:
        model: on any device.
        references: the images.
        indices: of the images, at least one.
        least_score: of what is drawn.
    """
    model.eval()
    device = next(model.parameters()).device
    pictures = []
    for index in indices:
        image, truth = read_image(references, index), read_target(references, index, masks=model.has_masks)
        (found,) = model([F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True).to(device)])
        sure = found["scores"] >= least_score
        boxes, labels, scores, pixels = (
            found[key][sure].cpu() if key in found else None for key in ("boxes", "labels", "scores", "masks")
        )
        pictures.append(draw_detections(F.to_pil_image(image), boxes, labels, scores, pixels, model.class_names, truth))
    return draw_grid(pictures, columns=1)


def _overlay(picture: Tensor, masks: Tensor, colours: list[Colour]) -> Tensor:
    for mask, colour in zip(masks, colours, strict=True):  # one by one: together, torchvision blackens what two share
        picture = draw_segmentation_masks(picture, mask, alpha=0.45, colors=[colour])
    return picture


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    caption: str,
    box: list[float],
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """Writes above the box, or within where there is no room above; always inside the picture."""
    _, top, width, bottom = draw.textbbox((0, 0), caption, font=font)
    width, height = width + 4, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else max(box[1], 0)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 140
    draw.text((x + 2, y + 2 - top), caption, fill="white" if dark else "black", font=font)


def draw_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows on white, each in a cell as large as the largest."""
    width = max(picture.width for picture in pictures) + _GAP
    height = max(picture.height for picture in pictures) + _GAP
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (min(columns, len(pictures)) * width - _GAP, rows * height - _GAP), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        grid.paste(picture, (column * width, row * height))
    return grid
