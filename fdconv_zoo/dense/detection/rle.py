"""Instance masks: converts between COCO's polygons, run lengths (RLE) and arrays."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def usable_segmentation(segmentation: Any, width: int, height: int) -> list | dict | None:
    """Return the valid part of an annotation's `segmentation`, or None if it does not describe a mask with pixels.

    pycocotools does not validate: run lengths that do not fill the image lead to uninitialized memory or an endless
    loop, a polygon of two points is read as a box, and the sides of a polygon are traced however long they are.
    Polygons of fewer than three points have no area and are removed. Polygons within the first pixel are removed as
    well: they are fractions of the image, not pixels.

    Args:
        segmentation: List of polygons [x1, y1, x2, y2, ...], or run lengths {"size": [height, width], "counts": list
            of integers or COCO's compressed string}.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        runs = decode_counts(counts) if isinstance(counts, str) else counts
        if not (_are_numbers(runs) and all(run >= 0 and run == int(run) for run in runs)):
            return None
        filled = sum(runs) == width * height and any(runs[1::2])  # every second run is inside
        return segmentation if filled and segmentation.get("size") == [height, width] else None
    if not isinstance(segmentation, list):
        return None
    if not all(_are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in segmentation):
        return None
    reach = 2 * max(width, height)
    polygons = [
        polygon
        for polygon in segmentation
        if len(polygon) >= 6 and 1 < max(polygon) <= reach and min(polygon) >= -reach
    ]
    if not polygons or not coco_mask.area(to_rle(polygons, width, height)):
        return None
    return polygons


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # an integer beyond the range of floats
        return False


def decode_counts(counts: str) -> list[int]:
    """Decode COCO's compressed string to run lengths, alternately outside and inside; empty if it is truncated.

    From the fourth on, each run is stored as the difference from the run two before it. A number is a sequence of
    characters of 5 bits, lowest first; a sixth bit marks that more follow, and the highest bit of the last is the
    sign.
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
    """Convert a usable segmentation to compressed run lengths for pycocotools, which can be stored as JSON."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return segmentation
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return _as_text(rle if isinstance(rle, dict) else coco_mask.merge(rle))  # the polygons of one object


def decode_masks(segmentations: list[list | dict], width: int, height: int) -> np.ndarray:
    """Decode usable segmentations to masks of 0 and 1, uint8 (N, height, width)."""
    if not segmentations:
        return np.zeros((0, height, width), np.uint8)
    rles = [to_rle(segmentation, width, height) for segmentation in segmentations]
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask (height, width) as compressed run lengths that can be stored as JSON."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def _as_text(rle: dict) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
