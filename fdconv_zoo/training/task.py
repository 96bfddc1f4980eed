"""The interface between the training loop and a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Task(ABC):
    """A kind of training: its loss, its evaluation, and the files of its models.

    Attributes:
        metrics: Key in a row of metrics.jsonl to its name, for figures in percent that may be None. The first, never
            None, chooses the best epoch.
    """

    metrics: Mapping[str, str]

    @property
    def chosen_by(self) -> str:
        """Key of the metric that chooses the best epoch."""
        return next(iter(self.metrics))

    def describe(self, figures: Mapping[str, Any]) -> str:
        """The metrics of a row, or of other figures with their keys, in words."""
        return ", ".join(
            f"{name} {figures[key]:.2f} %" for key, name in self.metrics.items() if figures[key] is not None
        )

    def tracked(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The figures of a row of metrics.jsonl that trackers log, by name."""
        return {key: row[key] for key in ("loss", *self.metrics) if row.get(key) is not None}

    def compiled_part(self, model: nn.Module) -> nn.Module:
        """The module of the model that ``--compile`` compiles: one that maps tensors to tensors."""
        return model

    @abstractmethod
    def loss(self, model: nn.Module, *batch: Any) -> Tensor:
        """The scalar that training minimizes, for one batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """The validation figures for a row of metrics.jsonl: `metrics`, and `loss` where there is one.

        Every process calls it.
        """

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model into a folder, whole or not at all. The main process calls it.

        Raises:
            WriteError: it could not be written.
        """
