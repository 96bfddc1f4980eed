"""Mean IoU, pixel accuracy and a table of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.errors import DataError


@dataclass(frozen=True)
class ClassResult:
    """One class's share of a result.

    Attributes:
        name: of the class.
        pixels: in the truth.
        iou: pixels in truth and prediction, of those in either, in percent; None without any.
        accuracy: share of the truth's pixels that were found, in percent; None without any.
    """

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None


@dataclass(frozen=True)
class SegmentationResult:
    """Results over one set of images, in percent. Ignored pixels do not count.

    Attributes:
        miou: Mean IoU, over the classes that occur in truth or prediction.
        pixel_accuracy: Share of all pixels that are right.
        mean_accuracy: Mean of the classes' accuracies, over those that occur in the truth.
        classes: Each class alone.
        images: Number of images, each counted once.
        images_per_second: Over all processes, reading and preprocessing included.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    classes: list[ClassResult]
    images: int
    images_per_second: float | None = None

    def as_table(self) -> str:
        """The classes, and their mean, in Markdown."""
        lines = [_row("class", "pixels", "IoU", "accuracy"), _row("---", "---:", "---:", "---:")]
        lines += [_row(part.name, part.pixels, part.iou, part.accuracy) for part in self.classes]
        return "\n".join(
            [*lines, _row("mean", sum(part.pixels for part in self.classes), self.miou, self.mean_accuracy)]
        )


def _row(*cells: str | int | float | None) -> str:
    texts = ("-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


class SegmentationMetrics:
    """Counts pixels by true and predicted class, over all processes.

    Args:
        class_names: K of them, in the order of the class numbers.
        device: Where the counts are kept: where processes exchange them.
    """

    def __init__(self, class_names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.class_names = list(class_names)
        # Its own checks let some numbers pass that are no class; those of `update` do not.
        matrix = MulticlassConfusionMatrix(len(class_names), ignore_index=IGNORE, validate_args=False)
        self._matrix, self._images = matrix.to(device), SumMetric().to(device)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count one image.

        Args:
            prediction: Class numbers (H, W).
            truth: Class numbers (H, W), or 255 where a pixel is ignored.

        Raises:
            ValueError: sizes that differ, or numbers that are no class.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"a prediction of {tuple(prediction.shape)} for a truth of {tuple(truth.shape)} pixels")
        for kind, classes in (("prediction", prediction), ("truth", truth[truth != IGNORE])):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < len(self.class_names):
                raise ValueError(
                    f"the {kind} has numbers from {int(classes.min())} to {int(classes.max())}, "
                    f"and there are {len(self.class_names)} classes"
                )
        self._matrix.update(prediction, truth)
        self._images.update(1)

    def compute(self) -> SegmentationResult:
        """The result over the images of all processes, each of which must call it.

        Raises:
            DataError: every pixel is ignored.
        """
        matrix = self._matrix.compute().cpu().double()  # rows: truth
        if not matrix.any():
            raise DataError("Every pixel of the validation masks is ignored: there is nothing to measure.")
        hits, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = 100 * hits / (true + predicted - hits)
        accuracy = 100 * hits / true
        classes = [
            ClassResult(name, int(pixels), _known(overlap), _known(found))
            for name, pixels, overlap, found in zip(self.class_names, true, iou, accuracy, strict=True)
        ]
        return SegmentationResult(
            miou=iou.nanmean().item(),
            pixel_accuracy=100 * (hits.sum() / matrix.sum()).item(),
            mean_accuracy=accuracy.nanmean().item(),
            classes=classes,
            images=int(self._images.compute()),
        )


def _known(percent: Tensor) -> float | None:
    return None if percent.isnan() else percent.item()
