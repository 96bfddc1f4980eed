"""Ranges of all numeric flags. They are checked before anything is read or written."""

import argparse
import math
from dataclasses import dataclass

from fdconv_zoo.errors import ConfigError

_LARGEST_SIDE = 2**14  # pixels


@dataclass(frozen=True)
class Range:
    """A range of finite numbers.

    Attributes:
        least: Lower bound.
        most: Upper bound.
        above: Exclude the lower bound.
        below: Exclude the upper bound.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        inside = self.least <= number <= self.most and math.isfinite(number)
        return inside and not (self.above and number == self.least) and not (self.below and number == self.most)

    def __str__(self) -> str:
        words = []
        if math.isfinite(self.least):
            words.append(f"{'above' if self.above else 'at least'} {self.least:,}")
        if math.isfinite(self.most):
            words.append(f"{'below' if self.below else 'at most'} {self.most:,}")
        return " and ".join(words) or "a finite number"


COUNT = Range(least=1)
NOT_NEGATIVE = Range(least=0)
POSITIVE = Range(least=0, above=True)
SIDE = Range(least=1, most=_LARGEST_SIDE)
PROBABILITY = Range(least=0, most=1)
RATE = Range(least=0, most=1, below=True)  # of dropout and label smoothing, and the decay of an average

RANGES = {  # by name of the flag, with underscores
    # data
    "limit": COUNT,
    "validation_fraction": Range(least=0, most=1, above=True, below=True),
    "workers": Range(least=0, most=512),
    "ignore_index": Range(least=0, most=255),
    "sample": COUNT,
    # model
    "img_size": SIDE,
    "mean": PROBABILITY,
    "std": POSITIVE,
    "crop_pct": Range(least=0, most=1, above=True),
    "drop": RATE,
    "drop_path": RATE,
    "fpn_channels": Range(least=1, most=2**14),
    "anchor_sizes": POSITIVE,
    "min_size": SIDE,
    "max_size": SIDE,
    "ce_weight": NOT_NEGATIVE,
    "dice_weight": NOT_NEGATIVE,
    "focal_weight": NOT_NEGATIVE,
    "lovasz_weight": NOT_NEGATIVE,
    "hard_pixels": Range(least=0, most=1, above=True),
    "auxiliary_weight": NOT_NEGATIVE,
    "frozen_stages": NOT_NEGATIVE,
    # augmentation
    "scale": POSITIVE,
    "ratio": POSITIVE,
    "hflip": PROBABILITY,
    "vflip": PROBABILITY,
    "rotate": Range(least=0, most=180),
    "color_jitter": NOT_NEGATIVE,
    "reprob": PROBABILITY,
    "mixup": NOT_NEGATIVE,
    "cutmix": NOT_NEGATIVE,
    "smoothing": RATE,
    "distill_weight": NOT_NEGATIVE,
    "temperature": POSITIVE,
    "aug_repeats": Range(least=1, most=64),
    "crop_size": SIDE,
    "scale_jitter": POSITIVE,
    "short_side": SIDE,
    # optimization
    "epochs": COUNT,
    "batch_size": COUNT,
    "grad_accum": COUNT,
    "updates_per_epoch": COUNT,
    "lr": NOT_NEGATIVE,
    "spectrum_lr": NOT_NEGATIVE,
    "modulator_lr": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "layer_decay": POSITIVE,
    "power": POSITIVE,
    "milestones": POSITIVE,
    "warmup_epochs": NOT_NEGATIVE,
    "warmup_lr": NOT_NEGATIVE,
    "min_lr": NOT_NEGATIVE,
    "clip_grad": NOT_NEGATIVE,
    "ema_decay": RATE,
    "patience": COUNT,
    "seed": Range(least=0, most=2**32 - 1),  # the range of NumPy's seeds
    "checkpoint_every": NOT_NEGATIVE,
    "log_every": COUNT,
    "watch": NOT_NEGATIVE,
    # evaluation and prediction
    "window": SIDE,
    "stride": SIDE,
    "scales": POSITIVE,
    "pictures": NOT_NEGATIVE,
    "top": COUNT,
    "score": PROBABILITY,
    # measurement
    "count_size": SIDE,
    "image_size": SIDE,
    "repeats": COUNT,
    "processes": COUNT,
}
_ASCENDING = ("scale", "ratio", "scale_jitter")  # flags with the lower and upper end of a range


def check_ranges(args: argparse.Namespace) -> None:
    """Check every flag in `RANGES` that is set. It may be a number, a list of numbers, or "auto".

    Raises:
        ConfigError: a number is outside its range, or two numbers are in the wrong order; names the flag.
    """
    for name, value in vars(args).items():
        if value is None or name not in RANGES:
            continue
        numbers = value if isinstance(value, list | tuple) else [value]
        numbers = [number for number in numbers if number != "auto"]
        flag = f"--{name.replace('_', '-')} {' '.join(map(str, numbers))}"
        if not all(number in RANGES[name] for number in numbers):
            raise ConfigError(f"{flag}: must be {RANGES[name]}")
        if name in _ASCENDING and numbers != sorted(numbers):
            raise ConfigError(f"{flag}: the first number must not be above the second")
