"""Finds and checks a user's images for training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset

from fdconv_zoo.data.checks import check_classes, find_readable_rows, report_bad_images
from fdconv_zoo.data.columns import encode_labels, find_image_column, find_label_column, read_labels, select_undecoded
from fdconv_zoo.data.sources import load_splits
from fdconv_zoo.data.splits import limit_rows, resolve_splits, split_rows
from fdconv_zoo.errors import DataError

_SHUFFLE_BUFFER = 1000  # undecoded images in memory per worker
_SHARDS = 128  # of a streamed list of image files, divided among processes and workers


@dataclass(frozen=True)
class ImageData:
    """Datasets with two columns: `image`, undecoded ({"bytes", "path"}), and `label`, a class index.

    Attributes:
        train: Training images, map-style or streamed; a stream is shuffled again in every epoch. None unless `split`
            was "both".
        validation: Validation images, in their stored order.
        class_names: Names of the classes, in the order of their indices.
        skipped: Number of images that `skip_bad_images` left out. For a stream, `StreamedImageDataset` counts them.
        split: Name of the split that the validation images belong to.
        train_count: Number of training images in this split, before `limit` and `skip_bad_images`; None if all of
            its images are validation images.
    """

    train: Dataset | IterableDataset | None
    validation: Dataset | IterableDataset
    class_names: list[str]
    skipped: int = 0
    split: str = ""
    train_count: int | None = None


def load_image_data(
    dataset: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    streaming: bool = False,
    skip_bad_images: bool = False,
    num_workers: int = 0,
    limit: int | None = None,
    split: Literal["both", "validation", "held out"] = "both",
) -> ImageData:
    """Load and check labelled images, so that training does not fail on them hours later.

    Without streaming, every image is decoded once; `datasets` caches the result for the next run. Streams are checked
    while they are read.

    Args:
        dataset: `SAMPLE`; a local folder with one sub-folder per class, or with such folders inside train and
            validation folders; a folder of images with a metadata.csv, or a CSV or JSON Lines file with their names and
            labels, as in `read_listing`; a local parquet or arrow file, a folder of these or a pattern; or a dataset on
            the Hugging Face Hub, "name" or "name:config".
        image_column: Required if several columns hold images, or names of images.
        label_column: Required if several columns could be the class. Strings and integers become class indices.
        train_split: Default: "train" or "training", or the only split.
        validation_split: Default: the first of validation, val, valid, dev and test. If there is only one split, a
            part of it is held out, stratified over the classes and determined by `seed`.
        validation_fraction: Share of the images to hold out.
        seed: Seed of the held-out part, of the order of streams, and of the images chosen by `limit`.
        streaming: Read images while training, for datasets that do not fit on the disk.
        skip_bad_images: Skip images that cannot be read instead of raising.
        num_workers: Processes that check images.
        limit: Maximum number of images per split, for trial runs. They are drawn at random with `seed`; of a validation
            stream, the first ones are taken.
        split: "validation" loads validation images only, or all images if there is only one split. "held out" loads
            the validation images of "both".

    Raises:
        DataError: the data have a problem; the message says what to do.
    """
    splits = load_splits(dataset, streaming=streaming, image_column=image_column, label_column=label_column)
    train_name, validation_name = resolve_splits(splits, train_split, validation_split, split)
    names = [name for name in (train_name, validation_name) if name is not None]
    opened = {name: splits[name] for name in names}
    features = opened[names[0]].features
    if features is None:
        raise DataError(f"{dataset}: the column types of this stream are unknown. Load it without streaming.")
    columns = find_image_column(features, image_column), find_label_column(features, label_column)
    sources = {name: select_undecoded(source, *columns) for name, source in opened.items()}
    if all(isinstance(source, Dataset) for source in sources.values()):
        sources = encode_labels(sources)
    if streaming:
        sources = {name: _as_stream(source) for name, source in sources.items()}
        return _stream(sources.get(train_name), sources.get(validation_name), validation_name, split, seed, limit)

    class_names = sources[names[0]].features["label"].names
    labels = {name: read_labels(source) for name, source in sources.items()}
    held_out = validation_name is None
    if held_out:
        validation_name = train_name
        train_rows, validation_rows = split_rows(labels[train_name], validation_fraction, seed)
    else:
        train_rows = np.arange(len(labels.get(train_name, ())))
        validation_rows = np.arange(len(labels[validation_name]))
    if not len(validation_rows):
        raise DataError(f"{dataset}: no validation images. Add some, or choose another split with --validation-split.")
    parts = [("validation", validation_name, validation_rows)]
    if split == "both":
        check_classes(labels[train_name][train_rows], labels[validation_name][validation_rows], class_names)
        parts.append(("train", train_name, train_rows))

    images, bad = {}, []
    for part, name, rows in parts:
        good, problems = find_readable_rows(sources[name], limit_rows(rows, limit, seed), name, num_workers)
        images[part] = sources[name].select(good)
        bad += problems
    report_bad_images(bad, skip_bad_images)
    if empty := [part for part in images if not len(images[part])]:
        raise DataError(
            f"{dataset}: no readable images for {' and '.join(empty)}. Repair the images, or choose another dataset."
        )
    train_count = len(train_rows) if held_out else None
    return ImageData(images.get("train"), images["validation"], class_names, len(bad), validation_name, train_count)


def _as_stream(source: Dataset | IterableDataset) -> IterableDataset:
    if isinstance(source, Dataset):  # a list of image files
        return source.to_iterable_dataset(num_shards=min(len(source), _SHARDS))
    return source


def _stream(
    train: IterableDataset | None,
    validation: IterableDataset | None,
    validation_name: str,
    split: str,
    seed: int,
    limit: int | None,
) -> ImageData:
    if validation is None:
        raise DataError("A stream cannot hold out a part for validation. Add such a split, or load without streaming.")
    label = validation.features["label"]
    if not isinstance(label, ClassLabel):
        raise DataError(
            f"The labels of this stream are {label}, so its classes are unknown. Load it without streaming, or "
            "store the column as a ClassLabel (`Dataset.class_encode_column`)."
        )
    if split != "both":
        train = None
    elif label.num_classes < 2:
        raise DataError(f"There is only one class ({label.names[0]}). Add images of other classes.")
    else:
        train = train.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        train = train if limit is None else train.take(limit)
    validation = validation if limit is None else validation.take(limit)
    return ImageData(train, validation, label.names, split=validation_name)
