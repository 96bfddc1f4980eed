"""PyTorch datasets over loaded images whose random augmentation can be repeated exactly."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Seeds the generators that transforms draw from (python's, NumPy's, PyTorch's on the CPU); restores them after."""
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


def shared(value: int = 0) -> Tensor:
    """A number that DataLoader workers already running see change."""
    return torch.tensor(value, dtype=torch.int64).share_memory_()


class ImageDataset(data.Dataset):
    """Images of `source` by index; augmentation is a pure function of (seed, epoch, index).

    Args:
        source: columns `image` (undecoded) and `label`, as `load_image_data` returns them.
        transform: PIL image -> tensor (C, H, W).
        mode: "RGB" or "L", the images that `transform` gets.
        seed: of the augmentation.
    """

    def __init__(self, source: Dataset, transform: Transform, *, mode: Mode = "RGB", seed: int = 0):
        self.source = source
        self.transform = transform
        self.mode: Mode = mode
        self.seed = seed
        self._epoch = shared()

    def set_epoch(self, epoch: int) -> None:
        """Call before the epoch's DataLoader iterator is made; also reaches persistent workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (C, H, W) and class. Raises DataError for an image that cannot be read."""
        index = int(index)
        record = self.source[index]
        image = open_image(record["image"], self.mode, name=f"image {index}")
        with seeded(self.seed, int(self._epoch), index):
            return self.transform(image), record["label"]


class StreamedImageDataset(data.IterableDataset):
    """Images of a streamed `source`; augmentation is a pure function of (seed, epoch, worker, position in its stream).

    Several DataLoader workers share the stream by its files. Several processes split `source` outside
    (`datasets.distributed.split_dataset_by_node`), each with a `seed` of its own.

    Args:
        source: columns `image` (undecoded) and `label`, as `load_image_data` returns them.
        transform: PIL image -> tensor (C, H, W).
        mode: "RGB" or "L", the images that `transform` gets.
        seed: of the augmentation.
        skip_bad_images: pass over images that cannot be read, with a warning, instead of raising DataError.
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
        self._epoch, self._done_batches, self._batch_size, self._skipped = shared(), shared(), shared(1), shared()

    @property
    def skipped(self) -> int:
        """Unreadable images passed over so far, in all epochs and workers."""
        return int(self._skipped)

    def set_epoch(self, epoch: int, done_batches: int = 0, batch_size: int = 1) -> None:
        """Call before the epoch's DataLoader iterator is made; also reaches persistent workers.

        Args:
            epoch: reshuffles the stream and the augmentation.
            done_batches: batches of this epoch that an interrupted run has consumed. The stream passes over their
                records without decoding them. Exact with the same number of workers while all of them still had
                files; batches come in another order where the number is no multiple of the workers', and each bad
                image left out before shifts its worker back by one.
            batch_size: of those batches.
        """
        self._epoch.fill_(epoch)
        self._done_batches.fill_(done_batches)
        self._batch_size.fill_(batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Yields image (C, H, W) and class. Raises DataError for a bad label, or an image that cannot be read."""
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
                _logger.warning("Left out: %s", error)
                continue
            with seeded(self.seed, epoch, rank, position):
                tensor = self.transform(image)
            yield tensor, record["label"]


def _check_label(label: int | None, feature: ClassLabel, name: str) -> None:
    if label is None or not 0 <= label < feature.num_classes:
        raise DataError(f"{name} has label {label}, not 0 to {feature.num_classes - 1}. Remove such rows.")
