"""A user's images, found, checked and ready for training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset

from fdconv_zoo.data.checks import check_classes, readable_rows, report_bad_images
from fdconv_zoo.data.columns import encode_labels, find_image_column, find_label_column, label_numbers, undecoded
from fdconv_zoo.data.sources import load_splits
from fdconv_zoo.data.splits import limited, stratified, used_splits
from fdconv_zoo.errors import DataError

_SHUFFLE_BUFFER = 1000  # undecoded images of a stream that every worker holds in memory


@dataclass(frozen=True)
class ImageData:
    """Images in two columns: `image`, undecoded ({"bytes", "path"}), and `label`, a class number.

    Attributes:
        train: map-style, or when streaming shuffled anew every epoch; None for `split="validation"`.
        validation: the same, in its own order.
        class_names: one for each class number.
        skipped: images left out by `skip_bad_images`; for a stream, `StreamedImageDataset` counts them.
    """

    train: Dataset | IterableDataset | None
    validation: Dataset | IterableDataset
    class_names: list[str]
    skipped: int = 0


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
    split: Literal["both", "validation"] = "both",
) -> ImageData:
    """Loads labelled images and checks them, so that training does not fail on them hours later.

    Without streaming every image is decoded once; `datasets` remembers the result for the next run. Streams are
    checked as they are read.

    Args:
        dataset: `SAMPLE`; a local folder, with one sub-folder for each class, or with train and validation folders of
            such; a local parquet or arrow file, a folder of these or a pattern; else a dataset on the Hugging Face Hub,
            "name" or "name:config".
        image_column: needed where several columns hold images.
        label_column: needed where several columns could be the class. Strings and integers become class numbers.
        train_split: by default "train" or "training", or the only split.
        validation_split: by default the first of validation, val, valid, dev and test; where there is but one split,
            a part of it, stratified over classes and fixed by `seed`.
        validation_fraction: the size of that part.
        seed: of that part, of the order of streams, and of the choice that `limit` makes.
        streaming: read while training, for what does not fit on the disk.
        skip_bad_images: leave out images that cannot be read instead of raising.
        num_workers: processes that check images.
        limit: at most so many images of each split, drawn by `seed`, for trial runs; of a validation stream the first.
        split: "validation" leaves the training images aside; a single split is then used whole.

    Raises:
        DataError: anything wrong with the data; the message says what to do.
    """
    splits = load_splits(dataset, streaming=streaming)
    train_name, validation_name = used_splits(splits, train_split, validation_split, split)
    names = [name for name in (train_name, validation_name) if name is not None]
    features = splits[names[0]].features
    if features is None:
        raise DataError(f"{dataset}: a stream whose column types are not known beforehand; load it without streaming.")
    columns = find_image_column(features, image_column), find_label_column(features, label_column)
    sources = {name: undecoded(splits[name], *columns) for name in names}
    if streaming:
        return _stream(sources.get(train_name), sources.get(validation_name), split, seed, limit)

    sources = encode_labels(sources)
    class_names = sources[names[0]].features["label"].names
    labels = {name: label_numbers(source) for name, source in sources.items()}
    if validation_name is None:
        validation_name = train_name
        train_rows, validation_rows = stratified(labels[train_name], validation_fraction, seed)
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
        good, problems = readable_rows(sources[name], limited(rows, limit, seed), name, num_workers)
        images[part] = sources[name].select(good)
        bad += problems
    report_bad_images(bad, skip_bad_images)
    if empty := [part for part in images if not len(images[part])]:
        raise DataError(f"{dataset}: not one image for {' and '.join(empty)} can be read.")
    return ImageData(images.get("train"), images["validation"], class_names, len(bad))


def _stream(
    train: IterableDataset | None, validation: IterableDataset | None, split: str, seed: int, limit: int | None
) -> ImageData:
    if validation is None:
        raise DataError("No part of a stream can be held out. Supply a validation split, or load without streaming.")
    label = validation.features["label"]
    if not isinstance(label, ClassLabel):
        raise DataError(
            f"The labels of a stream are {label}, whose values are not known beforehand. Load without streaming, or "
            "store the column as a ClassLabel (`Dataset.class_encode_column`)."
        )
    if split == "validation":
        train = None
    elif label.num_classes < 2:
        raise DataError(f"There is only one class ({label.names[0]}): there is nothing to learn. Add other classes.")
    else:
        train = train.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        train = train if limit is None else train.take(limit)
    return ImageData(train, validation if limit is None else validation.take(limit), label.names)
