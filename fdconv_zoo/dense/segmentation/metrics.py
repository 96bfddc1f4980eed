"""Mean IoU, pixel accuracy and a table of all classes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from fdconv_zoo.dense.evaluation import markdown_row
from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.errors import DataError


@dataclass(frozen=True)
class ClassResult:
    """The result of one class.

    Attributes:
        name: Name of the class.
        pixels: Number of its pixels in the ground truth.
        iou: Intersection over union, in percent; None if the class occurs in neither ground truth nor prediction.
        accuracy: Share of its ground truth pixels that are predicted correctly, in percent; None without such pixels.
    """

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None


@dataclass(frozen=True)
class SegmentationResult:
    """Results over a set of images, in percent. Ignored pixels do not count.

    Attributes:
        miou: Mean IoU over the classes that occur in ground truth or prediction.
        pixel_accuracy: Share of all pixels that are predicted correctly.
        mean_accuracy: Mean accuracy over the classes that occur in the ground truth.
        classes: The result of each class.
        images: Number of images, each counted once.
        confusion: Pixels by true and predicted class, int64 (K, K).
        images_per_second: Throughput of all processes, including reading and preprocessing.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    classes: list[ClassResult]
    images: int
    confusion: np.ndarray = field(repr=False, compare=False)
    images_per_second: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return everything except the confusion matrix, as JSON values."""
        figures = asdict(self)
        del figures["confusion"]
        return figures

    def as_table(self) -> str:
        """Format the results of the classes, and their mean, as a Markdown table."""
        lines = [markdown_row("class", "pixels", "IoU", "accuracy"), markdown_row("---", "---:", "---:", "---:")]
        lines += [markdown_row(result.name, result.pixels, result.iou, result.accuracy) for result in self.classes]
        pixels = sum(result.pixels for result in self.classes)
        return "\n".join([*lines, markdown_row("mean", pixels, self.miou, self.mean_accuracy)])


class SegmentationMetrics:
    """Confusion matrix of pixels, over all processes.

    Args:
        class_names: Names of the K classes, in the order of their indices.
        device: Device of the counts, which must support communication between the processes.
    """

    def __init__(self, class_names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.class_names = list(class_names)
        # torchmetrics' validation accepts some invalid class indices, so `update` checks them itself.
        matrix = MulticlassConfusionMatrix(len(class_names), ignore_index=IGNORE, validate_args=False)
        self._matrix, self._images = matrix.to(device), SumMetric().to(device)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count one image.

        Args:
            prediction: Class indices (H, W).
            truth: Class indices (H, W); 255 for ignored pixels.

        Raises:
            ValueError: the sizes differ, or there are invalid class indices.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction has shape {tuple(prediction.shape)}, but the truth {tuple(truth.shape)}")
        for kind, classes in (("prediction", prediction), ("truth", truth[truth != IGNORE])):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < len(self.class_names):
                raise ValueError(
                    f"the {kind} has class indices from {int(classes.min())} to {int(classes.max())}, "
                    f"but there are {len(self.class_names)} classes"
                )
        self._matrix.update(prediction, truth)
        self._images.update(1)

    def compute(self) -> SegmentationResult:
        """Compute the result over the images of all processes. All of them must call this method.

        Raises:
            DataError: every pixel is ignored.
        """
        matrix = self._matrix.compute().cpu().double()  # rows: truth
        if not matrix.any():
            raise DataError("Every pixel of the validation masks is ignored. Check --ignore-index and the masks.")
        correct, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = 100 * correct / (true + predicted - correct)
        accuracy = 100 * correct / true
        classes = [
            ClassResult(name, int(pixels), _number(class_iou), _number(class_accuracy))
            for name, pixels, class_iou, class_accuracy in zip(self.class_names, true, iou, accuracy, strict=True)
        ]
        return SegmentationResult(
            miou=iou.nanmean().item(),
            pixel_accuracy=100 * (correct.sum() / matrix.sum()).item(),
            mean_accuracy=accuracy.nanmean().item(),
            classes=classes,
            images=int(self._images.compute()),
            confusion=matrix.long().numpy(),
        )


def _number(percent: Tensor) -> float | None:
    return None if percent.isnan() else percent.item()
