"""Trains ResNet-18 with FDConv and its plain twin on Fashion-MNIST: accuracy, and time of an epoch."""

import gzip
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.errors import DataError
from fdconv_zoo.profiling.gpu_report.clock import synchronize
from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings
from fdconv_zoo.profiling.timing import autocast
from fdconv_zoo.profiling.twin import create_with_twin

BATCH, SMALL_BATCH = 256, 32
RATE, DECAY = 1e-3, 0.05
MAX_EPOCHS, SMALL_EPOCHS = 15, 2
TRIAL_STEPS = 5


def items(settings: Settings) -> list[Item]:
    """Return one item, or none without a folder of Fashion-MNIST."""
    if settings.fashion_mnist is None:
        return []
    return [Item("ResNet-18 and its twin", partial(_train, settings, settings.fashion_mnist), limit=3600)]


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped or not.

    Args:
        path: path of the file, without ``.gz``.

    Raises:
        DataError: the file does not exist, or has another format.
    """
    compressed = path.with_name(path.name + ".gz")
    if path.exists():
        content = path.read_bytes()
    elif compressed.exists():
        content = gzip.decompress(compressed.read_bytes())
    else:
        raise DataError(f"{path} does not exist, nor {compressed.name}: give the folder of the four idx files.")
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes.")
    ndim = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=ndim, offset=4).tolist()
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def load(folder: Path, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load images (N, 1, 32, 32), normalized and padded, and labels (N,), for training, then the same for the test."""
    found = []
    for part in ("train", "t10k"):
        images = read_idx(folder / f"{part}-images-idx3-ubyte").to(device).float().div(255)
        found += [F.pad((images - 0.286) / 0.353, (2, 2, 2, 2), value=-0.81).unsqueeze(1)]
        found += [read_idx(folder / f"{part}-labels-idx1-ubyte").to(device).long()]
    return tuple(found)


class _Run:
    """A model in training.

    Args:
        model: on the device.
        data: as :func:`load` returns it.
        batch_size: number of images of a step.
    """

    dtype = torch.bfloat16  # of autocast

    def __init__(self, model: nn.Module, data: tuple[Tensor, ...], batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.images, self.labels, self.test_images, self.test_labels = data
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches, without an incomplete one."""
        return len(self.images) // self.batch_size

    def plan(self, epochs: int) -> None:
        """Set the learning rate schedule."""
        steps = epochs * self.steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, total_steps=steps)

    def train(self, steps: int | None = None) -> float:
        """Train for an epoch, or for a number of steps; return the mean loss."""
        self.model.train()
        order = torch.randperm(len(self.images), device=self.images.device)
        batches = order.split(self.batch_size)[: self.steps_per_epoch][:steps]
        losses = torch.zeros((), device=order.device)
        for indices in batches:
            x = self.images[indices]
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
            with autocast(x.device, self.dtype):
                loss = F.cross_entropy(self.model(x).float(), self.labels[indices])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            losses += loss.detach()
        return losses.item() / len(batches)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Compute the fraction of the test images that are classified correctly."""
        self.model.eval()
        hits = 0
        for x, labels in zip(self.test_images.split(1000), self.test_labels.split(1000), strict=True):
            with autocast(x.device, self.dtype):
                hits += (self.model(x).argmax(1) == labels).sum().item()
        return hits / len(self.test_labels)


def _train(settings: Settings, folder: Path, recorder: Recorder) -> None:
    device = torch.device(settings.device)
    data = load(folder, device)
    torch.manual_seed(0)
    name = "resnet10s_fdconv" if settings.small else "resnet18_fdconv"
    models = create_with_twin(name, num_classes=10, in_chans=1)
    plain, model = models.values()
    model.load_state_dict(plain.state_dict())
    batch, most = (SMALL_BATCH, SMALL_EPOCHS) if settings.small else (BATCH, MAX_EPOCHS)
    runs = {name: _Run(model.to(device), data, batch) for name, model in models.items()}
    seconds = 0.0
    for run in runs.values():  # the first of two rounds warms up, the second is timed
        for _ in range(2):
            start = time.perf_counter()
            run.train(TRIAL_STEPS)
            synchronize(device)
        seconds += (time.perf_counter() - start) * run.steps_per_epoch / TRIAL_STEPS
    epochs = min(max(int(0.85 * recorder.seconds_left / seconds), 1), most)
    recorder.note(
        f"AdamW, rate {RATE}, weight decay {DECAY}, one cycle of {epochs} epochs, batch {batch}, bfloat16, flips; "
        "both start from the same weights."
    )
    for run in runs.values():
        run.plan(epochs)
    for epoch in range(1, epochs + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            loss = run.train()
            seconds = time.perf_counter() - start
            figures = {"training loss": loss, "test accuracy": f"{run.accuracy():.2%}", "s": seconds}
            recorder.row("training", epoch=epoch, model=name, **figures)
