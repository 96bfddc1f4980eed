"""SIGTERM, with which schedulers announce that a job will be killed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator
from torch import distributed

from fdconv_zoo.errors import Terminated


class Termination:
    """Turns SIGTERM into `Terminated`: at once, or in the training loop at the next update.

    `with termination:` watches for the signal. Threads other than the main one cannot.
    """

    def __init__(self):
        self.requested = False
        self._at_once = True
        self._process = os.getpid()
        self._group: distributed.ProcessGroup | None = None

    def __enter__(self) -> "Termination":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def held_back(self, accelerator: Accelerator) -> Iterator[None]:
        """Only note the signal in the block, which asks `agreed`. Every process enters it."""
        if accelerator.num_processes > 1:
            self._group = distributed.new_group(backend="gloo")  # its messages do not wait for a GPU
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    def agreed(self) -> bool:
        """Whether any process was asked to end. Every process calls it, and all get the same answer."""
        if self._group is None:
            return self.requested
        requested = torch.tensor(int(self.requested))
        distributed.all_reduce(requested, distributed.ReduceOp.MAX, group=self._group)
        return bool(requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its pool ends
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.requested = True
        if self._at_once:
            raise Terminated("before the first update; start again with --resume")


def outlive_sigterm(worker: int) -> None:
    """Let a DataLoader's worker ignore SIGTERM: a scheduler sends it to all processes, and the run still needs them.

    Workers end with their DataLoader, or soon after its process.

    Args:
        worker: Number of the worker, as `worker_init_fn` gets it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
