"""Weights of classes in a loss, from the words of `--class-weights`."""

import math
from collections.abc import Sequence

import numpy as np

from fdconv_zoo.errors import ConfigError

BALANCED = "balanced"


def class_weights(words: Sequence[str], counts: np.ndarray) -> list[float]:
    """Weights of the classes from the words of the flag.

    Args:
        words: A number for each class, or "balanced".
        counts: Pixels or images of each class in training, int64 (K,).

    Raises:
        ConfigError: they are neither.
    """
    if list(words) == [BALANCED]:
        occurring = counts > 0  # as scikit-learn's: over all pixels or images, the mean weight is 1
        return np.where(occurring, counts.sum() / (occurring.sum() * np.maximum(counts, 1)), 1.0).tolist()
    try:
        weights = [float(word) for word in words]
    except ValueError:
        weights = []
    if len(weights) != len(counts) or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError(
            f"--class-weights {' '.join(words)}: must be '{BALANCED}', or {len(counts)} numbers of at least 0, in the "
            "order of classes"
        )
    return weights
