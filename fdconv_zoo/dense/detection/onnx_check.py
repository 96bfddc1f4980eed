"""Compares detectors with their ONNX programs.

Whether an object is found can depend on the last digit of a score near the threshold, or of an overlap near the limit
of non-maximum suppression. Programs round differently, so a correct program can miss or add a few objects, and many in
a smooth image, where all scores are nearly equal. An incorrect program differs in most objects of all images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN

Objects = Mapping[str, np.ndarray]

_SPOTS = (24, 12, 6)  # size of the spots in each image, in pixels after resizing
_ENOUGH = 10  # objects per image
_SHARE = 0.95  # share of the objects that must be the same


def random_images(image_size: tuple[int, int], seen_size: tuple[int, int]) -> list[Tensor]:
    """Draw three images (3, H, W) with values in 0..1, of coarse to fine coloured spots.

    Args:
        image_size: H and W.
        seen_size: Height and width to which the detector resizes them.
    """
    generator = torch.Generator().manual_seed(0)
    sides = list(zip(image_size, seen_size, strict=True))
    grids = [[min(-(-seen // spot), side) for side, seen in sides] for spot in _SPOTS]
    spots = [torch.rand(1, 3, *grid, generator=generator) for grid in grids]
    return [F.interpolate(each, image_size, mode="bilinear")[0] for each in spots]


@torch.no_grad()
def telling_threshold(network: FasterRCNN, images: Sequence[Tensor]) -> float:
    """Return a score threshold at which a detector finds ten objects or more in each image.

    A trained detector may find nothing in random images at its own threshold. Then no program would differ from it.
    """
    own = network.roi_heads.score_thresh
    network.roi_heads.score_thresh = -1.0
    scores = [network([image])[0]["scores"][:_ENOUGH] for image in images]
    network.roi_heads.score_thresh = own
    least = min((each.min().item() for each in scores if len(each)), default=own)
    return min(least / 2, own)  # half, so that the ten scores are well above it


@torch.no_grad()
def compare(network: FasterRCNN, program: Path | bytes, images: Sequence[Tensor]) -> float:
    """Run a detector and its ONNX program on images.

    Args:
        network: The detector, on the CPU and in eval mode.
        program: The ONNX file, or its content.
        images: Images (3, H, W) of the size for which the program was exported.

    Returns:
        The median over the images of the deviation (see `deviations`) that 95 % of the objects in an image do not
        exceed, which is 0 if there are no objects.
    """
    content = program if isinstance(program, bytes) else str(program)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    in_images = []
    for image in images:
        expected = {name: value.numpy() for name, value in network([image])[0].items()}
        found = dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
        options = {"least_score": network.roi_heads.score_thresh, "side": max(image.shape)}
        of_objects = np.append(deviations(found, expected, **options), deviations(expected, found, **options))
        in_images.append(np.quantile(of_objects, _SHARE, method="lower") if len(of_objects) else 0.0)
    return float(np.median(in_images))


def deviations(objects: Objects, others: Objects, *, least_score: float, side: int) -> np.ndarray:
    """Compare each object in an image with the nearest of the other objects.

    Args:
        objects: ``boxes`` (N, 4), ``labels`` and ``scores`` (N,), and optionally ``masks`` (N, 1, H, W).
        others: The same for the M other objects.
        least_score: Threshold of the scores.
        side: Longer side of the image in pixels.

    Returns:
        For each object, (N,), the largest of three deviations from the nearest other object with the same label: of the
        score, relative to the largest score in the image; of the box, relative to `side`; and of the mask values. If
        there is no such object, or if it is smaller, the distance of the score from the threshold, relative to the
        largest score.
    """
    scores, other_scores = objects["scores"], others["scores"]
    largest = max(scores.max(initial=1e-30), other_scores.max(initial=1e-30))
    alone = (scores - least_score) / largest
    if not len(scores) or not len(other_scores):
        return alone
    pairs = np.maximum(
        np.abs(scores[:, None] - other_scores) / largest,
        np.abs(objects["boxes"][:, None] - others["boxes"]).max(2) / side,
    )
    pairs[objects["labels"][:, None] != others["labels"]] = np.inf
    nearest = pairs.argmin(1)
    paired = pairs.min(1)
    if "masks" in objects:
        masks = zip(objects["masks"], others["masks"][nearest], strict=True)
        paired = np.maximum(paired, [np.abs(one - other).max() for one, other in masks])
    return np.minimum(alone, paired)
