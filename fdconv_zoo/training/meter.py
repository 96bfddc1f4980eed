"""Training loss and speed of an epoch. The loss stays on the device until it is read, so that steps do not wait."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Sum of the losses of an epoch's batches over all processes.

    Args:
        accelerator: Accelerator of the run.
        batch_size: Images per batch and process.
        total: Sum of the earlier losses, if the epoch is resumed.
        count: Number of the earlier losses.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, total: float = 0.0, count: int = 0):
        self.accelerator = accelerator
        self.images_per_batch = batch_size * accelerator.num_processes
        self._total = torch.tensor(total, device=accelerator.device)
        self.count = count
        self._first_count = count
        self._start = time.perf_counter()
        self._last = (total, count, self._start)

    def add(self, loss: Tensor) -> None:
        """Add this process's mean loss over a batch."""
        self._total += loss.detach()
        self.count += 1

    def total(self) -> float:
        """Return the sum of the losses, averaged over the processes.

        If any loss was infinite or NaN, so is the sum. Every process must call this method.
        """
        # Averaging now does not change later results: losses that are added from here on are averaged the next time.
        self._total = self.accelerator.reduce(self._total, "mean")
        return self._total.item()

    def recent(self) -> tuple[float, float]:
        """Return mean loss and images per second of all processes since the last call. Every process must call this."""
        total, count, since = self._last
        self._last = now_total, now_count, now = self.total(), self.count, time.perf_counter()
        batches = now_count - count
        return (now_total - total) / batches, batches * self.images_per_batch / (now - since)

    def epoch(self) -> tuple[float, float]:
        """Return the epoch's mean loss, and images per second since its creation. Every process must call this."""
        mean = self.total() / self.count
        images = (self.count - self._first_count) * self.images_per_batch
        return mean, images / (time.perf_counter() - self._start)


def format_speed(images_per_second: float) -> str:
    """Format a speed: below ten images per second with two significant digits, otherwise as an integer."""
    return f"{images_per_second:{'.0f' if images_per_second >= 10 else '.2g'}} images/s"
