"""Images and their annotations as arrays, read from a COCO annotation file or from lists in its format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, Value

from fdconv_zoo.data.local import as_dataset
from fdconv_zoo.dense.detection.entries import Entries, is_box, is_flag, is_number, is_size, is_string, load_lists
from fdconv_zoo.dense.detection.rle import usable_segmentation


@dataclass(frozen=True)
class CocoImages:
    """The M images of an annotation file and their N annotations, in the order of the images.

    They are stored as arrays, because the file's nested dicts take several times the memory, and once more in every
    DataLoader worker, where reference counting copies the memory shared by the fork.

    Attributes:
        annotation_file: The annotation file; for a dataset with many, the file or folder that describes it.
        image_folder: The folder of the images.
        categories: Category names by id, in the order of the ids.
        image_ids: Image ids, (M,).
        file_names: File names relative to `image_folder`, (M,).
        sizes: Width and height in pixels, (M, 2).
        annotation_ids: Annotation ids, (N,).
        rows: Index of the annotation's image, 0..M-1, ascending, (N,).
        labels: Labels 1..K, in the order of the category ids, (N,).
        boxes: x, y, width, height in pixels, as in the file, (N, 4).
        areas: Areas in square pixels; the area of the box if the file does not give one, (N,).
        is_crowd: Whether the annotation is a region of many objects, (N,).
        segmentations: Masks as JSON, null if unusable, (N,); None if masks were not read.
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
        """Return the path of image `index`."""
        return self.image_folder / self.file_names[index].as_py()

    def annotations(self, index: int) -> np.ndarray:
        """Return the indices of the annotations of image `index`."""
        return np.arange(*np.searchsorted(self.rows, [index, index + 1]))

    def segmentation(self, index: int) -> list | dict:
        """Return the mask of annotation `index`, as polygons or run lengths."""
        return json.loads(self.segmentations[index].as_py())

    def as_table(self) -> Dataset:
        """Return a table with the path of each image and its annotations, which `datasets` caches."""
        paths = tuple(str(self.path(index)) for index in range(len(self)))
        objects = tuple(self._describe(index) for index in range(len(self)))
        features = Features(image=Image(decode=False), objects=Value("string"))
        return as_dataset({"image": paths, "objects": objects}, "image", features)

    def _describe(self, index: int) -> str:
        of_image = self.annotations(index)
        arrays = (self.labels, self.boxes, self.areas, self.is_crowd)
        masks = [] if self.segmentations is None else [self.segmentations[item].as_py() for item in of_image]
        return json.dumps([*(array[of_image].tolist() for array in arrays), masks])

    def select_annotations(self, indices: np.ndarray) -> "CocoImages":
        """Return all images with some of their annotations; `indices` ascend."""
        return replace(
            self,
            **{name: getattr(self, name)[indices] for name in ("annotation_ids", "rows", "labels", "boxes", "areas")},
            is_crowd=self.is_crowd[indices],
            segmentations=None if self.segmentations is None else self.segmentations.take(pa.array(indices)),
        )

    def select_images(self, indices: np.ndarray) -> "CocoImages":
        """Return some of the images with their annotations; `indices` ascend."""
        part = self.select_annotations(np.flatnonzero(np.isin(self.rows, indices)))
        return replace(
            part,
            image_ids=self.image_ids[indices],
            file_names=self.file_names.take(pa.array(indices)),
            sizes=self.sizes[indices],
            rows=np.searchsorted(indices, part.rows),
        )


def read_coco(annotation_file: Path, image_folder: Path, *, masks: bool) -> CocoImages:
    """Read a COCO file of instance annotations.

    Args:
        annotation_file: JSON file in COCO's format.
        image_folder: Folder of its images; it is not read here.
        masks: Also read the segmentations.

    Raises:
        DataError: the file is not JSON or not in COCO's format, an id occurs twice, or an annotation refers to an
            unknown image or category.
    """
    return from_lists(load_lists(annotation_file), annotation_file, image_folder, masks=masks)


def from_lists(content: Mapping[str, list], annotation_file: Path, image_folder: Path, *, masks: bool) -> CocoImages:
    """Convert the lists of a COCO file, ``images``, ``annotations`` and ``categories``, to arrays.

    Args:
        content: The lists.
        annotation_file, image_folder, masks: As in `read_coco`.

    Raises:
        DataError: as `read_coco`.
    """
    images, annotations, categories = (
        Entries(annotation_file, name, content[name]) for name in ("images", "annotations", "categories")
    )
    image_ids, annotation_ids, category_ids = images.ids(), annotations.ids(), categories.ids()
    sizes = np.stack(
        [images.column(key, is_size, "a positive integer", np.int64) for key in ("width", "height")], axis=1
    )
    file_names = images.column("file_name", is_string, "a string", object)
    names = categories.column("name", is_string, "a string", object)

    image_order, category_order = np.argsort(image_ids), np.argsort(category_ids)
    rows = image_order[annotations.references("image_id", image_ids[image_order])]
    labels = 1 + annotations.references("category_id", category_ids[category_order])
    boxes = annotations.column("bbox", is_box, "[x, y, width, height]", np.float64).reshape(-1, 4)
    areas = annotations.column("area", is_number, "a number", np.float64, missing=np.nan)
    is_crowd = annotations.column("iscrowd", is_flag, "0 or 1", bool, missing=0)

    order = np.argsort(rows, kind="stable")
    segmentations = None
    if masks:
        segmentations = _segmentations([annotations.entries[index] for index in order], sizes[rows[order]])
    return CocoImages(
        annotation_file=annotation_file,
        image_folder=image_folder,
        categories={int(category_ids[index]): names[index] for index in category_order},
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
