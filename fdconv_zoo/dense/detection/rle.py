"""Instance masks: COCO's polygons and run lengths, and arrays of pixels."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def usable_segmentation(segmentation: Any, width: int, height: int) -> list | dict | None:
    """What of an annotation's `segmentation` describes a mask; None where nothing does.

    pycocotools does not look: of run lengths that do not fill the image it makes masks of whatever was in memory, or
    runs forever, and a polygon of two points it takes for a box. Polygons of fewer than three points have no area and
    are left out.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, ...], or run lengths {"size": [height, width], "counts": a
            list of numbers or COCO's compressed text}.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        filled = _are_numbers(runs) and min(runs, default=-1) >= 0 and sum(runs) == width * height
        return segmentation if filled and segmentation.get("size") == [height, width] else None
    if not isinstance(segmentation, list):
        return None
    if not all(_are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in segmentation):
        return None
    return [polygon for polygon in segmentation if len(polygon) >= 6] or None


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int, float} and math.isfinite(sum(values))


def run_lengths(counts: str) -> list[int]:
    """The run lengths, of pixels outside and inside in turn, that COCO's text holds; none for one that ends too early.

    Each is written as its difference from the last but one, from the fourth on, in characters of 5 bits, the lowest
    first; a sixth bit says that more follow, and the highest of the last is the sign.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return [] if shift else runs


def to_rle(segmentation: list | dict, width: int, height: int) -> dict:
    """Compressed run lengths of a usable segmentation, as pycocotools works with them."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return segmentation
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return rle if isinstance(rle, dict) else coco_mask.merge(rle)  # the polygons of one object


def decode_masks(segmentations: list[list | dict], width: int, height: int) -> np.ndarray:
    """Masks of 0 and 1, uint8 (N, height, width), of usable segmentations."""
    if not segmentations:
        return np.zeros((0, height, width), np.uint8)
    rles = [to_rle(segmentation, width, height) for segmentation in segmentations]
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths of a mask (height, width) in a form that json can store."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
