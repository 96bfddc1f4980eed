"""PyTorch datasets with reproducible random augmentation."""

import logging
import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, IterableDataset
from PIL import Image
from torch import Tensor
from torch.utils import data

from fdconv_zoo.data.image import Mode, open_image
from fdconv_zoo.errors import DataError

_logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the generators that transforms use (Python, NumPy, PyTorch on the CPU); restore their states on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    python_seed, numpy_seed, torch_seed = (int(word) for word in np.random.SeedSequence(entropy).generate_state(3))
    with torch.random.fork_rng(devices=[]):
        random.seed(python_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002
        torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed would reseed the GPUs as well
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _shared_integer(value: int = 0) -> Tensor:
    """Return an integer in shared memory, so that running DataLoader workers see it change."""
    return torch.tensor(value, dtype=torch.int64).share_memory_()


class RepeatableDataset(data.Dataset):
    """Base class of map-style datasets whose augmentation is a pure function of (seed, epoch, index, time).

    `time` is the number of earlier draws of the same sample in the epoch.

    Args:
        source: Samples by index, before augmentation.
        transform: The random transform of a sample.
        seed: Seed of the augmentation.
    """

    def __init__(self, source: Sized, transform: Callable, *, seed: int = 0):
        self.source = source
        self.transform = transform
        self.seed = seed
        self._epoch = _shared_integer()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also in persistent workers. Call it before iterating over the DataLoader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def augment(self, index: int, *sample: Any, time: int = 0) -> Any:
        """Apply `transform` to a sample, with generators seeded by (seed, epoch, index, time).

        Args:
            index: Index of the sample.
            *sample: Arguments of `transform`.
            time: Number of earlier draws of the sample in the epoch.
        """
        with seeded(self.seed, int(self._epoch), index, time):
            return self.transform(*sample)


class ImageDataset(RepeatableDataset):
    """Images by index; augmentation is a pure function of (seed, epoch, index, time), as in `RepeatableDataset`.

    Args:
        source: Dataset with the columns `image` (undecoded) and `label`, as returned by `load_image_data`.
        transform: PIL image -> tensor (C, H, W).
        mode: "RGB" or "L", the mode of the images passed to `transform`.
        seed: Seed of the augmentation.
    """

    def __init__(self, source: Dataset, transform: Transform, *, mode: Mode = "RGB", seed: int = 0):
        super().__init__(source, transform, seed=seed)
        self.mode: Mode = mode

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return image (C, H, W) and class index. Raises DataError if the image cannot be read.

        Args:
            index: Index of the image; or (index, time), for images that are drawn several times in an epoch and
                augmented differently each time.
        """
        index, time = index if isinstance(index, tuple) else (int(index), 0)
        record = self.source[index]
        image = open_image(record["image"], self.mode, name=f"image {index}")
        return self.augment(index, image, time=time), record["label"]


class StreamedImageDataset(data.IterableDataset):
    """Images of a stream; augmentation is a pure function of (seed, epoch, worker, position in the worker's stream).

    The files of the stream are divided among the DataLoader workers. For several processes, split `source` beforehand
    with `datasets.distributed.split_dataset_by_node`, and give each process a different `seed`.

    Args:
        source: Stream with the columns `image` (undecoded) and `label`, as returned by `load_image_data`.
        transform: PIL image -> tensor (C, H, W).
        mode: "RGB" or "L", the mode of the images passed to `transform`.
        seed: Seed of the augmentation.
        skip_bad_images: Skip images that cannot be read, with a warning, instead of raising DataError.
    """

    def __init__(
        self,
        source: IterableDataset,
        transform: Transform,
        *,
        mode: Mode = "RGB",
        seed: int = 0,
        skip_bad_images: bool = False,
    ):
        self.source = source
        self.transform = transform
        self.mode: Mode = mode
        self.seed = seed
        self.skip_bad_images = skip_bad_images
        self._epoch, self._done_batches, self._skipped = _shared_integer(), _shared_integer(), _shared_integer()
        self._batch_size = _shared_integer(1)

    @property
    def skipped(self) -> int:
        """Number of unreadable images skipped so far, over all epochs and workers."""
        return int(self._skipped)

    def set_epoch(self, epoch: int, done_batches: int = 0, batch_size: int = 1) -> None:
        """Set the epoch, also in persistent workers. Call it before iterating over the DataLoader.

        Args:
            epoch: Determines the order of the stream and the augmentation.
            done_batches: Number of batches of this epoch that an interrupted run has consumed. Their records are
                skipped without decoding. The other images are those of an uninterrupted run if the number of workers
                is unchanged and no worker had run out of files. The order of batches differs if `done_batches` is not
                a multiple of the number of workers. Each bad image that was skipped before the interruption shifts
                its worker back by one record.
            batch_size: Number of images in each of those batches.
        """
        self._epoch.fill_(epoch)
        self._done_batches.fill_(done_batches)
        self._batch_size.fill_(batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Yield image (C, H, W) and class index. Raises DataError for an invalid label or an unreadable image."""
        worker = data.get_worker_info()
        rank, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # A DataLoader takes whole batches from its workers in turn.
        start = len(range(rank, int(self._done_batches), workers)) * int(self._batch_size)
        epoch = int(self._epoch)
        self.source.set_epoch(epoch)
        for position, record in enumerate(self.source):
            if position < start:
                continue
            name = f"image {position} of the stream"
            _check_label(record["label"], self.source.features["label"], name)
            try:
                image = open_image(record["image"], self.mode, name)
            except DataError as error:
                if not self.skip_bad_images:
                    raise
                self._skipped.add_(1)
                _logger.warning("Skipped: %s", error)
                continue
            with seeded(self.seed, epoch, rank, position):
                tensor = self.transform(image)
            yield tensor, record["label"]


def _check_label(label: int | None, feature: ClassLabel, name: str) -> None:
    if label is None or not 0 <= label < feature.num_classes:
        raise DataError(f"{name} has label {label}, not 0 to {feature.num_classes - 1}. Remove such rows.")
