"""The classes that a classifier predicts for images, as a table and as JSON."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fdconv_zoo.store.files import replacing, write_text


@dataclass
class ClassPredictions:
    """The probabilities of all classes for each image.

    Attributes:
        model: Name of the model.
        class_names: Names of the K classes.
        files: Name of each image.
        probabilities: K probabilities for each image.
    """

    model: str
    class_names: Sequence[str]
    files: list[str] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)

    def add(self, file: str, probabilities: list[float]) -> None:
        """Add an image."""
        self.files.append(file)
        self.probabilities.append(probabilities)

    def write_csv(self, path: Path) -> None:
        """Write a row for each image: file, likeliest class, its probability, and the probabilities of all classes."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [f"probability of {name}" for name in self.class_names]
            writer.writerow(["file", "prediction", "probability", *columns])
            for name, probabilities in zip(self.files, self.probabilities, strict=True):
                writer.writerow([name, *self._best(probabilities), *probabilities])

    def write_json(self, path: Path) -> None:
        """Write the same as one JSON object. The probabilities of an image are in the order of ``classes``."""
        images = []
        for name, probabilities in zip(self.files, self.probabilities, strict=True):
            prediction, best = self._best(probabilities)
            images.append({"file": name, "prediction": prediction, "probability": best, "probabilities": probabilities})
        content = {"model": self.model, "classes": list(self.class_names), "images": images}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _best(self, probabilities: list[float]) -> tuple[str, float]:
        """The likeliest class, and its probability."""
        best = max(probabilities)
        return self.class_names[probabilities.index(best)], best
