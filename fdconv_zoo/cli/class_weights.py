"""Weights of classes in a loss, from the values of `--class-weights`."""

import math
from collections.abc import Sequence

import numpy as np

from fdconv_zoo.errors import ConfigError

BALANCED = "balanced"


def class_weights(words: Sequence[str], counts: np.ndarray) -> list[float]:
    """Return the weight of each class from the values of the flag.

    Args:
        words: A number for each class, or "balanced".
        counts: Number of training pixels or images of each class, int64 (K,).

    Raises:
        ConfigError: `words` are neither, or a number is negative or infinite, or all are 0.
    """
    if list(words) == [BALANCED]:
        occurring = counts > 0  # as in scikit-learn: the mean weight over all pixels or images is 1
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
