"""Reads a COCO annotation file into arrays."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from fdconv_zoo.dense.detection.entries import Entries, is_box, is_flag, is_number, is_size, is_text, load_lists
from fdconv_zoo.dense.detection.rle import usable_segmentation


@dataclass(frozen=True)
class CocoImages:
    """The images of one annotation file, M of them, and their N annotations in the order of the images.

    Arrays and not the file's nested dicts, which take several times the memory: and again in every DataLoader worker,
    where counting references copies what the fork shares.

    Attributes:
        annotation_file: where all this comes from.
        image_folder: where the images lie.
        categories: names by category id, in the order of the ids.
        image_ids: (M,).
        file_names: (M,), relative to `image_folder`.
        sizes: width and height in pixels, (M, 2).
        annotation_ids: (N,).
        rows: the annotation's image, 0..M-1, (N,), ascending.
        labels: 1..K, in the order of the category ids, (N,).
        boxes: x, y, width, height in pixels, as in the file, (N, 4).
        areas: in square pixels; the box's where the file gives none, (N,).
        is_crowd: marks a region of many objects, (N,).
        segmentations: each as json, (N,), null where no mask can be made of it; None where masks were not asked for.
    """

    annotation_file: Path
    image_folder: Path
    categories: dict[int, str]
    image_ids: np.ndarray
    file_names: pa.Array
    sizes: np.ndarray
    annotation_ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    segmentations: pa.Array | None

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.image_folder / self.file_names[index].as_py()

    def annotations(self, index: int) -> np.ndarray:
        """The numbers, among all N, of an image's annotations."""
        return np.arange(*np.searchsorted(self.rows, [index, index + 1]))

    def segmentation(self, number: int) -> list | dict:
        """An annotation's mask, as polygons or run lengths."""
        return json.loads(self.segmentations[number].as_py())

    def keep_annotations(self, numbers: np.ndarray) -> "CocoImages":
        """All images with only some of their annotations; `numbers` ascend."""
        return replace(
            self,
            **{name: getattr(self, name)[numbers] for name in ("annotation_ids", "rows", "labels", "boxes", "areas")},
            is_crowd=self.is_crowd[numbers],
            segmentations=None if self.segmentations is None else self.segmentations.take(pa.array(numbers)),
        )

    def select(self, images: np.ndarray) -> "CocoImages":
        """Only some of the images, with their annotations; `images` ascend."""
        part = self.keep_annotations(np.flatnonzero(np.isin(self.rows, images)))
        return replace(
            part,
            image_ids=self.image_ids[images],
            file_names=self.file_names.take(pa.array(images)),
            sizes=self.sizes[images],
            rows=np.searchsorted(images, part.rows),
        )


def read_coco(annotation_file: Path, image_folder: Path, *, masks: bool) -> CocoImages:
    """Reads and indexes a file of instance annotations.

    Args:
        annotation_file: json in COCO's format.
        image_folder: where its images lie; not looked at here.
        masks: keep the segmentations.

    Raises:
        DataError: not json, not COCO's format, ids that occur twice, or annotations of unknown images or categories.
    """
    content = load_lists(annotation_file)
    images, annotations, categories = (
        Entries(annotation_file, name, content[name]) for name in ("images", "annotations", "categories")
    )
    image_ids, annotation_ids, category_ids = images.ids(), annotations.ids(), categories.ids()
    sizes = np.stack(
        [images.column(key, is_size, "a positive integer", np.int64) for key in ("width", "height")], axis=1
    )
    file_names = images.column("file_name", is_text, "a text", object)
    names = categories.column("name", is_text, "a text", object)

    image_order, category_order = np.argsort(image_ids), np.argsort(category_ids)
    rows = image_order[annotations.references("image_id", image_ids[image_order])]
    labels = 1 + annotations.references("category_id", category_ids[category_order])
    boxes = annotations.column("bbox", is_box, "[x, y, width, height]", np.float64).reshape(-1, 4)
    areas = annotations.column("area", is_number, "a number", np.float64, missing=np.nan)
    is_crowd = annotations.column("iscrowd", is_flag, "0 or 1", bool, missing=0)

    order = np.argsort(rows, kind="stable")
    segmentations = None
    if masks:
        segmentations = _segmentations([annotations.entries[number] for number in order], sizes[rows[order]])
    return CocoImages(
        annotation_file=annotation_file,
        image_folder=image_folder,
        categories={int(category_ids[place]): names[place] for place in category_order},
        image_ids=image_ids,
        file_names=pa.array(file_names, pa.string()),
        sizes=sizes,
        annotation_ids=annotation_ids[order],
        rows=rows[order],
        labels=labels[order],
        boxes=boxes[order],
        areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)[order],
        is_crowd=is_crowd[order],
        segmentations=segmentations,
    )


def _segmentations(annotations: list[dict], sizes: np.ndarray) -> pa.Array:
    usable = (
        usable_segmentation(annotation.get("segmentation"), *size)
        for annotation, size in zip(annotations, sizes.tolist(), strict=True)
    )
    return pa.array((None if mask is None else json.dumps(mask) for mask in usable), pa.large_string())
