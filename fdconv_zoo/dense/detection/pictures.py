"""Draws detections."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from fdconv_zoo.dense.colours import Colour, class_colour
from fdconv_zoo.dense.detection.dataset import EvaluationDataset, read_target
from fdconv_zoo.dense.detection.inference import predict
from fdconv_zoo.dense.detection.model import Detector

_SIDE = 480  # pixels; pictures with a smaller shorter side are enlarged to make labels legible
_GAP = 8  # white pixels between pictures
_FONT_SIZE, _HEADER = 20, 32  # pixels


def draw_detections(
    image: Image.Image,
    detections: Mapping[str, Tensor],
    class_names: Sequence[str],
    truth: Mapping[str, Tensor] | None = None,
) -> Image.Image:
    """Draw objects over an image, in the colours of their classes. Small images are enlarged first.

    With a truth, two pictures are drawn side by side, under the headers "truth" and "prediction".

    Args:
        image: RGB image, W x H.
        detections: ``boxes`` (N, 4), x1, y1, x2, y2 in pixels of the image; ``labels`` (N,), 1 to K; optionally
            ``scores`` (N,) in 0..1, written next to the class name; and optionally ``masks`` (N, H, W) or
            (N, 1, H, W), probabilities or 0 and 1.
        class_names: Names of the labels 1 to K.
        truth: The ground truth in the same format, drawn in a second picture to the left.
    """
    labels, scores, masks = detections["labels"].tolist(), detections.get("scores"), detections.get("masks")
    factor = max(1, round(_SIDE / min(image.size)))
    picture = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    colours = [class_colour(label) for label in labels]
    if masks is not None and len(masks):
        binary_masks = masks.detach().cpu().reshape(-1, image.height, image.width) > 0.5
        binary_masks = binary_masks.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        picture = F.to_pil_image(_draw_masks(F.pil_to_tensor(picture), binary_masks, colours))
    captions = [class_names[label - 1] for label in labels]
    if scores is not None:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, scores.tolist(), strict=True)]
    # In reverse, so that the first object, with the highest score, is on top.
    objects = list(zip((detections["boxes"] * factor).tolist(), colours, captions, strict=True))[::-1]
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(14, min(picture.size) // 40))
    for box, colour, _ in objects:
        draw.rectangle(box, outline=colour, width=max(2, min(picture.size) // 300))
    for box, colour, caption in objects:  # after all boxes, so that no box covers a caption
        _draw_caption(draw, font, caption, box, colour, picture.size)
    if truth is None:
        return picture
    return draw_grid([draw_detections(image, truth, class_names), picture], columns=2, headers=("truth", "prediction"))


@torch.no_grad()
def draw_predictions(
    model: Detector,
    dataset: EvaluationDataset,
    indices: Iterable[int],
    *,
    least_score: float = 0.5,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Image.Image:
    """Draw images with their truth and the detections of a model, which is put into eval mode.

    Args:
        model: The detector, on any device.
        dataset: The images.
        indices: Indices of the images to draw, at least one.
        least_score: Minimum score of the detections to draw.
        scales, flip: As in `predict`.
    """
    model.eval()
    device = next(model.parameters()).device
    pictures = []
    for index in indices:
        image, _ = dataset[index]
        truth = read_target(dataset.source, index, masks=model.has_masks)
        (detections,) = predict(model, [image.to(device)], scales=scales, flip=flip)
        picture = F.to_pil_image(F.to_dtype(image, torch.uint8, scale=True))
        pictures.append(draw_detections(picture, select_by_score(detections, least_score), model.class_names, truth))
    return draw_grid(pictures, columns=1)


def select_by_score(detections: Mapping[str, Tensor], least_score: float) -> dict[str, Tensor]:
    """Return the detections of an image with at least this score, on the CPU."""
    selected = detections["scores"] >= least_score
    return {key: value[selected].cpu() for key, value in detections.items()}


def _draw_masks(picture: Tensor, masks: Tensor, colours: list[Colour]) -> Tensor:
    for mask, colour in zip(
        masks, colours, strict=True
    ):  # one by one, because torchvision blackens pixels of overlapping masks
        picture = draw_segmentation_masks(picture, mask, alpha=0.45, colors=[colour])
    return picture


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    caption: str,
    box: list[float],
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """Write a caption above the box, or inside it if there is no room above; always within the picture."""
    _, top, width, bottom = draw.textbbox((0, 0), caption, font=font)
    width, height = width + 4, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else max(box[1], 0)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 140
    draw.text((x + 2, y + 2 - top), caption, fill="white" if dark else "black", font=font)


def draw_grid(pictures: Sequence[Image.Image], columns: int, headers: Sequence[str] = ()) -> Image.Image:
    """Arrange pictures in rows on white, in cells as large as the largest one, with a header above each column."""
    width = max(picture.width for picture in pictures) + _GAP
    height = max(picture.height for picture in pictures) + _GAP
    top = _HEADER if headers else 0
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (min(columns, len(pictures)) * width - _GAP, top + rows * height - _GAP), "white")
    draw = ImageDraw.Draw(grid)
    for column, header in enumerate(headers):
        draw.text((column * width + 2, 2), header, "black", ImageFont.load_default(_FONT_SIZE))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        grid.paste(picture, (column * width, top + row * height))
    return grid
