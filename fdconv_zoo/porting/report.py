"""Report of a conversion, for the terminal and for ``conversion.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conversion:
    """Report of a conversion.

    Attributes:
        source: name of the weights file.
        sha256: SHA-256 hash of the file.
        library: the library whose parameter names the file has.
        model: timm's name of the model.
        model_args: arguments that the model was built with, other than the number of classes.
        num_classes: number of classes; 0 if the file has no classifier.
        mapped: number of tensors used from each part of the file.
        left: tensors not used: the part of the file, their number, and the reason.
        other_entries: entries of the file other than weights, which are not used either.
        notes: further remarks.
        compared_with: the network that the written model was compared with.
        deviation: the largest deviation, as a fraction of the largest feature.
    """

    source: str
    sha256: str
    library: str
    model: str
    model_args: Mapping[str, Any]
    num_classes: int
    mapped: Mapping[str, int]
    left: tuple[tuple[str, int, str], ...]
    other_entries: tuple[str, ...]
    notes: tuple[str, ...]
    compared_with: str
    deviation: float

    def describe(self) -> str:
        """Return a few lines of text for the terminal."""
        arguments = {"num_classes": self.num_classes, **self.model_args}
        lines = [
            f"{self.source}: names of {self.library}",
            f"model   {self.model}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})",
            f"mapped  {sum(self.mapped.values())} tensors: {_counts(self.mapped)}",
        ]
        reasons: dict[str, dict[str, int]] = {}
        for part, count, reason in self.left:
            reasons.setdefault(reason, {})[part] = count
        lines += [f"left    {sum(parts.values())} tensors, {why}: {_counts(parts)}" for why, parts in reasons.items()]
        lines += [f"left    no weights: {', '.join(self.other_entries)}"] if self.other_entries else []
        lines += [f"note    {note}" for note in self.notes]
        lines += [f"checked loaded again through timm: {self.deviation:.1e} from {self.compared_with}"]
        return "\n".join(lines)


def _counts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} ({count})" for part, count in parts.items())
