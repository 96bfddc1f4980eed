"""Statistics of two models' results with the same seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference and its confidence interval.

    Attributes:
        mean: Mean over the pairs.
        low, high: Ends of the interval; None for a single pair, which has none.
    """

    mean: float
    low: float | None = None
    high: float | None = None


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compute the mean of ``values - reference`` and its two-sided interval at `CONFIDENCE`, by Student's t.

    Effects that the runs of a seed share, such as the order of their images, cancel out in a difference. So the
    interval is often narrower than the deviations of the two models suggest.

    Args:
        values: A model's results, one for each seed.
        reference: Results of the model that it is compared with, for the same seeds in the same order.

    Raises:
        ValueError: the numbers of results differ, or there are none.
    """
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    mean = statistics.mean(differences)
    count = len(differences)
    if count == 1:
        return PairedDifference(mean)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return PairedDifference(mean, mean - half, mean + half)
