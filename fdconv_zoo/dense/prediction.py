"""Pictures of what a segmenter or a detector sees, in images, folders of them and video files."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from fdconv_zoo.data import open_image
from fdconv_zoo.dense.detection.evaluate import to_coco_results
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.detection.pictures import draw_detections
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset
from fdconv_zoo.dense.segmentation.inference import predict
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.dense.segmentation.pictures import overlay
from fdconv_zoo.errors import ConfigError, DataError
from fdconv_zoo.store.files import replacing, write_text

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
DETECTIONS = "detections.json"

# An image to its picture, what it says in words, and its class numbers or its objects.
View = Callable[[Image.Image], tuple[Image.Image, str, Any]]


def predict_files(
    model: Segmenter | Detector,
    files: Sequence[Path],
    output: Path,
    *,
    least_score: float = 0.5,
    short_side: int | None = None,
) -> None:
    """Write a picture for every image and a video for every video, and print what is in the images.

    A segmenter also leaves ``NAME.mask.png`` for an image, whose pixels are class numbers; a detector
    ``detections.json`` for all of them: file name, class, score, box (left, top, width, height in pixels), and mask as
    compressed RLE.

    Args:
        model: In eval mode, on any device.
        files: Images, and videos by their suffix.
        output: A folder; made where there is none.
        least_score: Of the objects that a detector's pictures show; the file has all.
        short_side: Of images as a segmenter sees them, in pixels; by default they keep their size.

    Raises:
        ConfigError: a file that would be written exists, or two would have one name.
        DataError: a file that cannot be read.
    """
    targets = _targets(files, output)
    view = _segmenter_view(model, short_side) if isinstance(model, Segmenter) else _detector_view(model, least_score)
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for file, target in zip(files, targets, strict=True):
        if file.suffix.lower() in VIDEOS:
            print(f"{file}: {_view_video(view, file, target)} frames -> {target}")
            continue
        picture, words, content = view(open_image({"path": str(file)}))
        _save(picture, target)
        if isinstance(model, Segmenter):
            _save(Image.fromarray(content), target.with_suffix(".mask.png"))
        else:
            found += [{"file": str(file), **item} for item in content]
        print(f"{file}: {words} -> {target}")
    if isinstance(model, Detector):
        write_text(output / DETECTIONS, json.dumps(found) + "\n")


def _targets(files: Iterable[Path], output: Path) -> list[Path]:
    targets = [output / f"{file.stem}{'.mp4' if file.suffix.lower() in VIDEOS else '.png'}" for file in files]
    if twice := [str(target) for target, count in Counter(targets).items() if count > 1]:
        raise ConfigError(f"several files would be written to {', '.join(twice)}: predict them into separate folders")
    if there := [str(target) for target in (*targets, output / DETECTIONS) if target.exists()]:
        raise ConfigError(f"--output: {there[0]} exists; choose another folder, or remove it")
    return targets


def _segmenter_view(model: Segmenter, short_side: int | None) -> View:
    dataset = EvaluationDataset([], mean=model.mean, std=model.std, short_side=short_side)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def view(image: Image.Image) -> tuple[Image.Image, str, Any]:
        images = dataset.prepare(image)[None].to(device)
        mask = predict(model, images, image.size[::-1])[0].argmax(0).byte().cpu().numpy()
        numbers, pixels = np.unique(mask, return_counts=True)
        shares = sorted(zip(pixels / mask.size, numbers, strict=True), reverse=True)
        words = ", ".join(f"{model.class_names[number]} {100 * share:.1f} %" for share, number in shares)
        return overlay(image, mask), words, mask

    return view


def _detector_view(model: Detector, least_score: float) -> View:
    device = next(model.parameters()).device
    labels = list(range(1, len(model.class_names) + 1))

    @torch.inference_mode()
    def view(image: Image.Image) -> tuple[Image.Image, str, Any]:
        (found,) = model([F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True).to(device)])
        content = to_coco_results(0, found, labels, masks=model.has_masks)
        for item in content:
            del item["image_id"]
            item["class"] = model.class_names[item.pop("category_id") - 1]
        sure = {key: value[found["scores"] >= least_score].cpu() for key, value in found.items()}
        names = Counter(model.class_names[label - 1] for label in sure["labels"].tolist())
        words = ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"
        picture = draw_detections(
            image, sure["boxes"], sure["labels"], sure["scores"], sure.get("masks"), model.class_names
        )
        return picture, words, content

    return view


def _view_video(view: View, source: Path, target: Path) -> int:
    """Write the video of a video's pictures, without sound, and return how many they are."""
    frames = 0
    try:
        with av.open(str(source)) as video, replacing(target) as temporary:
            stream = video.streams.video[0]
            with av.open(str(temporary), "w", format="mp4") as result:
                pictures = result.add_stream("mpeg4", rate=stream.average_rate or 25)
                pictures.bit_rate = 4_000_000
                for frame in video.decode(stream):
                    picture, _, _ = view(frame.to_image())
                    if frames == 0:  # the encoder wants even sizes
                        size = (picture.width // 2 * 2, picture.height // 2 * 2)
                        pictures.width, pictures.height = size
                    result.mux(pictures.encode(av.VideoFrame.from_image(picture.crop((0, 0, *size)))))
                    frames += 1
                result.mux(pictures.encode())
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{source}: cannot be read as a video ({error}).") from error
    return frames


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="png")
