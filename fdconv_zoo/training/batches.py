"""Training batches of each process. An epoch can be resumed from any batch."""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch import Tensor
from torch.utils import data

from fdconv_zoo.data import ImageDataset, StreamedImageDataset
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.randomness import derive_seed
from fdconv_zoo.training.termination import outlive_sigterm

_logger = logging.getLogger(__name__)


class EpochSampler(data.Sampler[int]):
    """Sampler of one process's share of the images of an epoch, in an order drawn from (seed, epoch).

    Args:
        num_images: Size of the dataset.
        per_process: Images of each process in an epoch.
        seed: The run's seed.
        rank: Rank of the process.
        world_size: Number of processes.
    """

    def __init__(self, num_images: int, per_process: int, *, seed: int, rank: int = 0, world_size: int = 1):
        self.num_images = num_images
        self.per_process = per_process
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration, which skips its first `start` images."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return self.per_process - self.start

    def __iter__(self) -> Iterator[int]:
        order = self._order(np.random.default_rng([self.seed, self.epoch]))
        own = order[self.rank : self.per_process * self.world_size : self.world_size]
        return iter(own[self.start :].tolist())

    def _order(self, random: np.random.Generator) -> np.ndarray:
        return random.permutation(self.num_images)


class RepeatingSampler(EpochSampler):
    """Sampler of images that are drawn several times in an epoch: yields (index, number of earlier draws).

    Args:
        num_images: Size of the dataset.
        per_process: Images of each process in an epoch.
        repeats: Number of times that each image is repeated in a row (repeated augmentation, Hoffer et al., 2020). An
            epoch then contains only a part of the images. As in timm's sampler, the repeats of an image are distributed
            over the processes.
        weights: Relative probability of each image, (N,), for sampling with replacement. None: uniform, without
            replacement.
        **kwargs: Other arguments of `EpochSampler`.
    """

    def __init__(
        self, num_images: int, per_process: int, *, repeats: int = 1, weights: np.ndarray | None = None, **kwargs: int
    ):
        super().__init__(num_images, per_process, **kwargs)
        self.repeats = repeats
        self.weights = weights

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return map(tuple, super().__iter__())

    def _order(self, random: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            images = super()._order(random)
        else:
            images = random.choice(self.num_images, self.num_images, p=self.weights / self.weights.sum())
        images = images.repeat(self.repeats)[: self.num_images]
        by_image = images.argsort(kind="stable")
        times = np.empty_like(images)
        times[by_image] = np.arange(len(images)) - np.searchsorted(images[by_image], images[by_image])
        return np.stack([images, times], 1)


def training_images(
    source: Dataset | IterableDataset,
    transform: Callable[[Image.Image], Tensor],
    *,
    mode: str,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    skip_bad_images: bool = False,
) -> ImageDataset | StreamedImageDataset:
    """Build the dataset on which one process trains a classifier, for `TrainingBatches`.

    Args:
        source: `ImageData.train`.
        transform: PIL image -> tensor (C, H, W).
        mode: "RGB" or "L".
        seed: The run's seed.
        rank: Rank of the process.
        world_size: Number of processes.
        skip_bad_images: For a stream, as in `StreamedImageDataset`.
    """
    if not isinstance(source, IterableDataset):
        return ImageDataset(source, transform, mode=mode, seed=seed)
    own = split_dataset_by_node(source, rank, world_size) if world_size > 1 else source
    own_seed = derive_seed(seed, rank)
    return StreamedImageDataset(own, transform, mode=mode, seed=own_seed, skip_bad_images=skip_bad_images)


class TrainingBatches:
    """Shuffled, augmented batches for one process. They depend only on the seed, not on where an epoch is resumed.

    An epoch consists of whole updates. The images that do not fill an update are left out, different ones in each
    epoch.

    Args:
        dataset: A dataset with `set_epoch(epoch)` whose augmentation depends only on (seed, epoch, index), or a
            `StreamedImageDataset`.
        batch_size: Images per batch.
        batches_per_update: Number of batches per optimizer update, for gradient accumulation.
        updates_per_epoch: Optimizer updates per epoch, limited to those of the whole dataset; None: the whole dataset.
            Required for a stream.
        seed: The run's seed.
        rank: Rank of the process.
        world_size: Number of processes.
        workers: Processes that read and augment images.
        collate: Function from a list of items to a tuple of tensors or lists of tensors. Default: torch's.
        repeats, weights: As in `RepeatingSampler`; not for a stream.
        device: Device of the batches.

    Attributes:
        updates_per_epoch: Optimizer updates in an epoch.
        batches_per_epoch: Batches of each process in an epoch.

    Raises:
        ConfigError: too few images for one update, or a stream without `updates_per_epoch`.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        *,
        batch_size: int,
        batches_per_update: int = 1,
        updates_per_epoch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        collate: Callable[[list], tuple] | None = None,
        repeats: int = 1,
        weights: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = device
        self.sampler = None
        images_per_update = batch_size * world_size * batches_per_update
        if isinstance(dataset, data.IterableDataset):
            if updates_per_epoch is None:
                raise ConfigError("--streaming needs --updates-per-epoch: a stream has no known length")
        else:
            whole = len(dataset) // images_per_update
            updates_per_epoch = min(updates_per_epoch or whole, whole)
            if whole == 0:
                raise ConfigError(
                    f"the training set has {len(dataset)} images, but one update takes {images_per_update} "
                    f"({batch_size} per batch, {world_size} processes, {batches_per_update} batches per update): "
                    "lower --batch-size or --grad-accum"
                )
            per_process = updates_per_epoch * batches_per_update * batch_size
            places = {"seed": seed, "rank": rank, "world_size": world_size}
            if repeats > 1 or weights is not None:
                self.sampler = RepeatingSampler(len(dataset), per_process, repeats=repeats, weights=weights, **places)
            else:
                self.sampler = EpochSampler(len(dataset), per_process, **places)
        self.updates_per_epoch = updates_per_epoch
        self.batches_per_epoch = updates_per_epoch * batches_per_update
        self.loader = data.DataLoader(
            self.dataset,
            batch_size=batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.device(device).type == "cuda",
            worker_init_fn=outlive_sigterm,
            generator=torch.Generator(),  # else every iterator would draw from the global generator
        )

    @property
    def skipped(self) -> int:
        """Number of unreadable images of a stream skipped so far.

        It is 0 for a map-style dataset, from which unreadable images were removed when it was loaded.
        """
        return getattr(self.dataset, "skipped", 0)

    def epoch(self, epoch: int, done: int = 0) -> Iterator[tuple]:
        """Yield the batches of an epoch except the first `done`, which are skipped without decoding.

        Args:
            epoch: Number of the epoch, from 0.
            done: Number of batches to skip, less than `batches_per_epoch`.

        Raises:
            ConfigError: a stream has fewer images than one batch.
        """
        if self.sampler is not None:
            self.dataset.set_epoch(epoch)
            self.sampler.set_epoch(epoch, start=done * self.batch_size)
        else:
            self.dataset.set_epoch(epoch, done, self.batch_size)
        for passes in itertools.count():
            before = done
            for batch in self.loader:
                yield send_to_device(batch, self.device, non_blocking=True)
                done += 1
                if done == self.batches_per_epoch:
                    return
            # Only a stream gets here. It starts again, because all processes must take the same number of batches.
            if passes > 0 and done == before:
                raise ConfigError("the stream has fewer images than one batch: lower --batch-size")
            _logger.warning("The stream ended before the epoch and starts again: lower --updates-per-epoch.")
            self.dataset.set_epoch(epoch)


def make_batches(
    args: argparse.Namespace,
    dataset: data.Dataset,
    accelerator: Accelerator,
    collate: Callable[[list], tuple] | None = None,
    *,
    repeats: int = 1,
    weights: np.ndarray | None = None,
) -> TrainingBatches:
    """Build the batches of this process from the flags of a task.

    Args:
        args: The flags.
        dataset, collate, repeats, weights: As in `TrainingBatches`.
        accelerator: Accelerator of the run.
    """
    return TrainingBatches(
        dataset,
        batch_size=args.batch_size,
        batches_per_update=accelerator.gradient_accumulation_steps,
        updates_per_epoch=args.updates_per_epoch,
        seed=args.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=args.workers,
        collate=collate,
        repeats=repeats,
        weights=weights,
        device=accelerator.device,
    )
