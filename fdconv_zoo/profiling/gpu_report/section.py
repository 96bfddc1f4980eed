"""What a section of the report is made of: items, which run one after another and record rows, notes and failures."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from fdconv_zoo.ops import Path as ComputationPath

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the report covers; it travels to the processes that run the sections.

    Attributes:
        device: of the checks and measurements, "cuda" or "cpu".
        small: use tiny models and sizes.
        paths: of FDConv layers.
        peers: other dynamic convolutions by name; each is built from the ``nn.Conv2d`` that it replaces.
        replace_layers: puts a peer in place of named layers: ``replace_layers(model, names, peer)``.
        root: of the repository.
        tests: that the report runs, as pytest names them; see :mod:`fdconv_zoo.profiling.gpu_report.suite`.
        fashion_mnist: folder with the four idx files of Fashion-MNIST.
    """

    device: str
    small: bool = False
    paths: tuple[str, ...] = get_args(ComputationPath)
    peers: Mapping[str, Callable[[nn.Conv2d], nn.Module]] = field(default_factory=dict)
    replace_layers: Callable[..., None] | None = None
    root: Path = Path()
    tests: tuple[str, ...] = ()
    fashion_mnist: Path | None = None


class Recorder:
    """Takes what the items of a section find.

    Args:
        send: called with each event, a tuple whose first element is "row", "note" or "failure".
        deadline: of the section, on the clock of ``time.monotonic``.
    """

    def __init__(self, send: Callable[[tuple], None], deadline: float) -> None:
        self._send, self._deadline = send, deadline
        self.item = ""

    @property
    def seconds_left(self) -> float:
        """Seconds to the deadline of the section."""
        return self._deadline - time.monotonic()

    def row(self, table: str, **figures: Any) -> None:
        """Add a row to a table."""
        self._send(("row", table, figures))

    def note(self, text: str) -> None:
        """Add a remark to the section."""
        self._send(("note", text))

    def failure(self, what: str, details: str) -> None:
        """Add a failure, with its traceback or output."""
        self._send(("failure", f"{self.item}: {what}", details))

    @contextmanager
    def attempt(self, what: str, *, leaves_device: bool = True) -> Iterator[None]:
        """Record what the block raises, and go on after it.

        Args:
            what: it attempts.
            leaves_device: False: a failure of the block makes the GPU unusable for this process, as one within the
                capture of a CUDA graph does, whose memory and random numbers stay reserved.

        Raises:
            DeviceLostError: the block has failed and made the GPU unusable.
        """
        try:
            yield
        except DeviceLostError:
            raise
        except Exception as error:
            self.failure(what, traceback.format_exc())
            traceback.clear_frames(error.__traceback__)  # which may hold all of the GPU's memory
            release_memory()
            if not leaves_device or not _is_alive():
                raise DeviceLostError from error


class DeviceLostError(RuntimeError):
    """The GPU is lost to this process, as after an illegal memory access: only a new one can go on."""


class Item(NamedTuple):
    """A part of a section.

    Attributes:
        name: unique in the section.
        run: does the work.
        limit: seconds after which it is stopped.
    """

    name: str
    run: Callable[[Recorder], None]
    limit: float = 60


def release_memory() -> None:
    """Free what tracebacks and models have held, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # the context is lost, which is found out elsewhere
            return


def _is_alive() -> bool:
    """Whether the GPU still computes in this process."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except RuntimeError:
        return False
    return True
