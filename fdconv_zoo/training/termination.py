"""Handles SIGTERM, which schedulers send before they kill a job."""

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
    """Raises `Terminated` on SIGTERM: immediately, or in the training loop after the next update.

    ``with termination:`` installs the signal handler. This has an effect in the main thread only.
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
        """Do not raise in the block, which calls `agreed` instead. Every process must enter it."""
        if accelerator.num_processes > 1:
            self._group = distributed.new_group(backend="gloo")  # its messages do not wait for a GPU
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    def agreed(self) -> bool:
        """Return whether any process received SIGTERM. Every process must call this; all get the same result."""
        if self._group is None:
            return self.requested
        requested = torch.tensor(int(self.requested))
        distributed.all_reduce(requested, distributed.ReduceOp.MAX, group=self._group)
        return bool(requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its pool terminates
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.requested = True
        if self._at_once:
            raise Terminated("before the first update; start again with --resume")


def outlive_sigterm(worker: int) -> None:
    """Make a DataLoader worker ignore SIGTERM: schedulers send it to all processes, but the run still needs workers.

    Workers exit with their DataLoader, or soon after its process ends.

    Args:
        worker: Id of the worker, as passed to `worker_init_fn`.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
