"""The interface between the training loop and a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Task(ABC):
    """Base class of the kinds of training: defines loss, evaluation and export of a model.

    Attributes:
        metrics: Display name of each metric, by its key in a row of metrics.jsonl. Values are in percent and may be
            None, except that of the first metric, which determines the best epoch.
    """

    metrics: Mapping[str, str]

    @property
    def chosen_by(self) -> str:
        """Key of the metric that determines the best epoch."""
        return next(iter(self.metrics))

    def describe(self, figures: Mapping[str, Any]) -> str:
        """Format the metrics of a row, or of another mapping with the same keys, as text."""
        return ", ".join(
            f"{name} {figures[key]:.2f} %" for key, name in self.metrics.items() if figures[key] is not None
        )

    def tracked(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the figures of a row of metrics.jsonl that trackers log, by name."""
        return {key: row[key] for key in ("loss", *self.metrics) if row.get(key) is not None}

    def compiled_part(self, model: nn.Module) -> nn.Module:
        """Return the module of the model that ``--compile`` compiles. It must map tensors to tensors."""
        return model

    @abstractmethod
    def loss(self, model: nn.Module, *batch: Any) -> Tensor:
        """Compute the loss of one batch, a scalar."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Compute the validation figures for a row of metrics.jsonl: `metrics`, and `loss` if there is one.

        Every process calls this method.
        """

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model to a folder; an interrupted write leaves no partial files. Only the main process calls this.

        Raises:
            WriteError: the files could not be written.
        """
