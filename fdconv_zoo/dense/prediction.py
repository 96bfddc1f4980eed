"""Draws the predictions of a segmenter or a detector on images and videos."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.data import open_image
from fdconv_zoo.dense.detection.evaluate import to_coco_results
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.detection.pictures import draw_detections, select_by_score
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset
from fdconv_zoo.dense.segmentation.inference import predict
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.dense.segmentation.pictures import draw_segmentation
from fdconv_zoo.dense.video import VIDEOS, convert_video
from fdconv_zoo.errors import ConfigError, DataError, listed
from fdconv_zoo.store.files import replacing, write_text

DETECTIONS = "detections.json"

# Image -> picture, summary in words, and its mask or its detected objects.
Predictor = Callable[[Image.Image], tuple[Image.Image, str, Any]]


def predict_files(
    model: Segmenter | Detector,
    files: Sequence[Path],
    output: Path,
    *,
    least_score: float = 0.5,
    short_side: int | None = None,
) -> None:
    """Write each image as a picture and each video as a video, with predictions, and print a summary of each.

    A segmenter also writes ``NAME.mask.png`` for each image, with the same pixel values as the training masks. A
    detector also writes ``detections.json`` for all images: file name, class, score, box (left, top, width, height in
    pixels), and mask as compressed run lengths. Files that cannot be read are skipped. If the run stops early, the
    detections up to that point are written.

    Args:
        model: The model in eval mode, on any device.
        files: Images and videos, told apart by their suffix.
        output: Output folder, created if needed.
        least_score: Minimum score of the objects in a detector's pictures; ``detections.json`` has all objects.
        short_side: Shorter side in pixels to which a segmenter's images are resized. Default: no resizing.

    Raises:
        ConfigError: an output file exists, or two files would have the same name.
        DataError: files cannot be read; raised after all other files are processed.
    """
    targets = _targets(files, output)
    predictor = make_predictor(model, least_score=least_score, short_side=short_side)
    output.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        for file, target in zip(files, targets, strict=True):
            try:
                found += _predict_file(predictor, file, target)
            except DataError as error:
                problems.append(str(error))
    finally:
        if isinstance(model, Detector) and len(problems) < len(files):
            write_text(output / DETECTIONS, json.dumps(found) + "\n")
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} files were left out:{listed(problems)}")


def make_predictor(
    model: Segmenter | Detector, *, least_score: float = 0.5, short_side: int | None = None
) -> Predictor:
    """Return a function that predicts for one image; arguments as in `predict_files`."""
    if isinstance(model, Segmenter):
        return _segmentation_predictor(model, short_side)
    return _detection_predictor(model, least_score)


def _predict_file(predictor: Predictor, file: Path, target: Path) -> list[dict[str, Any]]:
    """Write the picture or video of a file, print a line, and return a detector's objects in an image."""
    if file.suffix.lower() in VIDEOS:
        print(f"{file}: {convert_video(lambda frame: predictor(frame)[0], file, target)} frames -> {target}")
        return []
    picture, summary, content = predictor(open_image({"path": str(file)}, remedy="Repair or remove it."))
    _save(picture, target)
    print(f"{file}: {summary} -> {target}")
    if isinstance(content, list):
        return [{"file": str(file), **item} for item in content]
    _save(Image.fromarray(content), target.with_suffix(".mask.png"))
    return []


def _targets(files: Iterable[Path], output: Path) -> list[Path]:
    targets = [output / f"{file.stem}{'.mp4' if file.suffix.lower() in VIDEOS else '.png'}" for file in files]
    if repeated := [str(target) for target, count in Counter(targets).items() if count > 1]:
        raise ConfigError(f"several files would be written to {', '.join(repeated)}: use separate output folders")
    if existing := [str(target) for target in (*targets, output / DETECTIONS) if target.exists()]:
        raise ConfigError(f"--output: {existing[0]} exists; choose another folder, or remove it")
    return targets


def _segmentation_predictor(model: Segmenter, short_side: int | None) -> Predictor:
    dataset = EvaluationDataset([], mean=model.mean, std=model.std, short_side=short_side)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predictor(image: Image.Image) -> tuple[Image.Image, str, Any]:
        images = dataset.prepare(image)[None].to(device)
        mask = predict(model, images, image.size[::-1])[0].argmax(0).byte().cpu().numpy()
        classes, pixels = np.unique(mask, return_counts=True)
        shares = sorted(zip(pixels / mask.size, classes, strict=True), reverse=True)
        summary = ", ".join(f"{model.class_names[index]} {100 * share:.1f} %" for share, index in shares)
        return draw_segmentation(image, mask), summary, model.mask_values(mask)

    return predictor


def _detection_predictor(model: Detector, least_score: float) -> Predictor:
    device = next(model.parameters()).device
    labels = list(range(1, len(model.class_names) + 1))

    @torch.inference_mode()
    def predictor(image: Image.Image) -> tuple[Image.Image, str, Any]:
        (detections,) = model([F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True).to(device)])
        content = to_coco_results(0, detections, labels, masks=model.has_masks)
        for item in content:
            del item["image_id"]
            item["class"] = model.class_names[item.pop("category_id") - 1]
        shown = select_by_score(detections, least_score)
        names = Counter(model.class_names[label - 1] for label in shown["labels"].tolist())
        summary = ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"
        picture = draw_detections(image, shown, model.class_names)
        return picture, summary, content

    return predictor


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="png")
