"""The parts of a section: items, which run one after another and record rows, notes and failures."""

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
    """The settings of the report, which are sent to the processes that run the sections.

    Attributes:
        device: device of the checks and measurements, "cuda" or "cpu".
        small: use tiny models and sizes.
        paths: paths of FDConv layers to check and measure, the newest last.
        peers: other dynamic convolutions by name; each is built from the ``nn.Conv2d`` that it replaces.
        replace_layers: replaces named layers by a peer: ``replace_layers(model, names, peer)``.
        root: root folder of the repository.
        tests: tests to run, as pytest names them; see :mod:`fdconv_zoo.profiling.gpu_report.suite`.
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
    """Records the results of a section's items.

    Args:
        send: called with each event, a tuple whose first element is "row", "note" or "failure".
        deadline: end of the section, on the clock of ``time.monotonic``.
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
        """Add a note to the section."""
        self._send(("note", text))

    def failure(self, what: str, details: str) -> None:
        """Add a failure, with its traceback or output."""
        self._send(("failure", f"{self.item}: {what}", details))

    @contextmanager
    def attempt(self, what: str, *, leaves_device: bool = True) -> Iterator[None]:
        """Record an exception of the block as a failure, and continue after the block.

        Args:
            what: description of the block.
            leaves_device: False if a failure of the block makes the GPU unusable for this process, as during the
                capture of a CUDA graph, after which memory and the random number generator stay reserved.

        Raises:
            DeviceLostError: the block has failed, and the GPU is unusable.
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
    """This process can no longer use the GPU, as after an illegal memory access; only a new process can continue."""


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
    """Free the memory that tracebacks and models have held, including GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # the CUDA context is lost, which `attempt` detects
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
