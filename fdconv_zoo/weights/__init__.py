"""Weights files: getting them from the Hub whole, reading them without running what they hold, and checking them."""

from fdconv_zoo.weights.check import check_finite, check_model_folder, check_weights_file, load_strictly
from fdconv_zoo.weights.errors import WeightsError
from fdconv_zoo.weights.guard import guarded_file
from fdconv_zoo.weights.read import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "WeightsError",
    "check_finite",
    "check_model_folder",
    "check_weights_file",
    "guarded_file",
    "load_strictly",
    "read_checkpoint",
]
